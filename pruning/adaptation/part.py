"""The trained places of one weight: its base, the differences to it, and how they get their gradient."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.optim import Optimizer

from pruning.adaptation.delta import DTYPES, Change, digest, read, write_
from pruning.adaptation.kept import Kept, KeptLinear, can_keep, gather_gradient, keep_, release_
from pruning.attachment import optimizers_in
from pruning.dynamic.regime import initial_state
from pruning.errors import AdaptationError


class Part:
    """What is trained of one weight, which holds base + difference at these places.

    Attributes:
        name, weight: of the parameter of the model.
        places: of the trained weights in the flattened weight, ascending; int32 where that suffices.
        base: the values there before, in the dtype of the weight.
        values: the differences, in at least float32.
    """

    def __init__(self, name: str, weight: nn.Parameter, mask: Tensor):
        """Train what `mask` has of `weight`, beginning at differences of 0.

        Raises `AdaptationError` for weights of no dtype that differences can be added to.
        """
        if weight.dtype not in DTYPES.values():
            raise AdaptationError(
                f"{name}: is {str(weight.dtype).removeprefix('torch.')}, to which no differences are added: take "
                "Beside, or leave it out of the support"
            )
        self.name = name
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

    def check_users(self, users: Iterable[tuple[nn.Module, str]]) -> None:
        """Raise `AdaptationError` for a module that writes into the weight by itself."""
        for module, _ in users:
            if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.max_norm is not None:
                raise AdaptationError(
                    f"{self.name}: max_norm lets its layer write into it: leave it out of the support, or set "
                    "max_norm to None"
                )

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

        self.weight.grad = None  # that of a training before, which no optimizer here would clear
        self.weight.requires_grad_(True)
        hooks = {self.weight: gather} | ({self.values: _average} if averaged else {})
        for parameter, hook in hooks.items():
            handle: Any = parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]  # torch's
            ends.append(handle.remove)
        return ends

    @torch.no_grad()
    def write_(self) -> None:
        """Let the weight be base + difference, rounded to its dtype.

        Raises `AdaptationError` where it was cast or moved meanwhile.
        """
        if (self.weight.dtype, self.weight.device) != (self.base.dtype, self.base.device):
            raise AdaptationError(
                f"{self.name}: was cast or moved while it is tuned: finish() the tuning before, and make another after"
            )
        write_(self.weight, self.places.long(), self._sum())

    @torch.no_grad()
    def revert_(self) -> None:
        """Let the weight be its base, bit by bit."""
        write_(self.weight, self.places.long(), self.base)

    def _sum(self) -> Tensor:
        return (self.base.to(self.values) + self.values.detach()).to(self.base)

    def change(self, dtype: torch.dtype | None) -> Change:
        """The differences, rounded to `dtype` where one is given.

        Raises `AdaptationError` where they are not finite, also by being rounded, or where the weight is another than
        base + difference.
        """
        if not bool(torch.isfinite(self.values).all()):
            raise AdaptationError(f"{self.name}: has differences that are not finite: training diverged")
        places, base = self.places.long(), self.weight.detach().clone()
        if not torch.equal(read(base, places), self._sum()):
            raise AdaptationError(
                f"{self.name}: is not base + difference, as it was written since the last step, or no step was "
                "followed: call follow(optimizer) before training, write_() after the values were changed by hand, and "
                "load what the state_dict() of the tuning was, not of the model"
            )
        write_(base, places, self.base)
        if dtype is not None and dtype not in DTYPES.values():
            raise AdaptationError(f"dtype={dtype}: holds no differences: give one of {', '.join(DTYPES)}")
        values = self.values.detach().to(dtype or self.values.dtype, copy=True)
        if not bool(torch.isfinite(values).all()):
            raise AdaptationError(f"{self.name}: has differences too large for {dtype}: give another dtype")
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
        return Kept(self.weight, self.values, self.places)


def _average(values: Tensor) -> None:
    """The mean of the gradient over all processes. What was averaged before, while gradients accumulate, is its own
    mean, so that only what is new counts.
    """
    assert values.grad is not None
    dist.all_reduce(values.grad)
    values.grad /= dist.get_world_size()
