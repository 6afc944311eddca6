"""A removal for a trial: whether a smaller model runs as the structure foresees, and where not."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from torch import Tensor, nn

from pruning.structure.shrinking import adjust_, is_whole, kept_indices, sliced
from pruning.structure.structure import Structure
from pruning.structure.tape import Call, ForwardError, Ref, Tape, copied, leaves, on_meta, record
from pruning.structure.volumes import Kept, left

Fault = tuple[str, str, dict[type, set[str]]]
"""A module, what goes wrong there, and by class the attributes that were adjusted."""


def fault(model: nn.Module, structure: Structure) -> Fault | None:
    """Where and how a model with fewer units goes wrong; None if it runs as foreseen."""
    kept = _some(structure)
    small = _smaller(model, structure, kept)
    try:
        tape, failure = record(small, structure.inputs), None
    except ForwardError as error:
        tape, failure = error.tape, error
    changed = _changed(model, small)
    replaced = {name for name, module in small.named_modules() if type(module) is not type(model.get_submodule(name))}
    olds, news = _compared(structure.tape, replaced), _compared(tape, replaced)
    for old, new in zip(olds, news, strict=False):
        if structure.tape.unread.issuperset(old.outputs):
            continue
        if _ALIKE.get(old.operator, old.operator) != _ALIKE.get(new.operator, new.operator):
            reason = f"it takes another course when smaller: {new.operator} instead of {old.operator}"
            return new.module, reason, changed
        numbers = _numbers(structure.tape, old), _numbers(tape, new)
        if repr(numbers[0]) != repr(numbers[1]):  # where nan is nan
            before, after = (", ".join(f"{x:.4g}" for x in part) for part in numbers)
            reason = f"it takes a number from a size: {new.operator} with {after} when smaller, not {before}"
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
        return failure.module, f"it fails when smaller: {first_line(failure.cause)}", changed
    if len(olds) != len(news):
        longer = max(olds, news, key=len)
        reason = f"it takes another course when smaller: {len(news)} operators instead of {len(olds)}"
        return longer[min(len(olds), len(news))].module, reason, changed
    return None


def _smaller(model: nn.Module, structure: Structure, kept: Kept) -> nn.Module:
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
    return small


def adjusted(model: nn.Module, structure: Structure) -> dict[type, set[str]]:
    """By class, the integers that a removal changes beside those of torch's own modules."""
    kept = _some(structure)
    small = _smaller(model, structure, kept)
    own = _changed(model, small)
    untouched = replace(structure, constants=frozenset((kind, name) for kind, names in own.items() for name in names))
    torchs = _changed(model, _smaller(model, untouched, kept))
    return {kind: names - torchs.get(kind, set()) for kind, names in own.items()}


def _changed(model: nn.Module, small: nn.Module) -> dict[type, set[str]]:
    """By class, the attributes in which the smaller model differs."""
    found: dict[type, set[str]] = {}
    for old, new in zip(model.modules(), small.modules(), strict=True):
        for attribute, value in vars(old).items():
            if is_whole(value) and vars(new).get(attribute) != value:
                found.setdefault(type(old), set()).add(attribute)
    return found


def _numbers(tape: Tape, call: Call) -> list[float]:
    """What a call computes with: its fractions, whole numbers that are no sizes, and constants of the model's code."""
    kinds = float if call.operator in _SIZED else (int, float)
    found: list[float] = []
    if call.operator == "full":
        found.append(call.args[1])
    elif call.operator == "convolution":  # all but the groups, which may be channels
        found += [part for arguments in call.args[3:8] if isinstance(arguments, tuple) for part in arguments]
    for value in leaves(call):
        if isinstance(value, Ref):
            found += [tape.constants[value.value]] if value.value in tape.constants else []
        elif isinstance(value, kinds) and not isinstance(value, bool):
            found.append(value)
    return found


_VIEWS = ("view", "unsafe_view", "reshape", "reshape_alias", "expand", "repeat", "slice", "as_strided")
_PARTS = ("split", "split_with_sizes", "unsafe_split")
_MADE = ("zeros", "ones", "full", "empty", "empty_strided", "arange", "affine_grid_generator")
_NEW = ("new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided")
_NORMS = ("native_layer_norm", "fused_rms_norm", "rms_norm", "native_group_norm")
_SIZED = frozenset((*_VIEWS, *_PARTS, *_MADE, *_NEW, *_NORMS, "convolution"))
"""Operators whose whole numbers may be sizes of what shrinks; those of all others stay the same."""

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
    """Some units of each family removed: of families of one size different numbers, so that code in which two such
    sizes must be the same is found out."""
    kept = np.ones(structure.size, bool)
    rng = np.random.default_rng(0)
    alike: Counter[int] = Counter()
    for family in structure.families:
        most = min(family.size - 2, 7) if family.size > 3 else family.size - 1  # one unit left may be a special case
        gone = 1 + alike[family.size] % most
        alike[family.size] += 1
        kept[family.first + rng.choice(family.size, gone, replace=False)] = False
    return kept


def first_line(error: BaseException) -> str:
    """What an error says, without what follows."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
