"""A network and its twin from which hidden units were removed, and what must hold while the first trains masked."""

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pruning import Masks, prunable

Make = Callable[[Any], Optimizer]

KEPT = torch.tensor([0, 2, 3, 6])  # hidden units of 8
CONSTANT = ("step_size", "exp_inf")
"""What Rprop and Adamax remember of a weight that never moves: a step size, and eps; it moves nothing."""


class Noisy(Optimizer):
    """Of a third party: averages the gradient over rows, adds noise, and keeps state of its own that spreads."""

    def __init__(self, params: Any, lr: float = 0.1):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # no loss to return
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                memory = self.state[p].setdefault("memory", torch.zeros_like(p))
                memory.mul_(0.9).add_(p.grad.mean(0, keepdim=True)).add_(torch.randn_like(p), alpha=0.1)
                p.sub_(memory, alpha=group["lr"])


def mlp(hidden: int = 8, dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, hidden), nn.Tanh(), nn.Linear(hidden, 3)).to(dtype)


def data(step: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    inputs = torch.randn(10, 6, generator=generator, dtype=torch.float64).to(dtype)
    return inputs, torch.randint(3, (10,), generator=generator)


def loss_of(model: nn.Module, step: int) -> Tensor:
    inputs, targets = data(step, next(model.parameters()).dtype)
    return nn.functional.cross_entropy(model(inputs), targets)


def train(
    model: nn.Module, optimizer: Optimizer, steps: int, *, start: int = 0, clip: float | None = None, pieces: int = 1
) -> None:
    def closure(step: int) -> Tensor:
        optimizer.zero_grad()
        total = torch.zeros((), dtype=next(model.parameters()).dtype)
        for piece in range(pieces):
            loss = loss_of(model, step * pieces + piece) / pieces
            loss.backward()
            total = total + loss.detach()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        return total

    for step in range(start, start + steps):
        if isinstance(optimizer, torch.optim.LBFGS):
            optimizer.step(partial(closure, step))
        else:
            closure(step)
            optimizer.step()


def channel_masks(model: nn.Sequential) -> Masks:
    keep = torch.zeros(8, dtype=torch.bool)
    keep[KEPT] = True
    return Masks(
        {
            "0.weight": keep[:, None].expand(8, 6).clone(),
            "0.bias": keep,
            "2.weight": keep[None].expand(3, 8).clone(),
        }
    )


def random_masks(model: nn.Module, seed: int = 5) -> Masks:
    generator = torch.Generator().manual_seed(seed)
    return Masks({n: torch.rand(p.shape, generator=generator) < 0.5 for n, p in prunable(model).items()})


def sliced(name: str, tensor: Tensor) -> Tensor:
    return {"0.weight": lambda t: t[KEPT], "0.bias": lambda t: t[KEPT], "2.weight": lambda t: t[:, KEPT]}.get(
        name, lambda t: t
    )(tensor).clone()


def twin_of(model: nn.Sequential, optimizer: Optimizer, make: Make) -> tuple[nn.Sequential, Optimizer]:
    """The network without the removed units, and its optimizer with what remains of the state."""
    twin = mlp(hidden=len(KEPT))
    twin.load_state_dict({name: sliced(name, p.detach()) for name, p in model.named_parameters()})
    other = make(twin.parameters())
    new = dict(twin.named_parameters())
    for name, p in model.named_parameters():
        for key, value in optimizer.state.get(p, {}).items():
            kept = sliced(name, value) if isinstance(value, Tensor) and value.shape == p.shape else value
            other.state[new[name]][key] = copy.deepcopy(kept)
    return twin, other


def assert_twins(model: nn.Module, twin: nn.Module, tolerance: float = 1e-10) -> None:
    new = dict(twin.named_parameters())
    for name, p in model.named_parameters():
        torch.testing.assert_close(sliced(name, p.detach()), new[name].detach(), rtol=0, atol=tolerance)


def removed(model: nn.Module, masks: Masks) -> Iterator[tuple[str, nn.Parameter, Tensor]]:
    parameters = dict(model.named_parameters())
    for name, mask in masks.items():
        yield name, parameters[name], ~mask


def assert_gone(model: nn.Module, masks: Masks, *optimizers: Optimizer, gradients: bool = True) -> None:
    for name, p, gone in removed(model, masks):
        values = p.detach()[gone]
        assert bool((values == 0).all()), name
        assert not bool(torch.signbit(values).any()), f"{name}: minus zero"
        assert bool(p.detach()[~gone].any()), f"{name}: the kept weights are alive"
        if gradients and p.grad is not None:
            assert bool((p.grad[gone] == 0).all()), f"{name}: gradient"
        for optimizer in optimizers:
            for key, state in optimizer.state.get(p, {}).items():
                if isinstance(state, Tensor) and state.shape == p.shape and key not in CONSTANT:
                    assert bool((state[gone] == 0).all()), f"{name}: {key}"
