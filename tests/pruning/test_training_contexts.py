"""A pruned weight does not exist under mixed precision, gradient scaling, averaged weights and compilation either."""

import shutil
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pruning import prunable
from pruning.parameters import named, unwrapped
from tests.pruning.twins import (
    Make,
    assert_gone,
    assert_twins,
    channel_masks,
    loss_of,
    mlp,
    random_masks,
    removed,
    sliced,
    train,
    twin_of,
)

MAKES: dict[str, Make] = {
    "momentum": partial(SGD, lr=0.05, momentum=0.9, weight_decay=0.01),
    "adam": partial(Adam, lr=0.01, fused=True),
}


def pair(make: Make, dtype: torch.dtype = torch.float32) -> tuple[nn.Sequential, Optimizer, nn.Sequential, Optimizer]:
    """A network, and the twin without the removed units, with their optimizers; both trained a little."""
    model = mlp(dtype=dtype)
    optimizer = make(model.parameters())
    train(model, optimizer, 3)
    twin, other = twin_of(model, optimizer, make)
    return model, optimizer, twin.to(dtype), other


@pytest.mark.parametrize("name", MAKES)
def test_bfloat16_autocast(name: str) -> None:
    """Equal up to the rounding of bfloat16, 2^-8 of a gradient."""
    model, optimizer, twin, other = pair(MAKES[name])
    masks = channel_masks(model)
    with torch.autocast("cpu", torch.bfloat16):
        with masks.attach(model, optimizer):
            train(model, optimizer, 8, start=3, clip=1.0)
        train(twin, other, 8, start=3, clip=1.0)
    assert_twins(model, twin, 5e-3)
    assert_gone(model, masks, optimizer)


def test_scaled_gradients_of_which_some_overflow() -> None:
    """`unscale_` divides gradients that were masked, and steps are left out: nothing removed moves."""
    model, optimizer, twin, other = pair(MAKES["momentum"])
    masks = channel_masks(model)

    def run(network: nn.Module, update: Optimizer) -> list[float]:
        scaler, scales = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2), []
        for step in range(8):
            update.zero_grad()
            factor = 1e38 if step == 3 else 1.0  # times the scale: infinite
            scaler.scale(factor * loss_of(network, step)).backward()
            scaler.unscale_(update)
            nn.utils.clip_grad_norm_(network.parameters(), 0.5)
            scaler.step(update)
            scaler.update()
            scales.append(scaler.get_scale())
        return scales

    with masks.attach(model, optimizer):
        scales = run(model, optimizer)
    assert run(twin, other) == scales
    assert any(later < earlier for earlier, later in pairwise(scales)), "a step was left out"
    assert_twins(model, twin, 1e-6)
    assert_gone(model, masks, optimizer)


def average(model: nn.Module) -> AveragedModel:
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.8))


def test_averages_of_weights_that_begin_masked_are_those_of_the_twin() -> None:
    model, optimizer, twin, other = pair(MAKES["adam"], torch.float64)
    masks = channel_masks(model)
    with masks.attach(model, optimizer):
        ours, theirs = average(model), average(twin)
        for step in range(6):
            train(model, optimizer, 1, start=3 + step)
            train(twin, other, 1, start=3 + step)
            ours.update_parameters(model)
            theirs.update_parameters(twin)
    for name, p in ours.module.named_parameters():
        torch.testing.assert_close(sliced(name, p.detach()), dict(theirs.module.named_parameters())[name].detach())
    assert masks.agree(ours)


def test_averages_that_begin_dense_are_masked_by_name() -> None:
    """They remember weights from before their removal: apply_ takes them out, through torch's wrapper."""
    model = mlp()
    optimizer = MAKES["adam"](model.parameters())
    averaged = average(model)
    train(model, optimizer, 2)
    averaged.update_parameters(model)
    masks = random_masks(model)
    assert unwrapped(averaged) is averaged.module
    assert list(prunable(averaged)) == list(prunable(model))
    with masks.attach(model, optimizer):
        train(model, optimizer, 2)
        averaged.update_parameters(model)
        assert not masks.agree(averaged)
        masks.apply_(averaged)
    assert masks.agree(averaged)
    assert set(named(averaged)) == set(named(model))


def compiled(backend: str) -> Any:
    needs = pytest.mark.skipif(not shutil.which("g++"), reason="inductor needs a C++ compiler, g++")
    return pytest.param(backend, marks=needs if backend == "inductor" else ())


@pytest.mark.parametrize("wrapped", [True, False], ids=["masks on the wrapper", "masks on the module"])
@pytest.mark.parametrize("backend", [compiled("aot_eager"), compiled("inductor")])
def test_compiled_network_trains_as_its_twin(backend: str, wrapped: bool) -> None:
    torch._dynamo.reset()
    model, optimizer, _, _ = pair(MAKES["adam"])
    fast = torch.compile(model, backend=backend)
    train(fast, optimizer, 1, start=3)  # compiled before it is masked
    masks = channel_masks(model)
    twin, other = twin_of(model, optimizer, MAKES["adam"])
    twin = twin.float()
    with masks.attach(fast if wrapped else model, optimizer):
        train(fast, optimizer, 6, start=4, clip=0.5)
        assert_gone(model, masks, optimizer)
    train(twin, other, 6, start=4, clip=0.5)
    assert_twins(model, twin, 1e-5)


def test_a_compiled_step_revives_nothing() -> None:
    torch._dynamo.reset()
    model, optimizer, _, _ = pair(MAKES["momentum"])
    masks = random_masks(model)
    with masks.attach(model, optimizer):
        step = torch.compile(optimizer.step, backend="aot_eager")
        for number in range(3):
            optimizer.zero_grad()
            loss_of(model, number).backward()
            step()
            assert_gone(model, masks, optimizer)


def loss_and_penalty(model: nn.Module) -> Tensor:
    return loss_of(model, 0) + 0.1 * sum(p.square().sum() for p in model.parameters())


@pytest.mark.parametrize("pieces", [1, 3])
@pytest.mark.parametrize("function", [loss_and_penalty, lambda model: loss_of(model, 0)])
def test_gradients_between_backward_and_step_are_those_of_the_network_that_is_left(
    function: Callable[[nn.Module], Tensor], pieces: int
) -> None:
    """Norms, penalties and sums over accumulated parts see no removed weight."""
    model = mlp()
    masks = channel_masks(model)
    with masks.attach(model):
        twin, _ = twin_of(model, SGD(model.parameters(), lr=0.1), partial(SGD, lr=0.1))
        for network in (model, twin):
            for _ in range(pieces):
                function(network).backward()
        ours, theirs = (nn.utils.get_total_norm([p.grad for p in m.parameters()]) for m in (model, twin))
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
        for name, p, gone in removed(model, masks):
            assert p.grad is not None
            assert not bool(p.grad[gone].any()), name
