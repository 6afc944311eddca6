"""The trained places of one weight: its base, the differences to it, and how they get their gradient."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.optim import Optimizer

from pruning.adaptation.delta import Change, digest, read, write_
from pruning.adaptation.kept import Kept, KeptLinear, can_keep, gather_gradient, keep_, release_
from pruning.attachment import optimizers_in
from pruning.dynamic.regime import initial_state
from pruning.errors import AdaptationError


class Part:
    """What is trained of one weight, which holds base + difference at these places.

    Attributes:
        weight: the parameter of the model.
        places: of the trained weights in the flattened weight, ascending; int32 where that suffices.
        base: the values there before, in the dtype of the weight.
        values: the differences, in at least float32.
    """

    def __init__(self, weight: nn.Parameter, mask: Tensor):
        """Train what `mask` has of `weight`, beginning at differences of 0."""
        places = mask.reshape(-1).nonzero()[:, 0]
        self.weight, self.base = weight, read(weight, places)
        self.places = places.int() if weight.numel() < 2**31 else places
        self.values = nn.Parameter(torch.zeros_like(self.base, dtype=torch.promote_types(weight.dtype, torch.float32)))

    @property
    def mask(self) -> Tensor:
        """True where a weight is trained, of the weight's shape."""
        mask = torch.zeros(self.weight.shape, dtype=torch.bool, device=self.places.device)
        mask.view(-1)[self.places] = True
        return mask

    def watch(self, users: Iterable[tuple[nn.Module, str]], averaged: bool) -> list[Callable[[], None]]:
        """Let the values get the gradient of the weight; functions that end it.

        Args:
            users: the modules that have the weight, with the attribute under which they do.
            averaged: over all processes.
        """
        ends: list[Callable[[], None]] = []
        users = list(users)
        if all(can_keep(module, attribute, len(self.places)) for module, attribute in users):
            for module, _ in users:
                keep_(module, self._kept())
                ends.append(partial(release_, module))

        def gather(_: Tensor) -> None:
            gather_gradient(self.weight, self.values, self.places)
            if averaged:
                _average(self.values)

        self.weight.requires_grad_(True)
        hooks = {self.weight: gather} | ({self.values: _average} if averaged else {})
        for parameter, hook in hooks.items():
            handle: Any = parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]  # torch's
            ends.append(handle.remove)
        return ends

    @torch.no_grad()
    def write_(self) -> None:
        """Let the weight be base + difference, rounded to its dtype."""
        write_(self.weight, self.places.long(), (self.base.to(self.values) + self.values).to(self.base))

    @torch.no_grad()
    def revert_(self) -> None:
        """Let the weight be its base, bit by bit."""
        write_(self.weight, self.places.long(), self.base)

    def change(self, name: str, dtype: torch.dtype | None) -> Change:
        """The differences, rounded to `dtype` where one is given. `AdaptationError` where they are not finite."""
        if not bool(torch.isfinite(self.values).all()):
            raise AdaptationError(f"{name}: has differences that are not finite: training diverged")
        places, base = self.places.long(), self.weight.detach().clone()
        write_(base, places, self.base)
        values = self.values.detach().to(dtype or self.values.dtype, copy=True)
        return Change(base.shape, base.dtype, digest(base), places, values)

    @torch.no_grad()
    def move_(self, mask: Tensor, modules: Iterable[nn.Module], optimizers: Iterable[Optimizer]) -> None:
        """Train what `mask` has, of as many places. What is left goes back to its base; what is new starts at a
        difference of 0, with no past in the optimizers.
        """
        old, new = self.places.long(), mask.reshape(-1).nonzero()[:, 0]
        staying = torch.isin(old, new)
        at = torch.searchsorted(new, old[staying])
        for inner in (inner for optimizer in optimizers for inner in optimizers_in(optimizer)):
            for group in (group for group in inner.param_groups if any(p is self.values for p in group["params"])):
                for key, state in inner.state.get(self.values, {}).items():
                    if isinstance(state, Tensor) and state.shape == self.values.shape:
                        first = torch.full_like(state, initial_state(inner, group, key))
                        state.copy_(first.index_copy_(0, at, state[staying]))
        self.revert_()
        moved = torch.zeros_like(self.values).index_copy_(0, at, self.values[staying])
        self.set_(new, read(self.weight, new), moved, modules)
        self.values.grad = None

    @torch.no_grad()
    def set_(self, places: Tensor, base: Tensor, values: Tensor, modules: Iterable[nn.Module]) -> None:
        """Let these be places, base and differences, as many as before, and write them; `modules` are the model's."""
        self.places.copy_(places)
        self.base.copy_(base)
        self.values.copy_(values)
        for module in modules:
            if isinstance(module, KeptLinear) and module.kept.values is self.values:
                keep_(module, self._kept())
        self.write_()

    def _kept(self) -> Kept:
        return Kept(self.values, (int(self.weight.shape[0]), int(self.weight.shape[1])), self.places)


def _average(values: Tensor) -> None:
    """The mean of the gradient over all processes. What was averaged before, while gradients accumulate, is its own
    mean, so that only what is new counts.
    """
    assert values.grad is not None
    dist.all_reduce(values.grad)
    values.grad /= dist.get_world_size()
