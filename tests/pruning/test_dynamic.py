"""Masks that change while training, against the papers' loops written out with dense weights and autograd."""

import copy
import math
from collections.abc import Callable, Iterator
from functools import partial
from hashlib import sha256
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop, Rprop

from pruning import Evidence, Masks, prunable, prune, scorers
from pruning.allocation import ERK, Uniform
from pruning.dynamic import SET, AutoPruner, FixedMasks, Gradual, Movement, Regime, RigL, SoftMask
from pruning.errors import MaskError, ScheduleError, ScoreError
from pruning.granularity import Blocks, Vectors, Weights
from pruning.schedules import during_training
from pruning.structure import Channels, remove, trace

STEPS = 40


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(10, 12), nn.Tanh(), nn.Linear(12, 4)).double()


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(50 + step)
    inputs = torch.randn(16, 10, generator=generator, dtype=torch.float64)
    return inputs, (inputs[:, :4] + 0.3 * inputs[:, 4:8]).argmax(1)


def loss_of(model: nn.Module, data: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(data[0]), data[1])


def evidence_of(model: nn.Module, density: float | None = 0.3, **options: Any) -> Evidence:
    """With random masks of `density`, or none."""
    parameters = prunable(model)
    seen = Evidence(model, parameters, [batch(1000)], loss_of)
    masks = None if density is None else prune(scorers.random(seen, seed=3), density, allocation=ERK())
    return Evidence(model, parameters, [batch(1000)], loss_of, masks=masks, **options)


def run(regime: Regime, first: int = 0, last: int = STEPS, watch: Callable[[int], None] | None = None) -> None:
    for step in range(first, last):
        regime.optimizer.zero_grad()
        loss_of(regime.model, batch(step)).backward()
        regime.before_step()
        regime.optimizer.step()
        regime.after_step()
        if watch is not None:
            watch(step + 1)


def channels(model: nn.Module) -> Channels:
    return Channels(trace(model, batch(0)[0]), pooling="sum", normalise=None)


REGIMES: dict[str, Callable[[nn.Module, Optimizer], Regime]] = {
    "held": lambda m, o: FixedMasks(m, o, Masks(evidence_of(m).masks)),
    "set": lambda m, o: SET(evidence_of(m), o, steps=STEPS, every=6, seed=1),
    "rigl": lambda m, o: RigL(evidence_of(m), o, steps=STEPS, every=6),
    "gradual": lambda m, o: Gradual(
        evidence_of(m, None), o, steps=STEPS, density=0.2, scorer=scorers.magnitude, every=5, regrow=True
    ),
    "gradual, taylor, only losing": lambda m, o: Gradual(
        evidence_of(m, None), o, steps=STEPS, density=0.2, scorer=scorers.taylor, every=5
    ),
    "movement": lambda m, o: Movement(evidence_of(m, None), o, steps=STEPS, density=0.2),
    "movement, blocks": lambda m, o: Movement(
        evidence_of(m, None), o, steps=STEPS, density=0.25, granularity=Blocks((2, 2)), every=3
    ),
    "gradual, channels": lambda m, o: Gradual(
        evidence_of(m, None),
        o,
        steps=STEPS,
        density=0.5,
        scorer=scorers.magnitude,
        every=5,
        regrow=True,
        granularity=channels(m),
    ),
    "gradual, channels, only losing": lambda m, o: Gradual(
        evidence_of(m, None), o, steps=STEPS, density=0.5, scorer=scorers.taylor, every=5, granularity=channels(m)
    ),
    "movement, channels": lambda m, o: Movement(
        evidence_of(m, None), o, steps=STEPS, density=0.5, granularity=channels(m)
    ),
    "soft movement": lambda m, o: Movement(
        evidence_of(m, None), o, steps=STEPS, threshold=0.5, penalty=0.01, begin=0.2
    ),
    "soft mask": lambda m, o: SoftMask(evidence_of(m, None), o, steps=STEPS, density=0.5, penalty=0.2),
    "soft mask, weights": lambda m, o: SoftMask(
        evidence_of(m, None), o, steps=STEPS, granularity=Weights(), penalty=3.0, rate=0.2, end=1.0
    ),
    "auto pruner": lambda m, o: AutoPruner(
        evidence_of(m, None), o, steps=STEPS, density=0.5, granularity=channels(m), seed=2
    ),
}
OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "momentum": partial(SGD, lr=0.1, momentum=0.9, weight_decay=1e-2),
    "adam": partial(Adam, lr=0.02),
    "adamw": partial(AdamW, lr=0.02, weight_decay=0.1, fused=True),
    "rprop": partial(Rprop, lr=0.01),
    "adagrad": partial(Adagrad, lr=0.05, initial_accumulator_value=0.1),
    "rmsprop": partial(RMSprop, lr=0.01, momentum=0.5),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", REGIMES)
def test_removed_weights_do_not_exist_at_any_moment(name: str, optimizer: str) -> None:
    """Between two steps they are zero, with zero gradient and, but for initial values, zero state."""
    model = network()
    regime = REGIMES[name](model, OPTIMIZERS[optimizer](model.parameters()))

    def watch(step: int) -> None:
        for key, parameter in regime.parameters.items():
            removed = ~regime.masks[key]
            assert not bool(parameter.detach()[removed].any()), (step, key)
            assert parameter.grad is None or not bool(parameter.grad[removed].any())
            for entry, value in regime.optimizer.state[parameter].items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    begins = {"step_size": {0.01, 1e-6}, "sum": {0.1}}.get(entry, set())  # 1e-6: Rprop's least
                    assert set(value[removed].tolist()) <= {0.0, *begins}, entry

    run(regime, watch=watch)
    masks = regime.finish()
    assert masks.agree(model)
    assert masks.density < 1.0
    assert all(not hooks for p in model.parameters() for hooks in [p._backward_hooks, p._post_accumulate_grad_hooks])


@pytest.mark.parametrize("name", [name for name in REGIMES if "channels" in name])
def test_channels_go_as_a_whole_with_their_biases_and_can_be_removed(name: str) -> None:
    model = network()
    structure = trace(model, batch(0)[0])
    regime = REGIMES[name](model, SGD(model.parameters(), lr=0.1, momentum=0.9))
    run(regime)
    masks = regime.finish()
    kept = masks["0.bias"]
    assert int(kept.sum()) == 6
    assert torch.equal(masks["0.weight"], kept[:, None].expand(12, 10))
    assert torch.equal(masks["2.weight"], kept[None].expand(4, 12))
    assert remove(model, masks, structure)[0].out_features == 6


@pytest.mark.parametrize("name", REGIMES)
def test_going_on_from_a_state_ends_in_the_same_bits(name: str) -> None:
    model, optimizer = network(), None
    optimizer = Adam(model.parameters(), lr=0.02)
    whole = REGIMES[name](model, optimizer)
    kept: dict[int, Any] = {}

    def keep(step: int) -> None:
        if step in (1, 17, 18, 30):
            kept[step] = copy.deepcopy((model.state_dict(), optimizer.state_dict(), whole.state_dict()))

    run(whole, watch=keep)
    masks = whole.finish()
    for step, (weights, state, regime_state) in kept.items():
        again = network(seed=5)
        other = Adam(again.parameters(), lr=0.02)
        resumed = REGIMES[name](again, other)
        resumed.load_state_dict(regime_state)
        again.load_state_dict(weights)
        other.load_state_dict(state)
        run(resumed, first=step)
        assert resumed.finish() == masks, step
        for a, b in zip(model.parameters(), again.parameters(), strict=True):
            assert torch.equal(a, b), step


def gradients(model: nn.Module, weights: dict[str, Tensor], step: int) -> dict[str, Tensor]:
    """∂L/∂w at `weights`, of all parameters, with nothing of the library in it."""
    leaves = {name: value.detach().clone().requires_grad_(True) for name, value in weights.items()}
    inputs, targets = batch(step)
    loss = nn.functional.cross_entropy(functional_call(model, leaves, (inputs,)), targets)
    return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


def largest(values: Tensor, count: int, among: Tensor) -> Tensor:
    """By sorting: the `count` largest among `among`; of equal ones the earlier."""
    flat, allowed = values.reshape(-1), among.reshape(-1)
    order = sorted((i for i in range(flat.numel()) if allowed[i]), key=lambda i: (-float(flat[i]), i))
    mask = torch.zeros(flat.numel(), dtype=torch.bool)
    mask[order[:count]] = True
    return mask.view(values.shape)


def test_rigl_is_its_algorithm_written_out() -> None:
    """Algorithm 1 of the paper with plain descent: an exchange takes the place of a step."""
    every, alpha, end, rate = 4, 0.5, 30, 0.3
    model = network()
    evidence = evidence_of(model)
    twin = copy.deepcopy(model)
    masks = {name: mask.clone() for name, mask in evidence.masks.items()}
    regime = RigL(evidence, SGD(model.parameters(), lr=rate), steps=STEPS, every=every, fraction=alpha, end=end / STEPS)
    weights = {name: p.detach() * masks.get(name, 1) for name, p in twin.named_parameters()}
    exchanged = 0
    for step in range(STEPS):
        found = gradients(twin, weights, step)
        if 0 < step < end and step % every == 0:
            for name, mask in masks.items():
                count = int(alpha / 2 * (1 + math.cos(math.pi * step / end)) * int(mask.sum()))
                kept = largest(weights[name].abs(), int(mask.sum()) - count, mask)
                grown = largest(found[name].abs(), count, ~kept)
                exchanged += int((grown & ~mask).sum())
                weights[name] = torch.where(kept | (grown & mask), weights[name], 0.0)
                masks[name] = kept | grown
        else:
            weights = {name: w - rate * found[name] * masks.get(name, 1) for name, w in weights.items()}
        run(regime, step, step + 1)
        for name, mask in masks.items():
            assert torch.equal(regime.masks[name], mask), (step, name)
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.detach(), weights[name], rtol=1e-10, atol=1e-12)
    assert exchanged > 20


@pytest.mark.parametrize("kind", [SET, RigL])
@pytest.mark.parametrize("allocation", [ERK(), Uniform()])
def test_every_layer_keeps_its_number_of_live_weights(kind: Any, allocation: Any) -> None:
    model = network()
    plain = Evidence(model, prunable(model))
    masks = prune(scorers.random(plain), 0.3, allocation=allocation)
    before = {line.name: line.kept for line in masks.table()}
    evidence = Evidence(model, prunable(model), masks=masks)
    regime = kind(evidence, Adam(model.parameters(), lr=0.01), steps=STEPS, every=3, end=0.6)
    seen = [regime.masks]

    def watch(step: int) -> None:
        assert {line.name: line.kept for line in regime.masks.table()} == before
        changed = regime.masks != seen[-1]
        due = step if kind is SET else step - 1  # RigL's takes the place of the step after
        assert not changed or (due % 3 == 0 and 0 < due < 24)
        seen.append(regime.masks)

    run(regime, watch=watch)
    assert sum(a != b for a, b in pairwise(seen)) >= 5  # the last exchanges are of less than one weight


def test_set_drops_the_smallest_and_grows_uniformly() -> None:
    grown = torch.zeros(12, 10)
    for seed in range(400):
        model = network()
        regime = SET(evidence_of(model), SGD(model.parameters(), lr=0.0), steps=10, every=1, end=1.0, seed=seed)
        before = regime.masks["0.weight"]
        weights = model[0].weight.detach().clone().abs()
        run(regime, last=1)
        after = regime.masks["0.weight"]
        count = int(0.15 * (1 + math.cos(math.pi / 10)) * int(before.sum()))
        kept = largest(weights, int(before.sum()) - count, before)
        assert bool(after[kept].all())
        assert not bool(model[0].weight.detach()[after & ~before].any())
        grown += (after & ~kept).float()
    candidates = grown[~kept]
    assert not bool(grown[kept].any())
    share = count / int((~kept).sum())
    spread = (400 * share * (1 - share)) ** 0.5
    assert float((candidates - 400 * share).abs().max()) < 4.5 * spread


def test_dense_gradients_are_read_at_the_exchanges_alone() -> None:
    model = network()
    regime = RigL(evidence_of(model), SGD(model.parameters(), lr=0.1), steps=STEPS, every=5, end=0.5)
    reading = []
    for step in range(STEPS):
        reading.append(bool(model[0].weight._backward_hooks))
        run(regime, step, step + 1)
    assert [step for step, read in enumerate(reading) if read] == [5, 10, 15]


def test_accumulated_and_clipped_gradients_grow_the_same_weights() -> None:
    """The gradient of all positions is the sum over the parts of a batch, before it is clipped."""
    whole, cut = network(), network()
    one = RigL(evidence_of(whole), SGD(whole.parameters(), lr=0.1), steps=STEPS, every=4)
    two = RigL(evidence_of(cut), SGD(cut.parameters(), lr=0.1), steps=STEPS, every=4)
    for step in range(20):
        run(one, step, step + 1)
        two.optimizer.zero_grad()
        inputs, targets = batch(step)
        for part in range(4):
            chosen = slice(4 * part, 4 * part + 4)
            (loss_of(cut, (inputs[chosen], targets[chosen])) / 4).backward()
        if step % 4 == 0:
            nn.utils.clip_grad_norm_(cut.parameters(), 1e-3)  # nothing that an exchange should see
        two.before_step()
        if step % 4 == 0 and step:
            assert all(p.grad is None for p in cut.parameters())
        if step == 0:  # no exchange: make up for the clipping
            two.optimizer.zero_grad()
            loss_of(cut, (inputs, targets)).backward()
        two.optimizer.step()
        two.after_step()
        assert one.masks == two.masks


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_returns_has_no_past(name: str) -> None:
    """After it returned, a weight's state is what a fresh optimizer has: its next step says so."""
    model, fresh = network(), network()
    masks = Masks(evidence_of(model).masks)
    optimizer = OPTIMIZERS[name](model.parameters())
    regime = FixedMasks(model, optimizer, masks)
    run(regime, last=5)
    everything = Masks.dense(prunable(model))
    regime.replace(everything)
    returned = {key: ~masks[key] for key in masks}
    for key, parameter in regime.parameters.items():
        assert not bool(parameter.detach()[returned[key]].any())
    beginner = OPTIMIZERS[name](fresh.parameters())
    fresh.load_state_dict(model.state_dict())
    beginner.zero_grad()
    loss_of(fresh, batch(5)).backward()
    beginner.step()
    for (key, parameter), other in zip(prunable(model).items(), prunable(fresh).values(), strict=True):
        mine, new = optimizer.state[parameter], beginner.state[other]
        for entry, value in mine.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and entry == "step_size":
                assert bool((value[returned[key]] == 0.01).all())
            elif isinstance(value, Tensor) and value.shape == parameter.shape and entry == "sum":
                assert bool((value[returned[key]] == 0.1).all())
            elif isinstance(value, Tensor) and value.shape == parameter.shape:
                assert entry in new
                assert not bool(value[returned[key]].any())
    if name == "rprop":
        regime.optimizer.zero_grad()
        run(regime, 5, 6)
        for key, parameter in regime.parameters.items():
            reached = returned[key] & (parameter.grad != 0)  # a unit whose outputs are all 0 gets no gradient yet
            moved = parameter.detach()[reached].abs()
            torch.testing.assert_close(moved, torch.full_like(moved, 0.01))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_was_trained_and_dropped_returns_without_its_past(name: str) -> None:
    """Its state is that with which a fresh optimizer begins, whatever it was before it was dropped."""
    model = network()
    masks = Masks(evidence_of(model).masks)
    optimizer = OPTIMIZERS[name](model.parameters())
    regime = FixedMasks(model, optimizer, Masks.dense(prunable(model)))
    run(regime, last=4)
    regime.replace(masks)
    run(regime, 4, 6)
    regime.replace(Masks.dense(prunable(model)))
    found = 0
    for key, parameter in regime.parameters.items():
        for entry, value in optimizer.state[parameter].items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                begins = {"step_size": 0.01, "sum": 0.1}.get(entry, 0.0)
                assert bool((value[~masks[key]] == begins).all()), entry
                found += 1
    assert found > 0


@pytest.mark.parametrize("regrow", [True, False])
def test_gradual_is_zhu_and_gupta_written_out(regrow: bool) -> None:
    """Weights W rest behind their mask; every few steps the mask is the top |W|, of all or of those that live."""
    every, begin, end, rate, target = 3, 6, 30, 2.0, 0.15
    model = network()
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    names = list(prunable(model))
    masks = {name: torch.ones_like(weights[name], dtype=torch.bool) for name in names}
    regime = Gradual(
        evidence_of(model, None),
        SGD(model.parameters(), lr=rate),
        steps=STEPS,
        density=target,
        scorer=scorers.magnitude,
        begin=begin / STEPS,
        end=end / STEPS,
        every=every,
        regrow=regrow,
    )
    total = sum(masks[name].numel() for name in names)
    returned = 0
    for step in range(STEPS):
        seen = {name: w * masks.get(name, 1) for name, w in weights.items()}
        found = gradients(model, seen, step)
        weights = {name: w - rate * found[name] * masks.get(name, 1) for name, w in weights.items()}
        density = during_training(step + 1, density=target, begin=begin, end=end, every=every)
        if density != during_training(step, density=target, begin=begin, end=end, every=every):
            flat = torch.cat([weights[name].abs().reshape(-1) for name in names])
            among = torch.cat([masks[name].reshape(-1) for name in names])
            chosen = largest(flat, round(density * total), torch.ones_like(among) if regrow else among)
            for name, part in zip(names, chosen.split([masks[name].numel() for name in names]), strict=True):
                returned += int((part.view(masks[name].shape) & ~masks[name]).sum())
                masks[name] = part.view(masks[name].shape)
        run(regime, step, step + 1)
        assert regime.masks.kept == sum(int(mask.sum()) for mask in masks.values())
        for name in names:
            assert torch.equal(regime.masks[name], masks[name]), step
            torch.testing.assert_close(
                dict(model.named_parameters())[name].detach(), weights[name] * masks[name], rtol=1e-9, atol=1e-12
            )
    assert regime.masks.kept == round(target * total)
    assert (returned > 0) == regrow


@pytest.mark.parametrize("scorer", [scorers.taylor, scorers.snip, scorers.wanda])
def test_gradual_takes_any_scorer_and_leaves_modes(scorer: Any) -> None:
    model = nn.Sequential(nn.Linear(10, 12), nn.BatchNorm1d(12), nn.Tanh(), nn.Dropout(0.5), nn.Linear(12, 4)).double()
    seen = []

    def watching(evidence: Evidence) -> Any:
        seen.append([module.training for module in evidence.model.modules()])
        return scorer(evidence)

    evidence = evidence_of(model, None)
    regime = Gradual(evidence, Adam(model.parameters()), steps=STEPS, density=0.3, scorer=watching, every=10)
    model.train()
    run(regime)
    assert seen
    assert not any(any(modes) for modes in seen)
    assert all(module.training for module in model.modules())
    assert regime.finish().kept == round(0.3 * (120 + 48))


@pytest.mark.parametrize("granularity", [Weights(), Blocks((3, 2)), Vectors(0)])
@pytest.mark.parametrize("soft", [False, True])
def test_movement_is_the_papers_loop_written_out(granularity: Any, soft: bool) -> None:
    """W' = W ⊙ M(S) in autograd, the mask passed straight through; W and S by plain descent."""
    rate, score_rate, begin, end, target, threshold, penalty = 0.2, 0.7, 4, 30, 0.3, 0.5, 0.02
    model = network()
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    names = list(prunable(model))
    masks = {name: torch.ones_like(weights[name], dtype=torch.bool) for name in names}
    scores = {name: torch.zeros_like(weights[name]) for name in names}
    options: dict[str, Any] = {"threshold": threshold, "penalty": penalty} if soft else {"density": target}
    regime = Movement(
        evidence_of(model, None),
        SGD(model.parameters(), lr=rate),
        steps=STEPS,
        rate=score_rate,
        granularity=granularity,
        begin=begin / STEPS,
        end=end / STEPS,
        **options,
    )
    returned = 0
    for step in range(STEPS):
        found = gradients(model, {name: w * masks.get(name, 1) for name, w in weights.items()}, step)
        if step < end:
            progress = 1 - (1 - min(max((step - begin) / (end - begin), 0), 1)) ** 3
            for name in names:
                unit = granularity.pool(name, scores[name], None).scores.sigmoid()
                size = granularity.pool(name, torch.ones_like(scores[name]), None).scores
                pull = granularity.expand(unit * (1 - unit) / size, scores[name].shape)
                slope = found[name] * weights[name] + (penalty * progress * pull if soft else 0)
                scores[name] = scores[name] - score_rate * slope
        weights = {name: w - rate * found[name] * masks.get(name, 1) for name, w in weights.items()}
        if begin < step + 1 <= end:
            if soft:
                chosen = {
                    name: granularity.expand(
                        granularity.pool(name, scores[name], None).scores.sigmoid() > threshold, scores[name].shape
                    )
                    for name in names
                }
            else:
                density = during_training(step + 1, density=target, begin=begin, end=end)
                chosen = dict(prune(scores, density, granularity))
            returned += sum(int((chosen[name] & ~masks[name]).sum()) for name in names)
            masks = chosen
        run(regime, step, step + 1)
        for name in names:
            assert torch.equal(regime.masks[name], masks[name]), step
            torch.testing.assert_close(regime.whole()[name], weights[name], rtol=1e-8, atol=1e-11)
    assert returned > 0  # or the test could not tell resting from forgetting


@pytest.mark.parametrize("granularity", [Vectors(0), Weights(), Blocks((2, 5))])
@pytest.mark.parametrize("density", [None, 0.4])
def test_soft_mask_is_its_loss_in_autograd(granularity: Any, density: float | None) -> None:
    """L(W ⊙ z(log α, u)) + λ E[open], differentiated as one expression, with the same noise."""
    rate, end = 0.2, 24
    model, penalty = network(), 0.3
    regime = SoftMask(
        evidence_of(model, None),
        SGD(model.parameters(), lr=rate),
        steps=STEPS,
        density=density,
        granularity=granularity,
        penalty=penalty,
        end=end / STEPS,
        seed=7,
    )
    names = list(prunable(model))
    weights = {name: regime._weights[name].clone() for name in names}
    others = {name: p.detach().clone() for name, p in model.named_parameters() if name not in names}
    alphas = {name: value.detach().clone().requires_grad_(True) for name, value in regime.log_alpha.items()}
    descent = Adam(list(alphas.values()), lr=0.05)
    multiplier = penalty if density is None else 0.0
    for step in range(end):
        leaves = {name: value.clone().requires_grad_(True) for name, value in (weights | others).items()}
        seen = {}
        for name, leaf in leaves.items():
            seen[name] = leaf
            if name in names:
                ratio = regime._gates[name].detach()
                z = noisy(alphas, names, name, 7, step)
                torch.testing.assert_close(z.detach(), ratio)
                seen[name] = leaf * granularity.expand(z, leaf.shape)
        inputs, targets = batch(step)
        loss = nn.functional.cross_entropy(functional_call(model, seen, (inputs,)), targets)
        opened = torch.cat([(a - 2 / 3 * math.log(0.1 / 1.1)).sigmoid().reshape(-1) for a in alphas.values()]).mean()
        torch.testing.assert_close(regime.expected_density(), opened)
        descent.zero_grad()
        slopes = torch.autograd.grad(loss + multiplier * opened, [*leaves.values(), *alphas.values()])
        for name, slope in zip(leaves, slopes, strict=False):
            (weights if name in names else others)[name] -= rate * slope
        for alpha, slope in zip(alphas.values(), slopes[len(leaves) :], strict=True):
            alpha.grad = slope
        descent.step()
        if density is not None:
            now = torch.cat(
                [(a.detach() - 2 / 3 * math.log(0.1 / 1.1)).sigmoid().reshape(-1) for a in alphas.values()]
            ).mean()
            multiplier = max(0.0, multiplier + penalty * (float(now) - density))
        run(regime, step, step + 1)
        for name in names:
            torch.testing.assert_close(regime.log_alpha[name].detach(), alphas[name].detach(), rtol=1e-7, atol=1e-9)
    for name in names:
        z = (alphas[name].detach().sigmoid() * 1.2 - 0.1).clamp(0, 1)
        final = weights[name] * granularity.expand(z, weights[name].shape)
        torch.testing.assert_close(model.get_parameter(name).detach(), final * regime.masks[name], rtol=1e-6, atol=1e-9)
    if density is not None:
        units = sum(size.numel() for size in regime._sizes.values())
        kept = sum(int(granularity.pool(n, m.float(), None).scores.gt(0).sum()) for n, m in regime.masks.items())
        assert kept == round(density * units)
    held = regime.masks
    run(regime, end, STEPS)
    assert regime.masks == held


def noisy(alphas: dict[str, Tensor], names: list[str], name: str, seed: int, step: int) -> Tensor:
    """Hard-concrete gates with the noise of this seed and step."""
    digest = sha256(f"gates {seed} {step}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    for other in names:
        u = torch.rand(alphas[other].shape, generator=generator).clamp(1e-6, 1 - 1e-6).to(alphas[other])
        if other == name:
            break
    s = ((u.log() - (1 - u).log() + alphas[name]) / (2 / 3)).sigmoid()
    return (s * 1.2 - 0.1).clamp(0, 1)


def test_a_penalty_closes_gates_that_do_not_help() -> None:
    """Inputs of pure noise: their columns' gates close, those of the inputs that matter stay open."""
    torch.manual_seed(0)
    model = nn.Linear(10, 4).double()
    regime = SoftMask(
        Evidence(model, prunable(model)),
        Adam(model.parameters(), lr=0.05),
        steps=400,
        granularity=Vectors(1),
        penalty=0.5,
        rate=0.1,
        end=0.9,
    )
    run(regime, last=400)
    open_columns = regime.finish()["weight"].any(0)
    assert bool(open_columns[:4].all())
    assert not bool(open_columns[8:].any())


def broken() -> Iterator[tuple[str, Callable[[nn.Module, Optimizer], Regime], type[Exception], str]]:
    dense, sparse = partial(evidence_of, density=None), evidence_of
    for kind in (SET, RigL):
        yield "no masks", lambda m, o, k=kind: k(dense(m), o, steps=9), MaskError, "give Evidence masks"
        yield "every", lambda m, o, k=kind: k(sparse(m), o, steps=9, every=0), ScheduleError, "every=0"
        yield "fraction", lambda m, o, k=kind: k(sparse(m), o, steps=9, fraction=2.0), ScheduleError, "fraction=2.0"
        yield "end", lambda m, o, k=kind: k(sparse(m), o, steps=9, end=1.5), ScheduleError, "end=1.5"
        yield "steps", lambda m, o, k=kind: k(sparse(m), o, steps=0), ScheduleError, "steps=0"
    gradual = partial(Gradual, scorer=scorers.magnitude)
    yield "room", lambda m, o: gradual(dense(m), o, steps=9, density=0.1, begin=0.8), ScheduleError, "set them apart"
    yield "denser", lambda m, o: gradual(sparse(m), o, steps=9, density=0.9), ScheduleError, "0.9"
    yield "both", lambda m, o: Movement(dense(m), o, steps=9, density=0.5, threshold=0.5), ScheduleError, "either"
    yield "neither", lambda m, o: Movement(dense(m), o, steps=9), ScheduleError, "either"
    yield (
        "pooling",
        lambda m, o: Movement(dense(m), o, steps=9, density=0.5, granularity=Vectors(0, "max")),
        ScoreError,
        "sum",
    )
    yield "gates", lambda m, o: SoftMask(dense(m), o, steps=9, granularity=channels(m)), ScoreError, "Vectors"
    yield (
        "threshold of channels",
        lambda m, o: Movement(dense(m), o, steps=9, threshold=0.5, granularity=channels(m)),
        ScoreError,
        "one tensor",
    )
    yield "stretch", lambda m, o: SoftMask(dense(m), o, steps=9, stretch=(0.1, 1.1)), ScheduleError, "stretch"


@pytest.mark.parametrize("case", list(broken()), ids=lambda case: case[0])
def test_what_cannot_be_is_refused_before_a_step(case: Any) -> None:
    _, make, kind, said = case
    model = network()
    with pytest.raises(kind, match=said):
        make(model, SGD(model.parameters(), lr=0.1))
    assert all(not p._post_accumulate_grad_hooks for p in model.parameters())


def test_a_gradient_that_is_no_number_is_named() -> None:
    model = network()
    regime = RigL(evidence_of(model), SGD(model.parameters(), lr=0.1), steps=10, every=1, end=1.0)
    run(regime, last=1)
    (model(batch(0)[0]).sum() * float("nan")).backward()
    with pytest.raises(ScoreError, match="weight"):
        regime.before_step()
