"""Tuning: what is not in the support does not move by a bit, and what is moves as in a plain training of it alone."""

import copy
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from pruning import Evidence, Masks, prunable, prune, scorers
from pruning.adaptation import Delta, Tuning
from pruning.adaptation.kept import Kept, KeptLinear
from pruning.allocation import PerRow, Uniform
from pruning.errors import AdaptationError, ExecutionError, MaskError, ParameterError
from pruning.granularity import Blocks, Vectors, Weights

Batch = tuple[Tensor, Tensor]


class Network(nn.Module):
    """A tied embedding, a convolution, a norm, Linears with and without bias, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(12, 8)
        self.mixing = nn.Conv1d(8, 8, 3, padding=1)
        self.norm = nn.LayerNorm(8)
        self.up, self.down = nn.Linear(8, 24), nn.Linear(24, 8, bias=False)
        self.tied = nn.Linear(8, 12, bias=False)
        self.tied.weight = self.embedding.weight
        self.head = nn.Linear(12, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        x = x + self.mixing(x.transpose(1, 2)).transpose(1, 2)
        x = x + self.down(F.silu(self.up(self.norm(x))))
        return self.head(self.tied(x).mean(1))


def network(dtype: torch.dtype = torch.float32) -> Network:
    torch.manual_seed(0)
    return Network().to(dtype)


def batches(count: int = 4) -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    tokens = [torch.randint(12, (6, 5), generator=generator) for _ in range(count)]
    return [(batch, (batch.sum(1) % 3)) for batch in tokens]


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    outputs: Tensor = model(batch[0])
    return F.cross_entropy(outputs.to(torch.promote_types(outputs.dtype, torch.float32)), batch[1])


def supports(model: nn.Module) -> dict[str, Masks]:
    """Supports of several granularities, over weights of all kinds; the head is left out."""
    every = prunable(model, include="*", exclude=["head.*", "*bias", "norm.*"])
    evidence = Evidence(model, every)
    scores = scorers.random(evidence)
    generator = torch.Generator().manual_seed(2)
    alone = {n: torch.rand(p.shape, generator=generator) < 0.3 for n, p in model.named_parameters() if "head" not in n}
    return {
        "weights": prune(scores, 0.08, allocation=Uniform()),
        "half": prune(scores, 0.5, granularity=Weights(), allocation=PerRow()),
        "rows": prune({n: s for n, s in scores.items() if "mix" not in n}, 0.25, Vectors(0), allocation=Uniform()),
        "blocks": prune({n: s for n, s in scores.items() if "mix" not in n}, 0.25, Blocks((4, 4))),
        "biases and norms": Masks(alone),
    }


OPTIMIZERS: dict[str, Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer]] = {
    "adamw": partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.1),
    "momentum": partial(torch.optim.SGD, lr=5e-2, momentum=0.9, nesterov=True, weight_decay=0.01),
    "rmsprop": partial(torch.optim.RMSprop, lr=1e-3),
}


def train(tuning: Tuning, model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, accumulate: int = 1) -> None:
    data = batches()
    for step in range(steps):
        optimizer.zero_grad()
        for part in range(accumulate):
            (loss_of(model, data[(step * accumulate + part) % len(data)]) / accumulate).backward()
        torch.nn.utils.clip_grad_norm_(list(tuning.parameters()), 1.0)
        optimizer.step()


def bits(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("support", ["weights", "half", "rows", "blocks", "biases and norms"])
def test_frozen_weights_do_not_move_by_a_bit_and_the_others_return_to_the_bit(
    support: str, kind: str, dtype: torch.dtype
) -> None:
    model = network(dtype)
    before, masks = bits(model), supports(model)[support]
    dense = None if dtype == torch.float16 else "head.*"  # Adam itself divides 0 by 0 there
    tuning = Tuning(model, masks, dense)
    optimizer = OPTIMIZERS[kind](tuning.parameters())
    tuning.follow(optimizer)
    steps = 200 if (support, dtype) == ("weights", torch.float32) else 12
    train(tuning, model, optimizer, steps, accumulate=2)
    kept = sum(int(mask.sum()) for mask in masks.joined(model).values())
    states = [
        v for p in tuning.values.values() for v in optimizer.state[p].values() if isinstance(v, Tensor) and v.dim()
    ]
    assert {len(state) for state in states} <= {len(v) for v in tuning.values.values()}  # vectors of the values alone
    assert tuning.count == kept
    moved = 0
    for name, parameter in model.named_parameters():
        if not name.startswith("head"):
            mask = masks.get(name, torch.zeros(parameter.shape, dtype=torch.bool))
            assert torch.equal(parameter[~mask], before[name][~mask])
            moved += int((parameter != before[name]).sum())
    assert moved > 0.5 * kept
    after = bits(model)
    delta = tuning.finish()
    assert delta.count == kept
    assert all(torch.equal(parameter, after[name]) for name, parameter in model.named_parameters())
    other = network(dtype)
    with delta.apply_(other):
        assert all(torch.equal(parameter, after[name]) for name, parameter in other.named_parameters())
    assert all(torch.equal(parameter, before[name]) for name, parameter in other.named_parameters())


@pytest.mark.parametrize("support", ["weights", "half", "rows", "blocks", "biases and norms"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_training_is_that_of_the_differences_alone(support: str, kind: str) -> None:
    """The oracle: W + scatter(d) in every forward pass, d an ordinary parameter."""
    model, plain = network(torch.float64), network(torch.float64)
    masks = supports(model)[support].joined(model)
    tuning = Tuning(model, masks, dense="head.*")
    optimizer = OPTIMIZERS[kind](tuning.parameters())
    tuning.follow(optimizer)
    train(tuning, model, optimizer, 15)

    base = bits(plain)
    d = {n: torch.zeros(int(m.sum()), dtype=torch.float64, requires_grad=True) for n, m in masks.items() if m.any()}
    head = [parameter for name, parameter in plain.named_parameters() if name.startswith("head")]
    optimizer = OPTIMIZERS[kind](iter([*d.values(), *head]))
    data = batches()
    for step in range(15):
        optimizer.zero_grad()
        weights = {n: base[n].masked_scatter(masks[n], base[n][masks[n]] + d[n]) for n in d}
        weights |= {"tied.weight": weights["embedding.weight"]} if "embedding.weight" in weights else {}
        tokens, targets = data[step % len(data)]
        F.cross_entropy(torch.func.functional_call(plain, weights, (tokens,)), targets).backward()
        torch.nn.utils.clip_grad_norm_([*d.values(), *head], 1.0)
        optimizer.step()
    for name, values in tuning.values.items():
        torch.testing.assert_close(values.detach(), d[name].detach(), rtol=1e-9, atol=1e-11)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 12), st.integers(0, 3), st.integers(0, 10**6))
def test_the_gradient_at_kept_places_is_the_dense_one(
    outputs: int, inputs: int, rows: int, kind: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, inputs, generator=generator, dtype=torch.float64)
    g = torch.randn(rows, outputs, generator=generator, dtype=torch.float64)
    mask = torch.rand(outputs, inputs, generator=generator) < 0.4
    if kind == 1:
        mask[:] = mask[:, :1]  # whole rows
    if kind == 2:
        mask[:] = mask[:1]  # whole columns
    if kind == 3:
        mask[:] = mask[:, :1] & mask[:1]
    places = mask.flatten().nonzero()[:, 0].int()
    values = nn.Parameter(torch.zeros(len(places), dtype=torch.float64))
    found = Kept(nn.Parameter(torch.empty(outputs, inputs)), values, places).gradient(g, x)
    torch.testing.assert_close(found, (g.T @ x)[mask])


class Functional(nn.Module):
    """Uses one weight twice: by its layer, and by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(20, 20)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + F.linear(x.sin(), self.layer.weight)


def test_uses_of_a_weight_outside_of_its_layer_count() -> None:
    torch.manual_seed(0)
    model, x = Functional(), torch.randn(7, 20)
    mask = torch.rand(20, 20) < 0.05
    tuning = Tuning(model, {"layer.weight": mask})
    assert type(model.layer) is KeptLinear
    model(x).square().sum().backward()
    tuning.release()
    model(x).square().sum().backward()
    assert model.layer.weight.grad is not None
    torch.testing.assert_close(tuning.values["layer.weight"].grad, model.layer.weight.grad[mask])


@pytest.mark.parametrize("kind", ["compiled", "checkpointed", "autocast"])
def test_contexts_of_a_training_change_nothing(kind: str) -> None:
    torch.manual_seed(0)
    found = []
    for wrapped in (False, True):
        model = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3))
        model.load_state_dict(
            {k: torch.linspace(-1, 1, v.numel()).view(v.shape).sin() for k, v in model.state_dict().items()}
        )
        tuning = Tuning(
            model, {"0.weight": torch.arange(256).view(16, 16) % 23 == 0, "2.weight": torch.ones(3, 16).bool()}
        )
        assert isinstance(model[0], KeptLinear)
        optimizer = torch.optim.SGD(tuning.parameters(), lr=0.1)
        tuning.follow(optimizer)
        run: Callable[[Tensor], Tensor] = model
        if wrapped and kind == "compiled":
            run = torch.compile(model, backend="aot_eager")
        if wrapped and kind == "checkpointed":
            run = partial(checkpoint, model, use_reentrant=False)
        for step in range(4):
            x = torch.linspace(0, 3, 8 * 16).view(8, 16).cos() + step
            with torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"):
                loss = run(x).float().square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        found.append(tuning.finish())
    for name, change in found[0].changes.items():
        assert float(change.values.abs().max()) > 0
        assert torch.equal(change.values, found[1].changes[name].values)


def test_a_mixed_precision_training_has_the_gradients_of_a_plain_one() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(32, 16), torch.randn(4, 32)
    mask = torch.rand(16, 32) < 0.08
    with torch.autocast("cpu", torch.bfloat16):
        layer(x).float().square().sum().backward()
    wanted = layer.weight.grad[mask]  # type: ignore[index]  # it is there
    tuning = Tuning(layer, {"weight": mask})
    assert layer.weight.grad is None  # of before: it does not count
    with torch.autocast("cpu", torch.bfloat16):
        layer(x).float().square().sum().backward()
    assert torch.equal(tuning.values["weight"].grad, wanted)


def test_a_training_that_was_interrupted_ends_in_the_same_bits() -> None:
    whole, parts = network(), network()
    support = supports(whole)["weights"]
    results = []
    for model, cut in ((whole, None), (parts, 5)):
        tuning = Tuning(model, support, dense="head.*")
        optimizer = torch.optim.AdamW(tuning.parameters(), lr=1e-2)
        tuning.follow(optimizer)
        data = batches()
        for step in range(10):
            if step == cut:  # into a new model that holds what was trained
                state = copy.deepcopy((model.state_dict(), tuning.state_dict(), optimizer.state_dict()))
                model = network()
                model.load_state_dict(state[0])
                tuning = Tuning(model, support, dense="head.*")
                tuning.load_state_dict(state[1])
                optimizer = torch.optim.AdamW(tuning.parameters(), lr=1e-2)
                optimizer.load_state_dict(state[2])
                tuning.follow(optimizer)
            optimizer.zero_grad()
            loss_of(model, data[step % 4]).backward()
            optimizer.step()
        results.append((bits(model), tuning.finish()))
    (one, delta), (other, resumed) = results
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert all(
        change.base == resumed.changes[n].base and torch.equal(change.values, resumed.changes[n].values)
        for n, change in delta.changes.items()
    )


def test_updates_within_the_survivors_keep_every_zero() -> None:
    model = network()
    chosen = prunable(model, exclude="head.*")
    evidence = Evidence(model, chosen, batches(), loss_of)
    pruned = prune(scorers.magnitude(evidence), 0.5)
    pruned.apply_(model)
    support = prune(scorers.gradient(evidence), 0.1, within=pruned)
    tuning = Tuning(model, support)
    optimizer = torch.optim.AdamW(tuning.parameters(), lr=1e-2)
    tuning.follow(optimizer)
    train(tuning, model, optimizer, 5)
    assert pruned.agree(model)
    delta = tuning.finish()
    assert pruned.agree(model)
    assert all(not bool((mask & ~pruned[name]).any()) for name, mask in delta.support.items())


def test_what_is_saved_is_what_the_model_computes() -> None:
    model = network()
    tuning = Tuning(model, supports(model)["half"])
    optimizer = torch.optim.SGD(tuning.parameters(), lr=0.3)
    tuning.follow(optimizer)
    train(tuning, model, optimizer, 3)
    delta, other = tuning.finish(torch.bfloat16), network()
    assert all(change.values.dtype == torch.bfloat16 for change in delta.changes.values())
    with delta.apply_(other):
        for (name, one), (_, two) in zip(model.named_parameters(), other.named_parameters(), strict=True):
            assert torch.equal(one, two), name


def test_a_tuning_leaves_the_model_as_it_was() -> None:
    model = network()
    model.up.bias.requires_grad_(False)
    before, classes = bits(model), [type(module) for module in model.modules()]
    states = set(model.state_dict())
    with Tuning(model, supports(model)["weights"]) as tuning:
        assert set(model.state_dict()) == states
        assert any(isinstance(module, KeptLinear) for module in model.modules())
        optimizer = torch.optim.SGD(tuning.parameters(), lr=0.5)
        tuning.follow(optimizer)
        train(tuning, model, optimizer, 2)
        assert any(not torch.equal(p, before[n]) for n, p in model.named_parameters())
        tuning.revert()
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    assert [type(module) for module in model.modules()] == classes
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["up.bias"]
    loss_of(model, batches()[0]).backward()
    assert model.up.weight.grad is not None
    Tuning(model, supports(model)["weights"]).release()  # as often as one likes


def test_half_precision_weights_move_though_each_step_is_below_their_rounding() -> None:
    layer = nn.Linear(64, 64, bias=False).to(torch.bfloat16)
    nn.init.constant_(layer.weight, 1.0)
    tuning = Tuning(layer, {"weight": torch.ones(64, 64, dtype=torch.bool)})
    optimizer = torch.optim.SGD(tuning.parameters(), lr=1e-4)
    tuning.follow(optimizer)
    for _ in range(100):
        optimizer.zero_grad()
        layer(torch.ones(1, 64, dtype=torch.bfloat16)).sum().backward()
        optimizer.step()
    torch.testing.assert_close(layer.weight.float(), torch.full((64, 64), 0.99), atol=0.004, rtol=0)
    assert bool((layer.weight != 1.0).all())


ERRORS: dict[str, tuple[Callable[[Network], object], type[Exception], str]] = {
    "nothing": (
        lambda m: Tuning(m, {"up.weight": torch.zeros(24, 8, dtype=torch.bool)}),
        AdaptationError,
        "the support is empty",
    ),
    "unknown": (lambda m: Tuning(m, {"upp.weight": torch.ones(24, 8, dtype=torch.bool)}), MaskError, "no such"),
    "both": (
        lambda m: Tuning(m, {"head.bias": torch.ones(3, dtype=torch.bool)}, dense="head.*"),
        AdaptationError,
        "head.bias: is in the support and in dense=",
    ),
    "no dense": (
        lambda m: Tuning(m, {"up.weight": torch.ones(24, 8, dtype=torch.bool)}, dense="tail.*"),
        ParameterError,
        "matches no parameter",
    ),
    "twice": (lambda m: [Tuning(m, supports(m)["half"]) for _ in range(2)], AdaptationError, "has a tuning already"),
    "meta": (
        lambda m: Tuning(m.to("meta"), {"up.bias": torch.ones(24, dtype=torch.bool)}),
        ParameterError,
        "meta device",
    ),
    "lbfgs": (
        lambda m: (t := Tuning(m, supports(m)["half"])).follow(torch.optim.LBFGS(list(t.parameters()))),
        AdaptationError,
        "LBFGS: is not known",
    ),
    "other optimizer": (
        lambda m: Tuning(m, supports(m)["half"]).follow(torch.optim.SGD(m.parameters(), lr=0.1)),
        AdaptationError,
        "SGD: trains none",
    ),
    "another state": (
        lambda m: (t := Tuning(m, supports(m)["half"])).load_state_dict({"n": t.values}),
        AdaptationError,
        "is in only one of the state",
    ),
}


@pytest.mark.parametrize("kind", ERRORS)
def test_mistakes_are_named(kind: str) -> None:
    call, error, text = ERRORS[kind]
    with pytest.raises(error, match=text):
        call(network())


def test_a_training_that_diverged_gives_no_delta() -> None:
    model = network()
    tuning = Tuning(model, supports(model)["half"])
    next(iter(tuning.values.values())).data[0] = torch.nan
    with pytest.raises(AdaptationError, match="not finite"):
        tuning.delta()


def test_second_derivatives_are_refused() -> None:
    layer = nn.Linear(20, 20)
    tuning = Tuning(layer, {"weight": torch.arange(400).view(20, 20) % 50 == 0})
    with pytest.raises(ExecutionError, match="no second derivatives"):
        torch.autograd.grad(layer(torch.ones(2, 20)).square().sum(), list(tuning.parameters()), create_graph=True)


def test_a_copy_of_a_tuned_model_computes_the_same() -> None:
    model = network()
    with Tuning(model, supports(model)["weights"]):
        tokens = batches()[0][0]
        assert torch.equal(copy.deepcopy(model)(tokens), model(tokens))


def test_a_delta_from_a_file_makes_the_same_model(tmp_path: Path) -> None:
    model = network()
    tuning = Tuning(model, supports(model)["half"], dense="head.*")
    for values in tuning.values.values():
        values.data.normal_()
    tuning.write_()
    delta = tuning.finish()
    delta.save(tmp_path / "delta")
    with Delta.load(tmp_path / "delta").apply_(network()) as other:
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))
