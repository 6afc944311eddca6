"""Training of a subnetwork alone: a network whose other weights do not move by a bit.

The support is a `Masks`, True = trained, so whatever makes masks chooses what is trained. The weight itself holds base
+ difference at all times: the forward pass is the layer's own, and the network is the merged one. The trained parameter
is the difference, in float32 where weights are in half precision, of which most would not move by a step otherwise;
weight decay pulls towards the base.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.optim import Optimizer

from pruning.adaptation.delta import Delta, digest
from pruning.adaptation.freezing import check_free, freeze
from pruning.adaptation.kept import KeptLinear, keep_, release_
from pruning.adaptation.part import Part
from pruning.attachment import SEPARATE, optimizers_in
from pruning.errors import AdaptationError
from pruning.masks import Masks
from pruning.parameters import Choice, check_values, check_whole, first_names, named, prunable, unwrapped, users_of


class Tuning:
    """Trains only a support of a model's weights, and what is named as dense, until `finish()`.

        tuning = Tuning(model, support, dense="head.*")
        optimizer = torch.optim.AdamW(tuning.parameters(), lr=3e-3)
        tuning.follow(optimizer)
        ...                         # any training loop
        delta = tuning.finish()

    All other parameters are frozen meanwhile. As a context manager it ends with the block, as `finish` does.

    Attributes:
        model: the one that is trained, without its wrappers.
        averaged: whether gradients are averaged over several processes.
    """

    def __init__(
        self, model: nn.Module, support: Mapping[str, Tensor], dense: Choice | None = None, averaged: bool = True
    ):
        """Freeze `model` but for `support` and `dense`.

        Args:
            model: any, on its device; give it before it is wrapped in DDP, which leaves the differences to this object.
            support: name -> bool tensor, True = trained, of any parameters. Tied weights count once: what all of their
                masks have.
            dense: parameters that are trained as a whole, by globs of their names or a predicate, as in `prunable`: a
                new head. They are parameters of the model as ever.
            averaged: where torch.distributed has several processes, gradients of the differences are averaged over
                them, as DDP does with those of `dense`. A network without `dense` needs no DDP.

        Raises:
            AdaptationError: nothing to train, a parameter that is in both, or the model is tuned or in DDP already.
            MaskError: the support does not fit the model.
            ParameterError: `dense` matches nothing; sharded or offloaded weights.
        """
        self.model = unwrapped(model)
        parameters = named(self.model)
        check_whole(model, parameters)
        check_values(parameters)
        if isinstance(model, nn.parallel.DistributedDataParallel):
            raise AdaptationError("DistributedDataParallel: wrap the model in it after this, not before")
        check_free(self.model)
        joined = Masks(support).joined(self.model)
        self._dense = {} if dense is None else prunable(self.model, include=dense, frozen=True)
        first = first_names(self.model)
        both = sorted(first[name] for name in self._dense if first[name] in joined)
        if both:
            raise AdaptationError(f"{both[0]}: is in the support and in dense=: leave it out of one of them")
        self._parts = {name: Part(name, parameters[name], mask) for name, mask in joined.items() if bool(mask.any())}
        if not self._parts and not self._dense:
            raise AdaptationError("the support is empty, and nothing is dense: nothing would be trained")
        users = users_of(self.model)
        for part in self._parts.values():
            part.check_users(users[id(part.weight)])
        self._statistics = {name: digest(buffer) for name, buffer in _statistics(self.model)}
        self._removers: list[Callable[[], None]] = [freeze(self.model, self._dense.values(), "a tuning")]
        self.averaged = averaged and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        for part in self._parts.values():
            self._removers += part.watch(users[id(part.weight)], self.averaged)
        self._ignored_before = vars(self.model).get(_IGNORED)
        own = {id(part.weight) for part in self._parts.values()}
        ignored = [n for n, p in self.model.named_parameters(remove_duplicate=False) if id(p) in own]  # as DDP has them
        setattr(self.model, _IGNORED, _Ignored([*(self._ignored_before or ()), *ignored]))
        self._over = False

    @property
    def values(self) -> dict[str, nn.Parameter]:
        """The differences, by the names of their weights: vectors in the order of the places, in at least float32."""
        return {name: part.values for name, part in self._parts.items()}

    @property
    def support(self) -> Masks:
        """What is trained now: True in masks on the devices of the weights."""
        return Masks({name: part.mask for name, part in self._parts.items()})

    def parameters(self) -> Iterator[nn.Parameter]:
        """What an optimizer is to train, or a norm of gradients to clip: the differences, and what is dense."""
        yield from self.values.values()
        yield from self._dense.values()

    @property
    def count(self) -> int:
        """Number of trained weights, those of `dense` aside."""
        return sum(part.values.numel() for part in self._parts.values())

    def follow(self, *optimizers: Optimizer) -> None:
        """Write the weights after every step of these optimizers, until `finish()`.

        Raises:
            AdaptationError: an optimizer trains none of `parameters()`, or does not treat every weight by itself
                (LBFGS, Adafactor, one that is not of torch.optim): on a vector it would be another optimizer.
            MaskError: its steps cannot be watched.
        """
        own = {id(parameter) for parameter in self.parameters()}
        for optimizer in optimizers:
            every = optimizers_in(optimizer)
            kind = type(every[-1]).__name__
            if type(every[-1]) not in SEPARATE:
                raise AdaptationError(
                    f"{kind}: is not known to treat every weight by itself: take Adam or SGD of torch.optim"
                )
            if not any(id(p) in own for group in optimizer.param_groups for p in group["params"]):
                raise AdaptationError(f"{kind}: trains none of the differences: make it of tuning.parameters()")
            self._removers.append(every[-1].register_step_post_hook(lambda *_: self.write_()).remove)

    @torch.no_grad()
    def write_(self) -> None:
        """Let the weights be base + difference, rounded to their dtype: after the values were changed by hand.

        Raises `AdaptationError` once the tuning is over, or where a weight was cast or moved since.
        """
        self._check_going_on()
        for part in self._parts.values():
            part.write_()

    def delta(self, dtype: torch.dtype | None = None) -> Delta:
        """The differences up to now, rounded to `dtype` where one is given, and copies of what is dense.

        Statistics that have moved, as of batch norm in train mode, are among the latter.

        Raises `AdaptationError` for differences that are not finite, for a `dtype` of no real numbers, for weights that
        are not base + difference, as others have written them since the last step, and once the tuning is over.
        """
        self._check_going_on()
        changes = {name: part.change(dtype) for name, part in self._parts.items()}
        dense = {name: p.detach().clone() for name, p in self._dense.items()}
        return Delta(changes, dense | {name: buffer.clone() for name, buffer in self._moved().items()})

    def finish(self, dtype: torch.dtype | None = None) -> Delta:
        """End the training: the delta; the weights stay as they are, or as the delta rounded to `dtype` gives them.

        Parameters are as trainable as they were before.
        """
        delta = self.delta(dtype)
        with torch.no_grad():
            for name, change in delta.changes.items():
                self._parts[name].values.copy_(change.values)
        self.write_()
        self.release()
        return delta

    def revert(self) -> None:
        """End the training and put the trained places back to their base, bit by bit; what is dense stays.

        Raises `AdaptationError` once the tuning is over.
        """
        self._check_going_on()
        for part in self._parts.values():
            part.revert_()
        self.release()

    def release(self) -> None:
        """End the training and leave the weights as they are; again, it does nothing."""
        if self._over:
            return
        self._over = True
        while self._removers:
            self._removers.pop()()
        delattr(self.model, _IGNORED)
        if self._ignored_before is not None:
            setattr(self.model, _IGNORED, self._ignored_before)

    def _check_going_on(self) -> None:
        if self._over:
            raise AdaptationError("this tuning is over: make another to go on")

    def _moved(self) -> dict[str, Tensor]:
        """Statistics that are others than at the beginning."""
        before = self._statistics
        return {name: buffer for name, buffer in _statistics(self.model) if digest(buffer) != before.get(name)}

    @contextmanager
    def dense_gradients(self) -> Iterator[None]:
        """Within, weights get dense gradients before those of the values are taken, for hooks on them to see."""
        kept = {module: module.kept for module in self.model.modules() if isinstance(module, KeptLinear)}
        for module in kept:
            release_(module)
        try:
            yield
        finally:
            for module, places in kept.items():
                keep_(module, places)

    def replace(self, support: Mapping[str, Tensor], *optimizers: Optimizer) -> None:
        """Train other places from now on, of each tensor as many as before.

        What is left goes back to its base. What is new starts at a difference of 0, with no past in the optimizers.

        Raises `AdaptationError` for other tensors, or other numbers of places.
        """
        joined = Masks(support).joined(self.model)
        for name in sorted(joined.keys() ^ self._parts.keys()):
            raise AdaptationError(f"{name}: is in only one of the old and the new support: give the same tensors")
        for name, mask in joined.items():
            if int(mask.sum()) != len(self._parts[name].places):
                raise AdaptationError(f"{name}: has another number of places than before: give as many")
        for name, mask in joined.items():
            self._parts[name].move_(mask, self.model.modules(), optimizers)

    def state_dict(self) -> dict[str, Any]:
        """Places, base and differences, to go on from; model and optimizer are saved apart."""
        return {
            name: {"places": part.places.clone(), "base": part.base.clone(), "values": part.values.detach().clone()}
            for name, part in self._parts.items()
        }

    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Go on from `state_dict()`, of a support of the same size: the weights are written.

        The model may hold the base, as when this object was made, or what was trained of it.

        Raises `AdaptationError` for the state of another support.
        """
        for name in sorted(state.keys() ^ self._parts.keys()):
            raise AdaptationError(f"{name}: is in only one of the state and the support: give that of this training")
        for name, part in self._parts.items():
            if state[name]["values"].shape != part.values.shape:
                raise AdaptationError(f"{name}: the state has another support: give that of this training")
        for name, part in self._parts.items():
            part.revert_()
            part.set_(state[name]["places"], state[name]["base"], state[name]["values"], self.model.modules())

    def __enter__(self) -> "Tuning":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _statistics(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Buffers that a state_dict has and that a forward pass may move: those of norms, and counters."""
    kept = set(model.state_dict(keep_vars=True))
    yield from ((name, buffer.detach()) for name, buffer in model.named_buffers() if name in kept)


class _Ignored(list[str]):
    """Names of parameters that DDP is to leave alone in this model, but not in a copy of it, which is not tuned."""

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return list, ()


_IGNORED = "_ddp_params_and_buffers_to_ignore"
"""Attribute in which DDP looks for the parameters that are not its own."""
