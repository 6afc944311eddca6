"""`trace`: find what belongs together in a model, and try out that it can be removed."""

from collections.abc import Iterable, Iterator

import numpy as np
from torch import Tensor, nn

from pruning.errors import StructureError
from pruning.inputs import Inputs
from pruning.parameters import unwrapped
from pruning.structure.shrinking import adjust_, is_whole, kept_indices, sliced
from pruning.structure.structure import Structure, structure_of
from pruning.structure.tape import Call, ForwardError, Tape, copied, on_meta, record
from pruning.structure.units import solve
from pruning.structure.volumes import Kept, left


def trace(model: nn.Module, example_inputs: Inputs, *, lossy: bool = False) -> Structure:
    """Find the units of `model`: channels, neurons and heads, each with everything that must go with it.

    One forward pass on the meta device, where tensors have shapes but no values (on the model's own where that is not
    possible), ties the dimensions of all tensors to each other. Then some units are removed for a trial, on the meta
    device too; modules that do not run as foreseen keep all they have, and the structure says so. Nothing of the model
    changes: weights, buffers, modes, hooks, device. A model inside `torch.compile` or DDP is unwrapped.

    Args:
        example_inputs: a tensor, a tuple of positional or a mapping of keyword arguments. One example will do.
        lossy: also units over which a layer norm, group norm, softmax or mean takes its statistics; the network
            without them is then another than the masked one.

    Raises:
        StructureError: the model does not run on these inputs, or cannot be made smaller anywhere.
    """
    model = unwrapped(model)
    return _tried(model, _recorded(model, example_inputs), example_inputs, lossy)


def _recorded(model: nn.Module, inputs: Inputs) -> Tape:
    try:
        return record(on_meta(model), inputs)
    except ForwardError:
        pass  # it asks for values, or has tensors that are no buffers
    try:
        return record(model, inputs)
    except ForwardError as failure:
        raise StructureError(
            f"{failure.module or type(model).__name__}: the model does not run on the example inputs "
            f"({type(failure.cause).__name__}: {_line(failure.cause)}): give inputs that it takes, as "
            "trace(model, (x, y)) or trace(model, {'name': x})"
        ) from failure


def _tried(model: nn.Module, tape: Tape, inputs: Inputs, lossy: bool) -> Structure:
    """Remove units for a trial until the smaller model runs as foreseen.

    Where it goes wrong, integers that were taken for sizes are left as they are, one by one; if that does not help,
    the modules are frozen.
    """
    frozen: dict[str, str] = {}
    constants: dict[type, tuple[str, ...]] = {}
    guesses: dict[type, Iterator[tuple[str, ...]]] = {}
    while True:
        held = frozenset((kind, attribute) for kind, attributes in constants.items() for attribute in attributes)
        structure = structure_of(solve(tape, frozenset(frozen), lossy), dict(frozen), inputs, held)
        if not structure.families:
            return structure
        fault = _fault(model, structure)
        if fault is None:
            return structure
        module, reason, changed = fault
        kind = type(model.get_submodule(_owner(dict(model.named_modules()), module)))
        guess = next(guesses.setdefault(kind, _guesses(changed.get(kind, set()))), None)
        constants[kind] = guess or ()
        if guess is not None:
            continue
        alike = _alike(model, module, frozen)
        if not alike:
            raise StructureError(
                f"{module or type(model).__name__}: {reason}, and freezing it does not help: "
                "remove channels by hand, or report the model"
            )
        frozen |= dict.fromkeys(alike, reason)


def _guesses(attributes: set[str]) -> Iterator[tuple[str, ...]]:
    """Which of the attributes that changed may be no sizes: one of them, or all."""
    yield from ((attribute,) for attribute in sorted(attributes))
    if len(attributes) > 1:
        yield tuple(sorted(attributes))


Fault = tuple[str, str, dict[type, set[str]]]
"""A module, what goes wrong there, and by class the attributes that were adjusted."""


def _fault(model: nn.Module, structure: Structure) -> Fault | None:
    """Where and how a model with fewer units goes wrong; None if it runs as foreseen."""
    kept = _some(structure)

    def shape(name: str, tensor: Tensor) -> list[int]:
        found = list(tensor.shape)
        for dim, indices in kept_indices(structure, name, kept):
            found[dim] = len(indices)
        return found

    if structure.tape.abstract:
        small = on_meta(model, shape)
    else:
        small = copied(model, lambda name, tensor: sliced(structure, kept, name, tensor))
    adjust_(small, structure, kept)
    changed = _changed(model, small)
    replaced = {name for name, module in small.named_modules() if type(module) is not type(model.get_submodule(name))}
    try:
        tape, failure = record(small, structure.inputs), None
    except ForwardError as error:
        tape, failure = error.tape, error
    before, after = _compared(structure.tape, replaced), _compared(tape, replaced)
    for old, new in zip(before, after, strict=False):
        if _ALIKE.get(old.operator, old.operator) != _ALIKE.get(new.operator, new.operator):
            reason = f"it takes another course when smaller: {new.operator} instead of {old.operator}"
            return new.module, reason, changed
        for value, made in zip(old.outputs, new.outputs, strict=True):
            foreseen = _foreseen(structure, value, kept)
            if tape.shapes[made] != foreseen:
                reason = (
                    f"{new.operator} makes {list(tape.shapes[made])} when smaller, not {list(foreseen)}: a size is "
                    "written into its forward pass"
                )
                return new.module, reason, changed
    if failure is not None:
        return failure.module, f"it fails when smaller: {_line(failure.cause)}", changed
    return None


def _changed(model: nn.Module, small: nn.Module) -> dict[type, set[str]]:
    """By class, the attributes in which the smaller model differs."""
    found: dict[type, set[str]] = {}
    for old, new in zip(model.modules(), small.modules(), strict=True):
        for attribute, value in vars(old).items():
            if is_whole(value) and vars(new).get(attribute) != value:
                found.setdefault(type(old), set()).add(attribute)
    return found


_ALIKE = {"unsafe_view": "view"}
"""Operators that are the same to us: `reshape` takes the one or the other, and copies where it must."""


def _compared(tape: Tape, replaced: Iterable[str]) -> list[Call]:
    """The calls that must be the same before and after: not of modules that have become another class."""
    inside = tuple(f"{name}." for name in replaced)
    return [
        call
        for call in tape.calls
        if call.operator != "clone" and call.module not in replaced and not call.module.startswith(inside)
    ]


def _foreseen(structure: Structure, value: int, kept: Kept) -> tuple[int, ...]:
    return tuple(
        size if axis is None else int(left(structure.unit[axis.labels], kept).sum())
        for axis, size in zip(structure.labels[value], structure.tape.shapes[value], strict=True)
    )


def _some(structure: Structure) -> Kept:
    """About a third of each family removed, at least one unit and not all."""
    kept = np.ones(structure.size, bool)
    rng = np.random.default_rng(0)
    for family in structure.families:
        gone = max(1, family.size // 3)
        kept[family.first + rng.choice(family.size, gone, replace=False)] = False
    return kept


def _alike(model: nn.Module, name: str, frozen: Iterable[str]) -> list[str]:
    """All modules that are frozen with the one at fault: those of the class of the innermost one that is not torch's
    own, with the torch modules directly in them. If they all are frozen already, the next one around it."""
    modules = dict(model.named_modules())
    while True:
        name = _owner(modules, name)
        alike = [n for n, module in modules.items() if type(module) is type(modules[name])]
        alike += [n for parent in alike for n in _own(modules, parent)]
        if new := sorted(set(alike) - set(frozen)):
            return new
        if not name:
            return []
        name = name.rpartition(".")[0]


def _owner(modules: dict[str, nn.Module], name: str) -> str:
    """The innermost module around `name`, or itself, that is not torch's own; or the model."""
    while name and type(modules[name]).__module__.startswith("torch.nn."):
        name = name.rpartition(".")[0]
    return name


def _own(modules: dict[str, nn.Module], parent: str) -> Iterable[str]:
    """The modules of torch.nn under `parent` that no other class is around."""
    for child, module in modules[parent].named_children():
        if type(module).__module__.startswith("torch.nn."):
            name = f"{parent}.{child}" if parent else child
            yield name
            yield from _own(modules, name)


def _line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
