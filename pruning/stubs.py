"""Blocks of a model stood in for: they give back outputs that are known, and say what they are called with.

Where outputs are not known, as only those of the last block before are kept, a stand-in gives NaN. What reaches a block
from there is found as NaN, and what decides by it is refused.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pruning.batches import cut
from pruning.errors import ScoreError, SequenceError
from pruning.inputs import Inputs, copies_for, mapped, tensors_in
from pruning.memory import arguments_of

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
            # of inputs with NaN of their own, which a model may look for, nobody could tell those of stand-ins
            with nullcontext() if any(map(_has_nan, tensors_in(inputs))) else _NoDecisions(names[-1]):
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
    _check_seen(names[-1], found)
    for tensor in tensors_in((found["args"], found["kwargs"])):
        if _has_nan(tensor):
            for name, outputs in known.items():
                if any(map(_has_nan, tensors_in(outputs))):
                    raise SequenceError(f"{name}: its outputs have NaN: check its weights, and the inputs of the model")
            raise SequenceError(
                f"{names[-1]}: gets NaN: it reads more than the outputs of the block before it and of other stacks, or "
                "the model itself computes NaN"
            )
    return found


def forget(outputs: dict[str, Any], names: Sequence[str], number: int) -> None:
    """Of the blocks before block `number`, which has its inputs, keep the outputs of the ends of earlier stacks."""
    if number and stack_of(names[number - 1]) == stack_of(names[number]):
        del outputs[names[number - 1]]


def rehearse(model: nn.Module, names: Sequence[str], inputs: Inputs) -> None:
    """Raise `SequenceError` unless the model runs each block once, in this order, and calls it with the same where the
    blocks before it are stood in for: asked of one example, before anything is changed.
    """
    inputs = _first(inputs)
    ran: list[str] = []
    known: dict[str, Any] = {}

    def before(name: str, args: Any, kwargs: Any) -> None:
        number = len(ran)
        ran.append(name)
        if ran == list(names[: number + 1]):
            call = call_of_block(model, names[: number + 1], inputs, known)
            found, given = (list(tensors_in(each)) for each in ((call["args"], call["kwargs"]), (args, kwargs)))
            if len(found) != len(given) or not all(map(_same, found, given)):
                raise SequenceError(
                    f"{name}: gets other inputs where the blocks before it do not run: it depends on more than the "
                    "outputs of the block before it and of other stacks, or these write into what they get, or the "
                    "model keeps a state between its passes"
                )
            forget(known, names, number)

    def after(name: str, output: Any) -> None:
        known[name] = mapped(output, Tensor.clone)

    with ExitStack() as stack:
        for name in names:
            block = model.get_submodule(name)
            first = block.register_forward_pre_hook(
                lambda _, args, kwargs, name=name: before(name, args, kwargs), prepend=True, with_kwargs=True
            )
            last = block.register_forward_hook(lambda _, args, output, name=name: after(name, output))
            stack.callback(first.remove)
            stack.callback(last.remove)
        call_model(model, inputs)
    if ran != list(names):
        raise SequenceError(
            f"{type(model).__name__}: runs the blocks {', '.join(ran) or '(none)'}: name each that it runs once, in "
            "this order, with names="
        )


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal up to the rounding of their dtype."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if not one.is_floating_point():
        return torch.equal(one, other)
    scale = float(other.double().nan_to_num(0.0, 0.0, 0.0).abs().max()) if other.numel() else 0.0
    tolerance = 16 * torch.finfo(one.dtype).eps
    return torch.allclose(one.double(), other.double(), rtol=tolerance, atol=tolerance * scale, equal_nan=True)


def _first(inputs: Inputs) -> Inputs:
    """The first example of `inputs`, which takes less time; all of them where examples do not come first."""
    try:
        found: Inputs = cut(inputs, slice(0, 1))
    except ScoreError:
        return inputs
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


class _NoDecisions(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own
    """Refuses operators that turn NaN, which stand-ins give, into indices, conditions or numbers: those are not NaN."""

    def __init__(self, name: str):
        super().__init__()  # type: ignore[no-untyped-call]  # torch's own
        self._name = name

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = function(*args, **kwargs or {})
        made = [outputs] if not isinstance(outputs, list | tuple) else outputs
        number = function is torch.ops.aten._local_scalar_dense.default
        if number or any(isinstance(one, Tensor) and not one.is_floating_point() and one.numel() for one in made):
            for tensor in arguments_of(args, kwargs or {}):
                if _has_nan(tensor):
                    raise SequenceError(
                        f"{self._name}: the model decides by outputs of blocks before the last one ({function}), which "
                        "do not run again: prune the whole model"
                    )
        return outputs


def _has_nan(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and not tensor.is_meta and bool(tensor.isnan().any())


def _check_seen(name: str, call: Call) -> None:
    """Raise `SequenceError` for arguments that are objects with tensors, which nobody would see, and for no tensor."""
    if not any(True for _ in tensors_in((call["args"], call["kwargs"]))):
        raise SequenceError(f"{name}: gets no tensor: give blocks that are called with what they transform")
    for value in (*call["args"], *call["kwargs"].values()):
        inside = getattr(value, "__dict__", None)
        if (
            not isinstance(value, Tensor | nn.Module)
            and not any(True for _ in tensors_in(value))
            and any(True for _ in tensors_in(inside))
        ):
            raise SequenceError(
                f"{name}: gets a {type(value).__name__} with tensors in its attributes, where they are not seen: hand "
                "them on in tuples, mappings or dataclasses"
            )


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
