"""Block by block: a network is pruned in the memory of one block, each seeing what the pruned ones before it compute.

As in GPTQ and SparseGPT (Frantar & Alistarh 2023) and Wanda (Sun et al. 2023), for any model that runs its blocks in
order, whatever lies between them.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from pruning.checksums import checksum
from pruning.decomposed import module_by_module
from pruning.errors import CoverageWarning, MaskError, ParameterError, PruningError, SequenceError
from pruning.evidence import Evidence
from pruning.inputs import Inputs, mapped, tensors_in
from pruning.masks import Masks
from pruning.modes import eval_mode
from pruning.parameters import check_values, kernels, named, unwrapped, within
from pruning.stubs import Call, call_of_block, forget, rehearse, without_cache

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
            found += [within(name, child) for child in module._modules]
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
            the outputs of the last one and of the ends of earlier stacks; batches that differ from block to block; a
            weight that two blocks share.
        Others: those of `step`, with the name of the block before them.

    Warns:
        CoverageWarning: without `parameters`, less than half of the prunable weights lie in the blocks.
    """
    model = unwrapped(model)
    names = _checked_names(model, names)
    check_values(dict(model.named_parameters()))
    if torch.is_inference_mode_enabled():
        raise SequenceError("blocks cannot be pruned in inference_mode: call sequentially outside of it")
    chosen = _chosen(model, names, parameters)
    held = None if masks is None else Masks(masks)
    if held is not None:
        held.check(model)
    found: dict[str, Tensor] = {}
    known: list[dict[str, Any]] = []  # batch by batch, the outputs of some blocks
    digests: list[str] = []
    with torch.no_grad(), eval_mode(model), without_cache(model), module_by_module():
        for inputs in islice(batches, 1):
            rehearse(model, names, inputs)
        if held is not None:
            held.apply_(model)
        for number, name in enumerate(names):
            calls = []
            for index, inputs in enumerate(batches):
                if not number:
                    known.append({})
                    digests.append(_digest(inputs))
                elif index >= len(known) or _digest(inputs) != digests[index]:
                    raise SequenceError(
                        f"{name}: batches are others than for the block before, as of a shuffled loader: give a list, "
                        "or what is the same each time it is iterated"
                    )
                calls.append(call_of_block(model, names[: number + 1], inputs, known[index]))
                forget(known[index], names, number)
            if not calls or len(calls) < len(known):
                raise SequenceError(
                    f"{name}: there are {len(calls)} batches: give a list, or what can be iterated again for each block"
                )
            block = model.get_submodule(name)
            with _placed(block, device) as home:
                calls = [mapped(call, lambda x: x.to(device or home)) for call in calls]
                masks_here = _pruned(block, name, calls, step, chosen[name], held)
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
        if not name or name not in modules:
            raise SequenceError(f"names: {name!r} is no module of the model: give names as blocks(model) does")
        if any(other.startswith(f"{name}.") for other in names):
            raise SequenceError(f"names: {name} holds another of them: give blocks that lie beside each other")
    return tuple(names)


def _chosen(
    model: nn.Module, names: Sequence[str], parameters: Mapping[str, nn.Parameter] | None
) -> dict[str, dict[str, nn.Parameter]]:
    """The parameters that may be pruned, by block, and by their names in it."""
    every = list(kernels(model) if parameters is None else parameters)
    lost = [key for key in parameters or () if not any(key.startswith(f"{name}.") for name in names)]
    if lost:
        raise SequenceError(f"{lost[0]}: is in no block: leave it out of parameters=, or name its block with names=")
    found: dict[str, dict[str, nn.Parameter]] = {name: {} for name in names}
    own = named(model)
    for key in every:
        if key not in own:
            raise ParameterError(f"{key}: the model has no such parameter: give those of prunable(model)")
    owners: dict[int, str] = {}
    wanted = {id(own[key]) for key in every}
    for name in names:
        for key, parameter in model.get_submodule(name).named_parameters():
            if id(parameter) in wanted:
                if owners.setdefault(id(parameter), name) != name:
                    raise SequenceError(
                        f"{name}.{key}: is tied to a weight of {owners[id(parameter)]}, which is pruned before it: "
                        "leave it out of parameters="
                    )
                found[name][key] = parameter
    if not any(found.values()):
        raise ParameterError(
            f"{names[0]}: has no weight that may be pruned, or only frozen ones: give parameters=prunable(model, "
            "frozen=True), without those outside of the blocks"
        )
    inside = sum(p.numel() for part in found.values() for p in part.values())
    whole = sum(own[key].numel() for key in every)
    if parameters is None and inside < whole / 2:
        warnings.warn(
            f"{type(model).__name__}: only {inside / whole:.1%} of what may be pruned lies in its blocks {names[0]} to "
            f"{names[-1]}: name others with names=, or prune the whole model",
            CoverageWarning,
            stacklevel=3,
        )
    return found


def _digest(inputs: Inputs) -> str:
    """What tells one batch from another."""
    tensors = {str(number): tensor.detach().cpu().contiguous() for number, tensor in enumerate(tensors_in(inputs))}
    return checksum("", tensors, shapes=True)


def _pruned(
    block: nn.Module,
    name: str,
    calls: Sequence[Call],
    step: Step,
    chosen: Mapping[str, nn.Parameter],
    masks: Mapping[str, Tensor] | None,
) -> Mapping[str, Tensor]:
    """The masks that `step` makes for a block, by names in it; they hold in its weights."""
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
