"""Blocks of a model stood in for: they give back outputs that are known, and say what they are called with."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pruning.errors import SequenceError
from pruning.inputs import Inputs, copies_for, mapped, tensors_in

Call = dict[str, Any]
"""One call of a block: `args` and `kwargs`."""


class _Reached(Exception):  # noqa: N818  # no error: the model has come to the block that is worked on
    """Carries the arguments of that block."""

    def __init__(self, call: Call):
        super().__init__()
        self.call = call


def call_model(model: nn.Module, inputs: Inputs) -> Any:
    """Run `model` on copies of `inputs`, as it may write into them, and without a cache that they ask for."""
    args, kwargs = copies_for(model, inputs)
    return model(*args, **kwargs | ({"use_cache": False} if "use_cache" in kwargs else {}))


def call_of_block(model: nn.Module, names: Sequence[str], inputs: Inputs, known: Mapping[str, Any]) -> Call:
    """The arguments of the last block of `names`, as the model gives them after all the others.

    The others do not run: those of which the outputs are `known` return them, and the rest return NaN, so that a block
    that depends on them is found out.
    """
    waiting = list(names)
    nans: dict[int, tuple[Tensor, int]] = {}
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(_replaced(model.get_submodule(name), _stub(name, waiting, known, nans)))
        try:
            call_model(model, inputs)
        except _Reached as reached:
            found = reached.call
        else:
            raise SequenceError(f"{waiting[0]}: the model does not run it: name the blocks that run, with names=")
    for value in (*found["args"], *found["kwargs"].values()):
        if hasattr(value, "get_seq_length"):
            raise SequenceError(
                f"{names[-1]}: gets a cache of earlier passes, which would grow: leave it out of batches"
            )
    for tensor in tensors_in((found["args"], found["kwargs"])):
        if tensor.is_floating_point() and bool(tensor.isnan().any()):
            for name, outputs in known.items():
                if any(bool(each.isnan().any()) for each in tensors_in(outputs) if each.is_floating_point()):
                    raise SequenceError(f"{name}: its outputs have NaN: check its weights, and the inputs of the model")
            raise SequenceError(
                f"{names[-1]}: gets NaN: it reads more than the outputs of the block before it and of other stacks, or "
                "the model itself computes NaN"
            )
    return found


def stack_of(name: str) -> str:
    """The name of the list that a block is in."""
    return name.rpartition(".")[0]


def _stub(
    name: str, waiting: list[str], known: Mapping[str, Any], nans: dict[int, tuple[Tensor, int]]
) -> Callable[..., Any]:
    """What runs in the place of a block; the last one that is waited for raises `_Reached`."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        if waiting[0] != name:
            raise SequenceError(
                f"{name}: runs before {waiting[0]} with other data than the first: its order must not depend on them"
            )
        if len(waiting) == 1:
            raise _Reached({"args": args, "kwargs": kwargs})
        del waiting[0]
        if name in known:
            return mapped(known[name], Tensor.clone)
        end = [other for other in known if stack_of(other) == stack_of(name)][-1]
        return mapped(known[end], lambda tensor: _unknown(tensor, nans))

    return forward


def _unknown(like: Tensor, nans: dict[int, tuple[Tensor, int]]) -> Tensor:
    """NaN in the place of real numbers: for all blocks one tensor, with its version, until the model writes into it."""
    if not like.is_floating_point():
        return like.clone()
    nan, version = nans.get(id(like), (None, 0))
    if nan is None or nan._version != version:
        nan = torch.full_like(like, torch.nan)
        nans[id(like)] = nan, nan._version
    return nan


@contextmanager
def _replaced(block: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """`block` with another forward function and without hooks, which run where it does, and its own afterwards."""
    own = {name: block.__dict__[name] for name in ("forward", *_HOOKS) if name in block.__dict__}
    block.__dict__.update({name: OrderedDict() for name in _HOOKS} | {"forward": forward})
    try:
        yield
    finally:
        del block.__dict__["forward"]
        block.__dict__.update(own)


_HOOKS = ("_forward_pre_hooks", "_forward_hooks")


@contextmanager
def without_cache(model: nn.Module) -> Iterator[None]:
    """Keep no keys and values of earlier passes: a block that runs twice would find its own."""
    every = [getattr(module, "config", None) for module in model.modules()]
    caching: list[Any] = [config for config in every if getattr(config, "use_cache", False)]
    try:
        for config in caching:
            config.use_cache = False
        yield
    finally:
        for config in caching:
            config.use_cache = True
