"""AutoPruner against its loss written out in autograd; what stays of a network; what is refused."""

import copy
import gc
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.optim import LBFGS, SGD, Adam, AdamW, Optimizer
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

from experiments import models
from pruning import Evidence, Masks, prunable
from pruning.allocation import Densities, Global, Uniform
from pruning.dynamic import AutoPruner
from pruning.errors import AllocationError, GranularityError, PruningError, ScheduleError, ScoreError
from pruning.granularity import Vectors
from pruning.structure import Budget, Channels, remove, trace, verify

STEPS = 24


def network(seed: int = 0) -> nn.Sequential:
    """Families "0" (4 channels), "3" (6 channels, flattened from 3 x 3) and "6" (5 neurons)."""
    torch.manual_seed(seed)
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(4, 6, 2), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(54, 5), nn.ReLU(), nn.Linear(5, 3)),
    ).double()


def batch(step: int, count: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    inputs = torch.randn(count, 1, 8, 8, generator=generator, dtype=torch.float64)
    return inputs, inputs.mean((2, 3)).flatten().mul(20).long() % 3


def loss_of(model: nn.Module, data: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(data[0]), data[1])


def regime_of(model: nn.Module, optimizer: Optimizer, masks: Masks | None = None, **options: Any) -> AutoPruner:
    granularity = options.pop("granularity", None) or Channels(trace(model, batch(0)[0]))
    evidence = Evidence(model, prunable(model), masks=masks)
    return AutoPruner(evidence, optimizer, **{"steps": STEPS, "density": 0.5, "granularity": granularity} | options)


def run(
    regime: AutoPruner, first: int = 0, last: int = STEPS, watch: Callable[[int], None] = lambda step: None
) -> None:
    for step in range(first, last):
        regime.optimizer.zero_grad()
        loss_of(regime.model, batch(step)).backward()
        regime.before_step()
        regime.optimizer.step()
        regime.after_step()
        watch(step + 1)


def pooled(activations: Tensor) -> Tensor:
    """Mean over the batch, maxima of 2 x 2."""
    mean = activations.mean(0)
    if mean.dim() == 1:
        return mean
    height, width = (side - side % 2 for side in mean.shape[1:])
    corners = [mean[:, i:height:2, j:width:2] for i in (0, 1) for j in (0, 1)]
    return torch.stack(corners).amax(0).flatten()


def coded_loss(
    weights: dict[str, Tensor], coding: dict[str, tuple[Tensor, Tensor]], alpha: dict[str, float], step: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of the data, and the codes."""
    inputs, targets = batch(step)
    codes = {}

    def code(name: str, activations: Tensor) -> Tensor:
        weight, bias = coding[name]
        codes[name] = torch.sigmoid(alpha[name] * (torch.einsum("ui,i->u", weight, pooled(activations)) + bias))
        return codes[name]

    one = F.max_pool2d(F.relu(F.conv2d(inputs, weights["0.weight"], weights["0.bias"], padding=1)), 2)
    one = one * code("0", one).view(1, 4, 1, 1)
    two = F.relu(F.conv2d(one, weights["3.weight"], weights["3.bias"]))
    two = (two * code("3", two).view(1, 6, 1, 1)).flatten(1)
    three = F.relu(two @ weights["6.weight"].T + weights["6.bias"])
    three = three * code("6", three)
    return F.cross_entropy(three @ weights["8.weight"].T + weights["8.bias"], targets), codes


def masks_of(kept: dict[str, Tensor]) -> dict[str, Tensor]:
    """Where units that are not `kept` have no weights."""
    return {
        "0.weight": kept["0"].view(4, 1, 1, 1).expand(4, 1, 3, 3),
        "0.bias": kept["0"],
        "3.weight": kept["3"].view(6, 1, 1, 1) & kept["0"].view(1, 4, 1, 1).expand(6, 4, 2, 2),
        "3.bias": kept["3"],
        "6.weight": kept["6"][:, None] & kept["3"].repeat_interleave(9)[None],
        "6.bias": kept["6"],
        "8.weight": kept["6"][None].expand(3, 5),
    }


SHARES = {
    "uniform": (Uniform(), {"0": 2 / 4, "3": 3 / 6, "6": 2 / 5}),
    "by hand": (Densities({"3": 0.9}), {"0": 2 / 4, "3": 5 / 6, "6": 2 / 5}),
}


def penalty_of(codes: dict[str, Tensor], allocation: str) -> Tensor:
    """Σ (‖v‖₁ / C - r)²; all codes are one vector where families compete, of which 8 of 15 are to stay."""
    if allocation == "global":
        return (torch.cat(list(codes.values())).norm(1) / 15 - 8 / 15) ** 2  # 7.5, rounded half to even
    shares = SHARES[allocation][1]
    return torch.stack([(v.norm(1) / len(v) - shares[name]) ** 2 for name, v in codes.items()]).sum()


@pytest.mark.parametrize("allocation", [*SHARES, "global"])
def test_it_is_its_loss_in_autograd(allocation: str) -> None:
    """L + 10 Σ (‖v‖₁ / C - r)², of the weights of network and coding layers, by SGD with momentum and decay."""
    lr, end, final = 0.02, 18, 14
    model = network()
    optimizer = SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=1e-3)
    chosen = Global() if allocation == "global" else SHARES[allocation][0]
    regime = regime_of(model, optimizer, allocation=chosen, end=end / STEPS, final=4 / end, rate=0.5, alpha=(0.5, 5.0))
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    coding = {name: (c.weight.detach().clone(), c.bias.detach().clone()) for name, c in regime.codings.items()}
    assert list(coding) == ["0", "3", "6"]
    assert [tuple(weight.shape) for weight, _ in coding.values()] == [(4, 4 * 4), (6, 6), (5, 5)]
    momentum: dict[str, Tensor] = {}
    alpha = dict.fromkeys(coding, 0.5)
    hurried = 0
    for step in range(end):
        rate = lr * (0.5 if step >= 10 else 1.0)  # coding layers follow the schedule of the network
        optimizer.param_groups[0]["lr"] = rate
        leaves = {name: w.clone().requires_grad_(True) for name, w in weights.items()}
        parts = {name: tuple(t.clone().requires_grad_(True) for t in pair) for name, pair in coding.items()}
        loss, codes = coded_loss(leaves, parts, alpha, step)  # type: ignore[arg-type]
        penalty = penalty_of(codes, allocation)
        flat = leaves | {f"{name} {i}": part for name, pair in parts.items() for i, part in enumerate(pair)}
        slopes = dict(zip(flat, torch.autograd.grad(loss + 10 * penalty, list(flat.values())), strict=True))
        for name, leaf in flat.items():
            slope = slopes[name] + 1e-3 * leaf.detach()
            momentum[name] = 0.9 * momentum[name] + slope if name in momentum else slope
            slopes[name] = leaf.detach() - rate * (1.0 if name in weights else 0.5) * momentum[name]
        weights = {name: slopes[name] for name in weights}
        coding = {name: (slopes[f"{name} 0"], slopes[f"{name} 1"]) for name in coding}
        for name, code in codes.items():
            fast = step >= final and float(((code < 0.1) | (code > 0.9)).double().mean()) < 0.9
            hurried += fast
            alpha[name] += 4.5 / 17 * (10 if fast else 1)
        run(regime, step, step + 1)
        for name, code in codes.items():
            torch.testing.assert_close(regime.codes[name], code.detach(), rtol=1e-7, atol=1e-9)
            torch.testing.assert_close(regime.codings[name].weight.detach(), coding[name][0], rtol=1e-7, atol=1e-9)
            torch.testing.assert_close(regime.codings[name].bias.detach(), coding[name][1], rtol=1e-7, atol=1e-9)
            assert regime.codings[name].alpha == pytest.approx(alpha[name])
        if step < end - 1:
            for name, parameter in model.named_parameters():
                torch.testing.assert_close(parameter.detach(), weights[name], rtol=1e-7, atol=1e-9)
    assert hurried > 0  # or the test could not tell
    kept = {name: code > 0.5 for name, code in codes.items()}
    assert any(not bool(mask.all()) for mask in kept.values())
    assert all(bool(mask.any()) for mask in kept.values())
    expected = masks_of(kept)
    assert regime.masks == Masks(expected)
    for name, parameter in model.named_parameters():
        wanted = weights[name] * expected.get(name, torch.ones(()))
        torch.testing.assert_close(parameter.detach(), wanted, rtol=1e-7, atol=1e-9)
    held = regime.masks
    run(regime, end, STEPS)
    assert regime.finish() == held
    assert held.agree(model)


def test_alpha_goes_along_a_line() -> None:
    model, seen = network(), []
    regime = regime_of(model, SGD(model.parameters(), lr=0.0), end=1.0, final=0.0)
    for step in range(STEPS):
        seen.append({coding.alpha for coding in regime.codings.values()})
        run(regime, step, step + 1)
    assert all(len(values) == 1 for values in seen)
    found = [values.pop() for values in seen]
    assert found == pytest.approx(torch.linspace(0.1, 100, STEPS, dtype=torch.float64).tolist())


def test_undecided_families_grow_ten_times_as_fast_in_the_last_part() -> None:
    """At α of less than 1 nothing is decided, whatever x is, in no more than five sevenths of its range."""
    model = network()
    regime = regime_of(model, SGD(model.parameters(), lr=0.0), end=1.0, final=0.25, alpha=(1e-3, 2e-3))
    stride = 1e-3 / (STEPS - 1)
    run(regime)
    for coding in regime.codings.values():
        assert coding.alpha == pytest.approx(1e-3 + stride * (18 + 6 * 10))


def trained_resnet(**options: Any) -> tuple[nn.Module, AutoPruner, Any]:
    torch.manual_seed(0)
    model = models.resnet20((1, 8, 8), 3, width=0.25).double()
    structure = trace(model, batch(0)[0])
    optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9)
    return model, regime_of(model, optimizer, granularity=Channels(structure), **options), structure


def test_a_residual_network_is_pruned_by_shared_codes_and_removed() -> None:
    model, regime, structure = trained_resnet()
    assert set(regime.codings) == {family.name for family in structure.families}
    run(regime)
    masks = regime.finish()
    removed = 0
    for family in structure.families:
        kept = (regime.codes[family.name] > 0.5).numpy()
        removed += int((~kept).sum())
        for name, dim in family.members:
            if name not in masks:
                continue  # buffers
            units = structure.axes[name][dim]
            assert units is not None
            own = (units >= family.first) & (units < family.units.stop)
            others = tuple(d for d in range(masks[name].dim()) if d != dim)
            alive = masks[name].any(others) if others else masks[name]
            assert torch.equal(alive[torch.from_numpy(own)], torch.from_numpy(kept[units[own] - family.first]))
    assert removed > 5
    small = remove(model, masks, structure)
    assert verify(model, masks, small, batch(0)[0]) <= 1e-5
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())


def test_between_steps_the_network_is_the_one_that_would_be_left() -> None:
    """In eval mode an output depends on its example alone; before the first step nothing is multiplied."""
    model = network()
    inputs = batch(99)[0]
    model.eval()
    plain = model(inputs).detach()
    regime = regime_of(model, Adam(model.parameters(), lr=0.02), end=1.0)
    assert torch.equal(model(inputs), plain)
    model.train()
    run(regime, last=20)
    model.eval()
    with torch.no_grad():
        whole = model(inputs)
        parts = torch.cat([model(inputs[i : i + 1]) for i in range(len(inputs))])
        model.train()
        trained = model(inputs)  # without gradients nothing learns either
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-14)
    assert torch.equal(trained, whole)
    twin = copy.deepcopy(model).eval()
    assert not torch.equal(twin(inputs), whole)  # a copy has no codes
    masks = regime.finish()
    masks.apply_(twin)
    torch.testing.assert_close(twin(inputs).detach(), whole, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(model.eval()(inputs).detach(), whole, rtol=1e-12, atol=1e-14)
    assert masks.density < 1.0


def test_nothing_of_it_stays_in_the_model() -> None:
    model = network()
    names, hooks = list(model.state_dict()), [len(module._forward_pre_hooks) for module in model.modules()]
    regime = regime_of(model, Adam(model.parameters(), lr=0.02))
    assert list(model.state_dict()) == names
    assert len(list(model.parameters())) == 8
    run(regime, last=3)
    regime.finish()
    assert list(model.state_dict()) == names
    assert [len(module._forward_pre_hooks) for module in model.modules()] == hooks
    assert not model._forward_hooks
    assert not any(p._backward_hooks or p._post_accumulate_grad_hooks for p in model.parameters())


def test_graphs_of_steps_gone_by_are_freed() -> None:
    model = network()
    regime = regime_of(model, SGD(model.parameters(), lr=0.01), end=1.0)
    counts = []

    def count(step: int) -> None:
        counts.append(sum(type(thing) is Tensor for thing in gc.get_objects()))

    gc.collect()
    gc.disable()
    try:
        run(regime, last=STEPS - 1, watch=count)
    finally:
        gc.enable()
    assert counts[-1] <= counts[4]


@pytest.mark.parametrize("minimum", [1, 3])
def test_the_largest_codes_stay_where_none_is_above_a_half(minimum: int, caplog: pytest.LogCaptureFixture) -> None:
    model = network()
    granularity = Channels(trace(model, batch(0)[0]), minimum=minimum)
    regime = regime_of(model, SGD(model.parameters(), lr=0.0), granularity=granularity, density=0.7, end=1.0)
    run(regime, last=1)
    draws = torch.Generator().manual_seed(0)
    regime.codes = {n: 0.5 * torch.rand(len(c), generator=draws, dtype=c.dtype) for n, c in regime.codes.items()}
    regime.codes["3"] = torch.ones(6).double()
    with caplog.at_level(logging.INFO, "pruning"):
        masks = regime.finish()
    for name in ("0", "6"):
        best = regime.codes[name].argsort(descending=True)[:minimum]
        assert set(torch.nonzero(masks[f"{name}.bias"]).flatten().tolist()) == set(best.tolist())
        assert f"{name}: 0 codes are above 1/2" in caplog.text
    assert bool(masks["3.bias"].all())
    assert "3: " not in caplog.text.replace("0.3: ", "")
    asked = round(0.7 * 4) + round(0.7 * 6) + round(0.7 * 5)
    assert f"{6 + 2 * minimum} of 15 units stay, {asked} were asked for" in caplog.text


def test_codes_are_drawn_to_the_density() -> None:
    """A penalty alone, as in a network whose last layer is zero, takes ‖v‖₁ / C to r."""
    for share in (0.2, 0.8):
        model = network()
        nn.init.zeros_(model[8].weight)
        optimizer = Adam([p for p in model.parameters() if p is not model[8].weight], lr=0.01)
        model[8].weight.requires_grad_(False)
        evidence = Evidence(model, prunable(model))
        granularity = Channels(trace(model, batch(0)[0]))
        steps = 300
        regime = AutoPruner(evidence, optimizer, steps=steps, density=share, granularity=granularity, end=1.0)
        run(regime, last=steps)
        for name, size in (("0", 4), ("3", 6), ("6", 5)):
            mean = float(regime.codes[name].mean())
            assert mean == pytest.approx(round(share * size) / size, abs=0.1), (share, name)


def test_what_is_dead_at_first_stays_dead() -> None:
    model = network()
    structure = trace(model, batch(0)[0])
    masks = Masks.dense(prunable(model))
    dead = dict(masks)
    dead["0.weight"] = dead["0.weight"].clone()
    dead["3.weight"] = dead["3.weight"].clone()
    dead["0.weight"][2], dead["3.weight"][:, 2] = False, False
    Masks(dead).apply_(model)
    optimizer = Adam(model.parameters(), lr=0.02)
    regime = regime_of(model, optimizer, masks=Masks(dead), granularity=Channels(structure))
    run(regime)
    assert float(regime.codes["0"][2]) == 0.0
    found = regime.finish()
    assert not bool(found["0.weight"][2].any())
    assert not bool(found["0.bias"][2])
    assert bool(found["0.weight"].any())


def test_no_more_is_asked_for_than_lives() -> None:
    """As in a second round, whose first left less than it was to; masks of channels reach into biases."""
    model = network()
    granularity = channels(model)
    kept = {name: torch.zeros(size, dtype=torch.bool) for name, size in (("0", 4), ("3", 6), ("6", 5))}
    for mask in kept.values():
        mask[:2] = True
    masks = Masks(masks_of(kept))
    masks.apply_(model)
    regime = regime_of(model, Adam(model.parameters(), lr=0.02), masks=masks, granularity=granularity, density=0.9)
    run(regime)
    found = regime.finish()
    assert all(not bool((mask & ~masks[name]).any()) for name, mask in found.items())
    assert all(int(found[f"{name}.bias"].sum()) in (1, 2) for name in kept)


def test_families_left_out_have_no_code() -> None:
    model = network()
    granularity = Channels(trace(model, batch(0)[0]), exclude="3")
    regime = regime_of(model, Adam(model.parameters(), lr=0.02), granularity=granularity, density=0.2)
    run(regime)
    masks = regime.finish()
    assert set(regime.codings) == {"0", "6"}
    assert "3.bias" not in masks or bool(masks["3.bias"].all())
    assert masks.density < 1


def test_autocast_leaves_codes_in_single_precision() -> None:
    model = network().float()
    optimizer = AdamW(model.parameters(), lr=0.01, fused=True)
    regime = regime_of(model, optimizer, granularity=Channels(trace(model, batch(0)[0].float())), end=1.0)
    for step in range(STEPS):
        inputs, targets = batch(step)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(inputs.float()), targets)
        loss.backward()
        regime.before_step()
        optimizer.step()
        regime.after_step()
        assert all(code.dtype == torch.float32 for code in regime.codes.values())
    assert regime.finish().density < 1


def test_a_loss_in_parts_has_one_penalty() -> None:
    found = []
    for parts in (False, True):
        model = network()
        regime = regime_of(model, SGD(model.parameters(), lr=0.1))
        for step in range(5):
            regime.optimizer.zero_grad()
            inputs, targets = batch(step)
            outputs = model(inputs)
            each = F.cross_entropy(outputs, targets, reduction="none") / len(targets)
            if parts:
                each[:4].sum().backward(retain_graph=True)
                each[4:].sum().backward()
            else:
                each.sum().backward()
            regime.before_step()
            regime.optimizer.step()
            regime.after_step()
        found.append(regime.codes)
    for name, code in found[0].items():
        torch.testing.assert_close(found[1][name], code, rtol=1e-9, atol=1e-12)


def test_a_token_sequence_of_any_length_has_a_code() -> None:
    """All positions of what a Linear reads are examples of the mean."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 4)).double()
    structure = trace(model, torch.randn(2, 5, 3).double())
    optimizer = Adam(model.parameters(), lr=0.02)
    evidence = Evidence(model, prunable(model))
    regime = AutoPruner(evidence, optimizer, steps=30, density=0.5, granularity=Channels(structure), end=1.0)
    for step in range(30):
        optimizer.zero_grad()
        inputs = torch.randn(4, 3 + step % 5, 3, generator=torch.Generator().manual_seed(step)).double()
        before = regime.codings["0"]
        mean = torch.relu(inputs.reshape(-1, 3) @ model[0].weight.T + model[0].bias).mean(0)
        want = torch.sigmoid(before.alpha * (before.weight @ mean + before.bias)).detach()
        (model(inputs) - inputs.sum(2, keepdim=True)).square().mean().backward()
        regime.before_step()
        torch.testing.assert_close(regime.codes["0"], want)
        optimizer.step()
        regime.after_step()
    masks = regime.finish()
    assert masks.density < 1
    assert remove(model, masks, structure)[0].out_features == int(masks["0.bias"].sum())


@pytest.mark.parametrize("moment", [0, 5, 17, 18, 22])
@pytest.mark.parametrize("kind", [Adam, SGD])
def test_going_on_from_a_state_ends_in_the_same_bits(moment: int, kind: Any) -> None:
    options = {"lr": 0.02} | ({"momentum": 0.9} if kind is SGD else {})

    def begin(seed: int) -> tuple[nn.Module, Optimizer, AutoPruner]:
        model = network(seed)
        optimizer = kind(model.parameters(), **options)
        return model, optimizer, regime_of(model, optimizer, seed=seed, final=0.5)

    model, optimizer, regime = begin(0)
    kept: list[Any] = [copy.deepcopy((model.state_dict(), optimizer.state_dict(), regime.state_dict()))]
    run(
        regime,
        watch=lambda _: kept.append(copy.deepcopy((model.state_dict(), optimizer.state_dict(), regime.state_dict()))),
    )
    masks = regime.finish()
    assert masks.density < 1
    again, other, resumed = begin(5)
    weights, state, regime_state = kept[moment]
    resumed.load_state_dict(regime_state)
    again.load_state_dict(weights)
    other.load_state_dict(state)
    inputs = batch(99)[0]
    run(resumed, first=moment)
    assert resumed.finish() == masks
    for name, code in regime.codes.items():
        assert torch.equal(resumed.codes[name], code)
    for one, two in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two)
    assert torch.equal(model.eval()(inputs), again.eval()(inputs))


def test_the_seed_decides() -> None:
    found = []
    for seed in (1, 1, 2):
        model = network()
        regime = regime_of(model, Adam(model.parameters(), lr=0.02), seed=seed)
        torch.manual_seed(len(found))
        run(regime)
        found.append(regime)
    assert all(torch.equal(found[0].codes[name], found[1].codes[name]) for name in found[0].codes)
    assert not all(torch.equal(found[0].codes[name], found[2].codes[name]) for name in found[0].codes)


def with_options(**options: Any) -> Callable[[nn.Module], Any]:
    return lambda model: regime_of(model, SGD(model.parameters(), lr=0.1), **options)


def channels(model: nn.Module, **options: Any) -> Channels:
    return Channels(trace(model, batch(0)[0]), **options)


def twice_as_wide(**options: Any) -> AutoPruner:
    """Two hidden layers of one width."""
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = SGD(model.parameters(), lr=0.1)
    granularity = Channels(trace(model, torch.randn(2, 8)), **options)
    return AutoPruner(Evidence(model, prunable(model)), optimizer, steps=9, density=0.5, granularity=granularity)


def wrapped(wrap: Callable[[nn.Module], nn.Module]) -> Callable[[nn.Module], Any]:
    def make(model: nn.Module) -> Any:
        granularity = channels(model)
        return regime_of(wrap(model), SGD(model.parameters(), lr=0.1), granularity=granularity)

    return make


def in_parts(model: nn.Module) -> nn.Module:
    model[3] = torch.compile(model[3])
    return model


REFUSED: dict[str, tuple[Callable[[nn.Module], Any], type[PruningError], str]] = {
    "rows": (with_options(granularity=Vectors(0)), GranularityError, "not of Vectors: give Channels"),
    "weights": (
        lambda m: AutoPruner(Evidence(m, prunable(m)), SGD(m.parameters(), lr=0.1), steps=9, density=0.5),
        GranularityError,
        "not of single weights: give Channels",
    ),
    "multiples": (
        lambda m: with_options(granularity=channels(m, multiple_of=2))(m),
        GranularityError,
        "leave out multiple_of and equal",
    ),
    "equal": (
        lambda m: twice_as_wide(equal=True),
        GranularityError,
        "leave out multiple_of and equal",
    ),
    "budget": (
        lambda m: with_options(allocation=Budget(trace(m, batch(0)[0]), "macs"))(m),
        AllocationError,
        "Budget|_Fitting|chooses by scores",
    ),
    "no density": (with_options(density=None), AllocationError, "density is missing"),
    "density": (with_options(density=1.5), AllocationError, "no density"),
    "minimum": (
        lambda m: with_options(granularity=channels(m, minimum=4), density=0.2, allocation=Global())(m),
        AllocationError,
        "lower minimum",
    ),
    "end": (with_options(end=0.0), ScheduleError, "at least one step"),
    "steps": (with_options(steps=0), ScheduleError, "steps=0"),
    "final": (with_options(final=1.5), ScheduleError, "final=1.5"),
    "alpha": (with_options(alpha=(2.0, 1.0)), ScheduleError, "alpha"),
    "one alpha": (with_options(alpha=5.0), ScheduleError, "two values"),
    "three alphas": (with_options(alpha=[1, 2, 3]), ScheduleError, "two values"),
    "penalty": (with_options(penalty=-1.0), ScheduleError, "penalty"),
    "rate": (with_options(rate=0.0), ScheduleError, "rate"),
    "optimizer": (lambda m: regime_of(m, LBFGS(m.parameters())), ScheduleError, "LBFGS: take an element-wise"),
    "compiled": (wrapped(torch.compile), ScheduleError, "torch.compile"),
    "compiled in parts": (wrapped(in_parts), ScheduleError, "torch.compile"),
    "replicated": (wrapped(nn.DataParallel), ScheduleError, "DataParallel"),
    "averaged": (wrapped(AveragedModel), ScheduleError, "AveragedModel"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_before_a_step(name: str) -> None:
    make, kind, said = REFUSED[name]
    model = network()
    with pytest.raises(kind, match=said) as found:
        make(model)
    assert "\n" not in str(found.value)
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())


def test_compiled_in_place_is_refused() -> None:
    model = network()
    model.compile()
    with pytest.raises(ScheduleError, match=r"torch\.compile"):
        with_options()(model)


def test_several_processes_are_refused(tmp_path: Path) -> None:
    model = network()
    granularity = channels(model)
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "group"), 1), rank=0, world_size=1)
    try:
        with pytest.raises(ScheduleError, match="DistributedDataParallel"):
            regime_of(DistributedDataParallel(model), SGD(model.parameters(), lr=0.1), granularity=granularity)
    finally:
        dist.destroy_process_group()


class Checkpointed(nn.Module):
    def __init__(self, inner: nn.Sequential, reentrant: bool) -> None:
        super().__init__()
        self.inner, self.reentrant = inner, reentrant

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return self.inner(x)
        return checkpoint(self.inner, x.requires_grad_(), use_reentrant=self.reentrant)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpoints_are_refused(reentrant: bool) -> None:
    model = Checkpointed(network(), reentrant)
    with_options()(model)
    with pytest.raises(ScheduleError, match="gradient checkpointing"):
        loss_of(model, batch(0)).backward()


def test_what_a_training_does_otherwise_is_refused_by_name() -> None:
    model = network()
    regime = regime_of(model, SGD(model.parameters(), lr=0.1))
    with pytest.raises(GranularityError, match="crop, pad or resize"):
        model(torch.randn(4, 1, 10, 10).double())
    model.eval()
    loss_of(model, batch(0)).backward()
    with pytest.raises(ScheduleError, match="training mode"):
        regime.before_step()
    model.train()
    loss_of(model, batch(0)).backward()
    with pytest.raises(ScheduleError, match="accumulate"):
        model(batch(1)[0])


class Twofold(nn.Module):
    """Two heads, of which a loss may leave one out, and a forward pass may skip one."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 3)).double()
        self.two = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 3)).double()
        self.skips = False

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        one = self.one(x)
        return (one, one) if self.skips else (one, self.two(x))


def test_families_that_the_loss_or_the_pass_leaves_out_are_named() -> None:
    model = Twofold()
    regime = regime_of(model, SGD(model.parameters(), lr=0.1))
    model(batch(0)[0])[0].sum().backward()
    with pytest.raises(ScheduleError, match=r"two\.1: the loss of this step does not depend"):
        regime.before_step()
    regime.finish()
    regime = regime_of(model, SGD(model.parameters(), lr=0.1))
    model.skips = True
    with pytest.raises(ScheduleError, match=r"two\.1: two\.3, of whose inputs .* did not run"):
        model(batch(0)[0])


def test_codes_that_are_no_numbers_are_named() -> None:
    model = network()
    regime = regime_of(model, SGD(model.parameters(), lr=0.1))
    inputs, _ = batch(0)
    model(inputs * math.nan).sum().backward()
    regime.before_step()
    regime.after_step()
    with pytest.raises(ScoreError, match="auto_pruner: 0: its codes are no numbers"):
        regime.finish()
