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
from pruning.errors import MaskError, ParameterError, PruningError, ScoreError, SequenceError
from pruning.evidence import Evidence
from pruning.inputs import Inputs, mapped, tensors_in
from pruning.masks import Masks
from pruning.modes import eval_mode
from pruning.parameters import check_values, kernels, unwrapped
from pruning.stubs import Call, call_model, call_of_block, stack_of, without_cache

Step = Callable[[Evidence], Mapping[str, Tensor]]
"""From the evidence of one block to its masks; it may change the block's weights, as a compensation does."""


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
        if len(module) > 1 and len(kinds) == 1 and kernels(module, frozen=True) and not hasattr(module[0], "weight"):
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
        step: gets the evidence of one block: its name as `block`, its parameters by their names in the block, its
            inputs as batches, and a loss that runs it and returns its outputs. What it gives no masks of stays whole.
        names: the blocks, in the order in which they run; None: `blocks(model)`.
        parameters: those that may be pruned, by their names in `model`; None: `prunable` ones of the blocks.
        masks: what is alive, by names in `model`; None: everything.
        device: where a block is while it is worked on; None: where it is.

    An error of `step`, or an interruption, leaves the blocks before that one pruned: load the model again.

    Raises:
        MaskError: `step` keeps what `masks` removed, or gives masks of what is not prunable in its block.
        ParameterError: offloaded weights, whose values are not here, or only frozen ones.
        SequenceError: a block does not run exactly once, not in this order, or reads more of the blocks before it than
            the outputs of the last one and of the ends of earlier stacks.
        Others: those of `step`, with the name of the block before them.
    """
    model = unwrapped(model)
    names = _checked_names(model, names)
    check_values(dict(model.named_parameters()))
    if parameters is None and not any(kernels(model.get_submodule(name)) for name in names):
        raise ParameterError(
            f"{names[0]}: has no weight that may be pruned, or only frozen ones: give parameters=prunable(model, "
            "frozen=True), without those outside of the blocks"
        )
    lost = [key for key in parameters or () if not any(key.startswith(f"{name}.") for name in names)]
    if lost:
        raise SequenceError(f"{lost[0]}: is in no block: leave it out of parameters=, or name its block with names=")
    found: dict[str, Tensor] = {}
    known: list[dict[str, Any]] = []  # batch by batch, the outputs of some blocks
    with torch.no_grad(), eval_mode(model), without_cache(model):
        for inputs in islice(batches, 1):
            _rehearse(model, names, _first(inputs))
        for number, name in enumerate(names):
            calls = []
            for index, inputs in enumerate(batches):
                if not number:
                    known.append({})
                calls.append(call_of_block(model, names[: number + 1], inputs, known[index]))
                _forget(known[index], names, number)
            if not calls or len(calls) < len(known):
                raise SequenceError(
                    f"{name}: there are {len(calls)} batches: give a list, or what can be iterated again for each block"
                )
            block = model.get_submodule(name)
            with _placed(block, device) as home:
                calls = [mapped(call, lambda x: x.to(device or home)) for call in calls]
                masks_here = _pruned(block, name, calls, step, parameters, masks)
                found |= {f"{name}.{key}": mask.to(home) for key, mask in masks_here.items()}
                for outputs, call in zip(known, calls, strict=True):
                    outputs[name] = mapped(_run(block, call), lambda x: x.to(home))
    return Masks(found)


def _checked_names(model: nn.Module, names: Sequence[str] | None) -> tuple[str, ...]:
    if names is None:
        return blocks(model)
    modules = dict(model.named_modules())
    if isinstance(names, str) or not names:
        raise SequenceError(f"names={names!r}: give a list of names of modules, as blocks(model) does")
    for name in names:
        if name not in modules:
            raise SequenceError(f"names: {name} is no module of the model: give names as blocks(model) does")
    return tuple(names)


def _forget(outputs: dict[str, Any], names: Sequence[str], number: int) -> None:
    """Of the blocks before block `number`, which has its inputs, keep the outputs of the ends of earlier stacks."""
    if number and stack_of(names[number - 1]) == stack_of(names[number]):
        del outputs[names[number - 1]]


def _rehearse(model: nn.Module, names: Sequence[str], inputs: Inputs) -> None:
    """Raise `SequenceError` unless the model runs each block once, in this order, and calls it with the same where the
    blocks before it are stood in for: asked of one example, before anything is changed.
    """
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
            _forget(known, names, number)

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
    alive = None if masks is None else _alive(masks, name, chosen)
    if alive is not None:
        alive.apply_(block)
    try:
        with torch.enable_grad():
            given = step(Evidence(block, chosen, calls, _run, alive, count=_examples, block=name))
    except PruningError as error:
        inside = any(str(error).startswith(f"{key}:") for key in chosen)
        raise type(error)(f"{name}{'.' if inside else ': '}{error}") from error
    if not isinstance(given, Mapping):
        raise SequenceError(f"{name}: step returned a {type(given).__name__}: return masks, name in the block → tensor")
    for key in Masks(given) if given else ():
        if key not in chosen:
            raise MaskError(
                f"{name}.{key}: step gives masks of it, and it is not among what may be pruned: leave it out"
            )
    whole = Masks.dense(chosen) if alive is None else alive
    made = Masks({key: given[key].to(p.device) if key in given else whole[key] for key, p in chosen.items()})
    for key, mask in {} if alive is None else alive.items():
        if bool((made[key] & ~mask).any()):
            raise MaskError(f"{name}.{key}: step keeps weights that masks= removed: give prune within=evidence.masks")
    made.apply_(block)
    return made


def _alive(masks: Mapping[str, Tensor], name: str, chosen: Mapping[str, Tensor]) -> Masks:
    """What `masks` say of a block, by names in it."""
    for key in chosen:
        if f"{name}.{key}" not in masks:
            raise MaskError(f"{name}.{key}: is not in masks=: give masks of all parameters that may be pruned")
    return Masks({key: masks[f"{name}.{key}"] for key in chosen})


def _run(block: nn.Module, call: Call) -> Any:
    args, kwargs = mapped((call["args"], call["kwargs"]), Tensor.clone)  # a block may write into what it gets
    return block(*args, **kwargs)


def _examples(call: Call) -> float:
    """The number of rows of what the block transforms, which comes first."""
    return float(next(len(tensor) for tensor in tensors_in((call["args"], call["kwargs"])) if tensor.dim()))


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
