"""A pruned weight does not exist: a masked network trains as the one it was removed from, with all of torch.optim."""

import copy
import inspect
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, Optimizer

from pruning import Masks
from tests.pruning.twins import (
    KEPT,
    Make,
    Noisy,
    assert_gone,
    assert_twins,
    channel_masks,
    loss_of,
    mlp,
    random_masks,
    sliced,
    train,
    twin_of,
)

KINDS = {
    name: kind
    for name, kind in vars(torch.optim).items()
    if isinstance(kind, type) and issubclass(kind, Optimizer) and kind is not Optimizer
}
APART = {
    "LBFGS": "mixes all entries in its history: a test of its own",
    "Adafactor": "takes means over rows and columns, of which removal leaves fewer: it only must revive nothing",
    "Muon": "mixes rows and columns of matrices: a test of its own",
    "SparseAdam": "takes no dense gradients",
}
TOGGLES: dict[str, dict[str, Any]] = {
    "foreach": {"foreach": True},
    "fused": {"fused": True},
    "maximize": {"maximize": True},
    "weight_decay": {"weight_decay": 0.1},
    "decoupled_weight_decay": {"weight_decay": 0.1, "decoupled_weight_decay": True},
    "momentum": {"momentum": 0.9, "weight_decay": 0.01},
    "dampening": {"momentum": 0.9, "dampening": 0.3},
    "nesterov": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    "amsgrad": {"amsgrad": True},
    "centered": {"centered": True, "momentum": 0.5},
    "initial_accumulator_value": {"initial_accumulator_value": 0.1},
}


def variants(kind: type[Optimizer]) -> Iterator[tuple[str, Make]]:
    """`kind` as it comes, and with each of its options that changes its arithmetic or its implementation."""
    known = inspect.signature(kind).parameters
    yield "plain", partial(kind, lr=0.02)
    for toggle, options in TOGGLES.items():
        if toggle in known:
            yield toggle, partial(kind, lr=0.02, **options)


ELEMENTWISE: dict[str, Make] = {
    f"{name}-{variant}": make for name, kind in KINDS.items() if name not in APART for variant, make in variants(kind)
}


def test_every_optimizer_of_torch_is_covered() -> None:
    covered = {name.split("-")[0] for name in ELEMENTWISE}
    assert covered | APART.keys() == KINDS.keys()
    assert {"SGD", "Adam", "AdamW", "RMSprop", "Adagrad", "Adadelta", "Adamax", "NAdam", "RAdam", "Rprop", "ASGD"} == (
        covered
    )
    for options in ("foreach", "fused", "weight_decay", "decoupled_weight_decay", "nesterov", "amsgrad", "centered"):
        assert any(name.endswith(f"-{options}") for name in ELEMENTWISE)


@pytest.mark.parametrize(
    ("warm", "options"), [(0, {}), (4, {"clip": 0.05, "pieces": 3})], ids=["fresh", "warm-clipped-accumulated"]
)
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_masked_network_trains_as_its_removed_twin(name: str, warm: int, options: dict[str, Any]) -> None:
    """Weights to 1e-10 after twelve steps, also after dense training; and what is removed is nought."""
    make = ELEMENTWISE[name]
    model = mlp()
    optimizer = make(model.parameters())
    train(model, optimizer, warm)
    masks = channel_masks(model)
    twin, other = twin_of(model, optimizer, make)
    before = [p.detach().clone() for p in twin.parameters()]
    with masks.attach(model, optimizer):
        train(model, optimizer, 12, start=warm, **options)
    train(twin, other, 12, start=warm, **options)
    assert_twins(model, twin)
    assert all(not torch.equal(p, b) for p, b in zip(twin.parameters(), before, strict=True)), "nothing was trained"
    assert_gone(model, masks, optimizer)


@pytest.mark.parametrize("search", [None, "strong_wolfe"])
@pytest.mark.parametrize("warm", [0, 3])
def test_lbfgs_trains_as_its_removed_twin(warm: int, search: str | None) -> None:
    """It mixes all entries in its history; a history that remembers removed weights starts anew."""
    make = partial(torch.optim.LBFGS, lr=0.3, max_iter=4, line_search_fn=search)
    model = mlp()
    optimizer = make(model.parameters())
    train(model, optimizer, warm)
    masks = channel_masks(model)
    twin = mlp(hidden=len(KEPT))
    twin.load_state_dict({name: sliced(name, p.detach()) for name, p in model.named_parameters()})
    with masks.attach(model, optimizer):
        train(model, optimizer, 4, start=warm)
    train(twin, make(twin.parameters()), 4, start=warm)
    assert_twins(model, twin, 1e-9)
    assert_gone(model, masks)


def test_lbfgs_history_of_masked_training_survives_loading() -> None:
    """So an interrupted run goes on as if it had not been."""
    make = partial(torch.optim.LBFGS, lr=0.3, max_iter=4)
    model = mlp()
    optimizer = make(model.parameters())
    masks = random_masks(model)
    masks.attach(model, optimizer)
    train(model, optimizer, 3)
    again = mlp(seed=1)
    again.load_state_dict(model.state_dict())
    resumed = make(again.parameters())
    masks.attach(again, resumed)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(model, optimizer, 3, start=3)
    train(again, resumed, 3, start=3)
    for ours, theirs in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, theirs)


OTHERS: dict[str, Make] = {
    "noisy": Noisy,
    "adafactor": partial(torch.optim.Adafactor, lr=0.1),
    "adafactor-foreach": partial(torch.optim.Adafactor, lr=0.1, foreach=True, weight_decay=0.1),
}


@pytest.mark.parametrize("warm", [0, 3])
@pytest.mark.parametrize("name", [*ELEMENTWISE, *OTHERS])
def test_removed_weights_gradients_and_state_are_zero_at_every_moment(name: str, warm: int) -> None:
    model = mlp()
    optimizer = {**ELEMENTWISE, **OTHERS}[name](model.parameters())
    train(model, optimizer, warm)
    masks = random_masks(model)
    masks.attach(model, optimizer)
    assert_gone(model, masks, optimizer)
    for step in range(5):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        assert_gone(model, masks, optimizer)
        assert all(p.grad is not None and bool(p.grad.any()) for p in model.parameters())
        optimizer.step()
        assert_gone(model, masks, optimizer)


muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")


def wide(hidden: int = 8) -> nn.Sequential:
    """Matrices no higher than wide, before and after removal: Muon's rate depends on the shape of the others."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, hidden), nn.Tanh(), nn.Linear(hidden, 3))


@muon
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_muon_trains_as_its_removed_twin(decay: float) -> None:
    """Rows and columns of noughts stay so through its Newton-Schulz steps, whose bfloat16 bounds the agreement."""
    keep = torch.zeros(8, dtype=torch.bool)
    keep[KEPT] = True
    model, twin = wide(), wide(len(KEPT))
    slices = {"2.weight": (KEPT,), "2.bias": (KEPT,), "4.weight": (slice(None), KEPT)}
    twin.load_state_dict({name: value[slices.get(name, ...)] for name, value in model.state_dict().items()})
    masks = Masks(
        {"2.weight": keep[:, None].expand(8, 16).clone(), "2.bias": keep, "4.weight": keep[None].expand(3, 8).clone()}
    )
    optimizer, other = (
        torch.optim.Muon([m[2].weight, m[4].weight], lr=0.02, weight_decay=decay) for m in (model, twin)
    )
    start = twin[2].weight.detach().clone()
    with masks.attach(model, optimizer):
        train(model, optimizer, 5)
    train(twin, other, 5)
    for name, p in twin.named_parameters():
        ours = dict(model.named_parameters())[name].detach()[slices.get(name, ...)]
        torch.testing.assert_close(ours, p.detach(), rtol=0, atol=2e-3)
    assert float((twin[2].weight.detach() - start).abs().max()) > 2e-2
    assert_gone(model, masks, optimizer)


@muon
def test_muon_revives_nothing_under_scattered_masks() -> None:
    model = mlp(dtype=torch.float32)
    matrices = [p for p in model.parameters() if p.dim() == 2]
    optimizer = torch.optim.Muon(matrices, lr=0.05)
    train(model, optimizer, 2)
    masks = random_masks(model)
    with masks.attach(model, optimizer):
        for step in range(4):
            train(model, optimizer, 1, start=2 + step)
            assert_gone(model, masks, optimizer)


def test_two_optimizers_are_both_held() -> None:
    model = mlp()
    first = SGD([model[0].weight, model[0].bias], lr=0.1, momentum=0.9)
    second = Noisy([model[2].weight])
    train(model, first, 2)
    train(model, second, 2)
    masks = random_masks(model)
    masks.attach(model, first, second)
    for step in range(3):
        model.zero_grad()
        loss_of(model, step).backward()
        first.step()
        second.step()
        assert_gone(model, masks, first, second)


def test_groups_with_options_of_their_own_train_as_the_twins() -> None:
    def make(parameters: Any) -> Optimizer:
        first, *others = parameters
        return Adam(
            [{"params": [first], "lr": 0.05, "weight_decay": 0.2}, {"params": others, "amsgrad": True}], lr=0.01
        )

    model = mlp()
    optimizer = make(model.parameters())
    masks = channel_masks(model)
    twin, other = twin_of(model, optimizer, make)
    with masks.attach(model, optimizer):
        train(model, optimizer, 8)
    train(twin, other, 8)
    assert_twins(model, twin)
