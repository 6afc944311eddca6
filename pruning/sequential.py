"""Block by block: a network is pruned in the memory of one block, each seeing what the pruned ones before it compute.

As in GPTQ and SparseGPT (Frantar & Alistarh 2023) and Wanda (Sun et al. 2023), for any model that runs its blocks in
order, whatever lies between them.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from pruning.batches import cut
from pruning.errors import ScoreError, SequenceError
from pruning.evidence import Evidence
from pruning.inputs import Inputs, arguments, mapped, tensors_in
from pruning.masks import Masks
from pruning.modes import eval_mode
from pruning.parameters import kernels, unwrapped

Step = Callable[[Evidence], Mapping[str, Tensor]]
"""From the evidence of one block to its masks; it may change the block's weights, as a compensation does."""

Call = dict[str, Any]
"""One call of a block: `args` and `kwargs`."""


def blocks(model: nn.Module) -> tuple[str, ...]:
    """Names of the repeated blocks, stack by stack: the items of every outermost list of modules of one class.

    Raises:
        SequenceError: there is no such list.
    """
    found: list[str] = []
    for name, module in unwrapped(model).named_modules():
        if any(name.startswith(f"{known}.") for known in found) or not isinstance(
            module, nn.ModuleList | nn.Sequential
        ):
            continue
        kinds = {type(item) for item in module}
        if len(module) > 1 and len(kinds) == 1 and kernels(module) and not hasattr(module[0], "weight"):
            found += [f"{name}.{number}" if name else str(number) for number in range(len(module))]
    if not found:
        raise SequenceError(f"{type(model).__name__}: has no list of blocks of one class: name them with names=")
    return tuple(found)


def sequentially(
    model: nn.Module,
    batches: Iterable[Inputs],
    step: Step,
    names: Sequence[str] | None = None,
    parameters: Mapping[str, nn.Parameter] | None = None,
    masks: Mapping[str, Tensor] | None = None,
    device: torch.device | str | None = None,
) -> Masks:
    """Prune the blocks of `model` one after the other, in the model; the masks of all of them.

    A block is run twice a batch: by `step`, for what it asks of the evidence, and pruned, for the inputs of the next.
    In between the model itself runs from its inputs to the next block, with the blocks before it skipped, so that the
    arguments of a block are always those that the model gives it. Memory: the model, two sets of activations (the
    inputs and the outputs of one block for all batches), and what `step` needs for one block.

    Args:
        model: runs in eval mode, without a cache of keys and values.
        batches: what the model is called with; iterated once for each block, so a list, or read again each time.
        step: gets the evidence of one block: its parameters by their names in the block, its inputs as batches, and a
            loss that runs it and returns its outputs.
        names: the blocks, in the order in which they run; None: `blocks(model)`.
        parameters: those that may be pruned, by their names in `model`; None: `prunable` ones of the blocks.
        masks: what is alive, by names in `model`; None: everything.
        device: where a block is while it is worked on; None: where it is.

    Raises:
        SequenceError: a block does not run exactly once, not in this order, or reads more of the blocks before it than
            the outputs of the last one and of the ends of earlier stacks.
        Others: those of `step`.
    """
    model = unwrapped(model)
    names = blocks(model) if names is None else tuple(names)
    lost = [key for key in parameters or () if not any(key.startswith(f"{name}.") for name in names)]
    if lost:
        raise SequenceError(f"{lost[0]}: is in no block: leave it out of parameters=, or name its block with names=")
    _check_order(model, names, batches)
    found: dict[str, Tensor] = {}
    known: list[dict[str, Any]] = []  # batch by batch, the outputs of some blocks
    with torch.no_grad(), eval_mode(model), _without_cache(model):
        for number, name in enumerate(names):
            calls = []
            for index, inputs in enumerate(batches):
                if not number:
                    known.append({})
                calls.append(_call(model, names[: number + 1], inputs, known[index]))
            if not calls or len(calls) < len(known):
                raise SequenceError(f"{name}: there are {len(calls)} batches: give a list, iterated for each block")
            block = model.get_submodule(name)
            with _placed(block, device) as home:
                calls = [mapped(call, lambda x: x.to(device or home)) for call in calls]
                masks_here = _pruned(block, name, calls, step, parameters, masks)
                found |= {f"{name}.{key}": mask.to(home) for key, mask in masks_here.items()}
                for outputs, call in zip(known, calls, strict=True):
                    if number and _stack(names[number - 1]) == _stack(name):
                        del outputs[names[number - 1]]
                    outputs[name] = mapped(_run(block, call), lambda x: x.to(home))
    return Masks(found)


def _check_order(model: nn.Module, names: Sequence[str], batches: Iterable[Inputs]) -> None:
    """Raise `SequenceError` unless the model runs each of the blocks once and in this order, with the first example."""
    ran: list[str] = []
    with ExitStack() as stack, torch.no_grad(), eval_mode(model):
        for name in names:
            hook = model.get_submodule(name).register_forward_pre_hook(lambda *_, name=name: ran.append(name))
            stack.callback(hook.remove)
        for inputs in islice(batches, 1):
            args, kwargs = arguments(_first(inputs))
            model(*args, **kwargs)
            if ran != list(names):
                raise SequenceError(
                    f"{type(model).__name__}: runs the blocks {', '.join(ran) or '(none)'}: name each that it runs "
                    "once, in this order, with names="
                )


def _first(inputs: Inputs) -> Inputs:
    """The first example of `inputs`, which takes less time; all of them where examples do not come first."""
    try:
        found: Inputs = cut(inputs, slice(0, 1))
    except ScoreError:
        return inputs
    return found


def _pruned(
    block: nn.Module,
    name: str,
    calls: Sequence[Call],
    step: Step,
    parameters: Mapping[str, nn.Parameter] | None,
    masks: Mapping[str, Tensor] | None,
) -> Mapping[str, Tensor]:
    """The masks that `step` makes for a block, by names in it; they hold in its weights."""
    chosen = kernels(block)
    if parameters is not None:
        chosen = {key: p for key, p in block.named_parameters() if f"{name}.{key}" in parameters}
    if not chosen:
        return {}
    alive = None if masks is None else {key: masks[f"{name}.{key}"] for key in chosen}
    with torch.enable_grad():
        made = Masks(step(Evidence(block, chosen, calls, _run, alive, count=_examples)))
    made.apply_(block)
    return made


def _stack(name: str) -> str:
    return name.rpartition(".")[0]


def _run(block: nn.Module, call: Call) -> Any:
    args, kwargs = mapped((call["args"], call["kwargs"]), Tensor.clone)  # a block may write into what it gets
    return block(*args, **kwargs)


def _examples(call: Call) -> float:
    """The number of rows of what the block transforms, which comes first."""
    return float(len(next(tensors_in((call["args"], call["kwargs"])))))


class _Reached(Exception):  # noqa: N818  # no error: the model has come to the block that is worked on
    """Carries the arguments of that block."""

    def __init__(self, call: Call):
        super().__init__()
        self.call = call


def _call(model: nn.Module, names: Sequence[str], inputs: Inputs, known: Mapping[str, Any]) -> Call:
    """The arguments of the last block of `names`, as the model gives them after all the others.

    The others do not run: those of which the outputs are `known` return them, and the rest return NaN, so that a block
    that depends on them is found out.
    """
    waiting = list(names)
    args, kwargs = arguments(inputs)
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(_replaced(model.get_submodule(name), _stub(name, waiting, known)))
        try:
            model(*args, **kwargs)
        except _Reached as reached:
            found = reached.call
        else:
            raise SequenceError(f"{waiting[0]}: the model does not run it: name the blocks that run, with names=")
    for tensor in tensors_in((found["args"], found["kwargs"])):
        if tensor.is_floating_point() and bool(tensor.isnan().any()):
            raise SequenceError(
                f"{names[-1]}: gets NaN: it reads more than the outputs of the block before it and of other stacks, or "
                "the model itself computes NaN"
            )
    return found


def _stub(name: str, waiting: list[str], known: Mapping[str, Any]) -> Callable[..., Any]:
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
        end = [other for other in known if _stack(other) == _stack(name)][-1]
        return mapped(known[end], _unknown)

    return forward


def _unknown(tensor: Tensor) -> Tensor:
    return torch.full_like(tensor, torch.nan) if tensor.is_floating_point() else tensor.clone()


@contextmanager
def _replaced(block: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """`block` with another forward function, and its own again afterwards."""
    own = block.__dict__.get("forward")
    block.forward = forward
    try:
        yield
    finally:
        if own is None:
            del block.forward
        else:
            block.forward = own


@contextmanager
def _without_cache(model: nn.Module) -> Iterator[None]:
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


@contextmanager
def _placed(block: nn.Module, device: torch.device | str | None) -> Iterator[torch.device]:
    """`block` on `device` within, and where it was afterwards, which it gives."""
    home = next((p.device for p in block.parameters()), torch.device("cpu"))
    if device is not None:
        block.to(device)
    try:
        yield home
    finally:
        if device is not None:
            block.to(home)
