"""Training of a subnetwork alone: a network whose other weights do not move by a bit.

The support is a `Masks`, True = trained, so whatever makes masks chooses what is trained. The weight itself holds base
+ difference at all times: the forward pass is the layer's own, and the network is the merged one. The trained parameter
is the difference, in float32 where weights are in half precision, of which most would not move by a step otherwise;
weight decay pulls towards the base.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.optim import Optimizer

from pruning.adaptation.delta import Change, Delta, digest, read, write_
from pruning.adaptation.kept import Kept, can_keep, gather_gradient, keep_, release_
from pruning.attachment import ELEMENTWISE, optimizers_in
from pruning.errors import AdaptationError
from pruning.masks import Masks
from pruning.parameters import Choice, check_values, check_whole, first_names, named, prunable, unwrapped, users_of

_FACTORED = frozenset({torch.optim.Adafactor}) if hasattr(torch.optim, "Adafactor") else frozenset()


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
        values: name -> vector of the differences, float32 or float64, in the order of the places in the weight.
    """

    def __init__(
        self, model: nn.Module, support: Mapping[str, Tensor], dense: Choice | None = None, averaged: bool = True
    ):
        """Freeze `model` but for `support` and `dense`.

        Args:
            model: any; give it before it is wrapped in DDP, which then leaves the differences to this object.
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
        if _MARK in vars(self.model):
            raise AdaptationError(f"{type(self.model).__name__}: is tuned already: finish() that tuning first")
        joined = Masks(support).joined(self.model)
        self._dense = {} if dense is None else prunable(self.model, include=dense, frozen=True)
        first = first_names(self.model)
        both = sorted(first[name] for name in self._dense if first[name] in joined)
        if both:
            raise AdaptationError(f"{both[0]}: is in the support and in dense=: leave it out of one of them")
        self.values: dict[str, nn.Parameter] = {}
        self._places: dict[str, Tensor] = {}
        self._base: dict[str, Tensor] = {}
        self._removers: list[Callable[[], None]] = []
        self._required = {name: parameter.requires_grad for name, parameter in parameters.items()}
        for name, mask in joined.items():
            places = mask.reshape(-1).nonzero()[:, 0]
            if len(places):
                base = read(parameters[name], places)
                self._places[name], self._base[name] = _narrow(places, mask.numel()), base
                self.values[name] = nn.Parameter(torch.zeros_like(base, dtype=_wide(base.dtype)))
        if not self.values and not self._dense:
            raise AdaptationError("the support is empty, and nothing is dense: nothing would be trained")
        for parameter in parameters.values():
            parameter.requires_grad_(False)
        for parameter in self._dense.values():
            parameter.requires_grad_(True)
        several = averaged and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        users = users_of(self.model)
        for name in self.values:
            self._watch(name, parameters[name], users[id(parameters[name])], several)
        self._ignored_before = vars(self.model).get(_IGNORED)
        setattr(self.model, _IGNORED, [*(self._ignored_before or ()), *(n for n in first if first[n] in self.values)])
        setattr(self.model, _MARK, True)

    def parameters(self) -> Iterator[nn.Parameter]:
        """What an optimizer is to train, or a norm of gradients to clip: the differences, and what is dense."""
        yield from self.values.values()
        yield from self._dense.values()

    @property
    def count(self) -> int:
        """Number of trained weights, those of `dense` aside."""
        return sum(values.numel() for values in self.values.values())

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
            if type(every[-1]) not in ELEMENTWISE - _FACTORED:
                raise AdaptationError(
                    f"{kind}: is not known to treat every weight by itself: take Adam or SGD of torch.optim"
                )
            if not any(id(p) in own for group in optimizer.param_groups for p in group["params"]):
                raise AdaptationError(f"{kind}: trains none of the differences: make it of tuning.parameters()")
            self._removers.append(every[-1].register_step_post_hook(lambda *_: self.write_()).remove)

    @torch.no_grad()
    def write_(self) -> None:
        """Let the weights be base + difference, rounded to their dtype: after the values were changed by hand."""
        parameters = named(self.model)
        for name, values in self.values.items():
            base = self._base[name]
            write_(parameters[name], self._places[name].long(), (base.to(values) + values).to(base))

    def delta(self, dtype: torch.dtype | None = None) -> Delta:
        """The differences up to now, rounded to `dtype` where one is given, and copies of what is dense.

        Raises `AdaptationError` for differences that are not finite.
        """
        parameters = named(self.model)
        changes = {}
        for name, values in self.values.items():
            if not bool(torch.isfinite(values).all()):
                raise AdaptationError(f"{name}: has differences that are not finite: training diverged")
            places = self._places[name].long()
            base = parameters[name].detach().clone()
            write_(base, places, self._base[name])
            found = values.detach().to(dtype or values.dtype, copy=True)
            changes[name] = Change(base.shape, base.dtype, digest(base), places, found)
        return Delta(changes, {name: p.detach().clone() for name, p in self._dense.items()})

    def finish(self, dtype: torch.dtype | None = None) -> Delta:
        """End the training: the delta; the weights stay as they are, or as the delta rounded to `dtype` gives them.

        Parameters are as trainable as they were before.
        """
        delta = self.delta(dtype)
        with torch.no_grad():
            for name, change in delta.changes.items():
                self.values[name].copy_(change.values)
        self.write_()
        self.release()
        return delta

    @torch.no_grad()
    def revert(self) -> None:
        """End the training and put the trained places back to their base, bit by bit; what is dense stays."""
        parameters = named(self.model)
        for name, base in self._base.items():
            write_(parameters[name], self._places[name].long(), base)
        self.release()

    def release(self) -> None:
        """End the training and leave the weights as they are; again, it does nothing."""
        if _MARK not in vars(self.model):
            return
        while self._removers:
            self._removers.pop()()
        for name, parameter in named(self.model).items():
            parameter.requires_grad_(self._required[name])
        delattr(self.model, _MARK)
        delattr(self.model, _IGNORED)
        if self._ignored_before is not None:
            setattr(self.model, _IGNORED, self._ignored_before)

    def state_dict(self) -> dict[str, Any]:
        """The differences and what they are differences to, to go on from; model and optimizer are saved apart."""
        return {"values": {n: v.detach().clone() for n, v in self.values.items()}, "base": dict(self._base)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`, of the same support: the weights are written.

        The model may hold the base, as when this object was made, or what was trained of it.

        Raises `AdaptationError` for the state of another support.
        """
        for name in sorted(state["values"].keys() ^ self.values.keys()):
            raise AdaptationError(f"{name}: is in only one of the state and the support: give that of this training")
        with torch.no_grad():
            for name, values in self.values.items():
                if state["values"][name].shape != values.shape:
                    raise AdaptationError(f"{name}: the state has another support: give that of this training")
                values.copy_(state["values"][name])
                self._base[name].copy_(state["base"][name])
        self.write_()

    def __enter__(self) -> "Tuning":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _watch(self, name: str, weight: nn.Parameter, users: list[tuple[nn.Module, str]], averaged: bool) -> None:
        """Let the values of a weight get its gradient at their places; see `kept`."""
        values, places = self.values[name], self._places[name]
        if all(can_keep(module, attribute, len(places)) for module, attribute in users):
            kept = Kept(values, (int(weight.shape[0]), int(weight.shape[1])), places)
            for module, _ in users:
                keep_(module, kept)
                self._removers.append(partial(release_, module))

        def gather(_: Tensor) -> None:
            gather_gradient(weight, values, places)
            if averaged:
                _average(values)

        weight.requires_grad_(True)
        hooks = {weight: gather} | ({values: _average} if averaged else {})
        for parameter, hook in hooks.items():
            handle: Any = parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]  # torch's
            self._removers.append(handle.remove)


_MARK = "_tuned"
"""Attribute of a model that is tuned."""

_IGNORED = "_ddp_params_and_buffers_to_ignore"
"""Attribute in which DDP looks for the parameters that are not its own."""


def _average(values: Tensor) -> None:
    """The mean of the gradient over all processes. What was averaged before, while gradients accumulate, is its own
    mean, so that only what is new counts.
    """
    assert values.grad is not None
    dist.all_reduce(values.grad)
    values.grad /= dist.get_world_size()


def _narrow(places: Tensor, end: int) -> Tensor:
    return places.int() if end < 2**31 else places


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype of differences to weights of `dtype`."""
    return torch.promote_types(dtype, torch.float32)
