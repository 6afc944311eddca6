"""A removal for a trial: whether a smaller model runs as the structure foresees, and where not."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from pruning.copying import copied, on_meta
from pruning.errors import first_line
from pruning.structure.coupling.cost_terms import Kept, left
from pruning.structure.coupling.structure import Structure
from pruning.structure.recording.tape import Call, ForwardError, Ref, Tape, record
from pruning.structure.removing.shrinking import adjust_, kept_indices, sliced

Fault = tuple[str, str]
"""A module, and what goes wrong there."""


@dataclass(frozen=True)
class Trial:
    """How a removal went.

    Attributes:
        fault: the first thing that went wrong; None if the smaller model runs as foreseen.
        changed: (class, attribute) of the integers that were changed for it.
        asks_values: it failed on the meta device, for want of values.
    """

    fault: Fault | None
    changed: frozenset[tuple[type, str]]
    asks_values: bool = False


def trial(model: nn.Module, structure: Structure) -> Trial:
    """Run a smaller `model` on the example inputs of `structure`, and compare it call by call."""
    if not structure.families:
        return Trial(None, frozenset())
    kept = _some(structure)
    small = _smaller(model, structure, kept)
    changed = adjust_(small, structure, kept)
    replaced = {name for name, module in small.named_modules() if type(module) is not type(model.get_submodule(name))}
    try:
        tape, failure = record(small, structure.inputs), None
    except ForwardError as error:
        tape, failure = error.tape, error
    olds, news = _compared(structure.tape, replaced), _compared(tape, replaced)
    fault = _difference(structure, kept, tape, olds, news)
    if fault is None and failure is not None:
        fault = failure.module, f"it fails when smaller: {first_line(failure.cause)}"
    elif fault is None and len(olds) != len(news):
        next_one = max(olds, news, key=len)[min(len(olds), len(news))]
        fault = next_one.module, f"it takes another course when smaller: {len(news)} operators instead of {len(olds)}"
    asks_values = structure.tape.abstract and failure is not None and "meta" in str(failure.cause)
    return Trial(fault, changed, asks_values)


def _difference(
    structure: Structure, kept: Kept, tape: Tape, olds: Iterable[Call], news: Iterable[Call]
) -> Fault | None:
    """The first call that is another one, or makes another shape, than foreseen."""
    for old, new in zip(olds, news, strict=False):
        if not structure.tape.counts(old):
            continue
        if _ALIKE.get(old.operator, old.operator) != _ALIKE.get(new.operator, new.operator):
            return new.module, f"it takes another course when smaller: {new.operator} instead of {old.operator}"
        numbers = _numbers(structure.tape, old), _numbers(tape, new)
        if repr(numbers[0]) != repr(numbers[1]):  # where nan is nan
            before, after = (", ".join(f"{x:.4g}" for x in part) for part in numbers)
            return new.module, (
                f"it takes a number from a size: {new.operator} with {after} when smaller, not {before}"
            )
        for value, made in zip(old.outputs, new.outputs, strict=True):
            foreseen = _foreseen(structure, value, kept)
            if tape.shapes[made] != foreseen:
                return new.module, (
                    f"{new.operator} makes {list(tape.shapes[made])} when smaller, not {list(foreseen)}: a size is "
                    "written into its forward pass"
                )
    return None


def _smaller(model: nn.Module, structure: Structure, kept: Kept) -> nn.Module:
    """`model` with fewer units, before its integers are adjusted; without values where the structure has none."""

    def shape(name: str, tensor: Tensor) -> list[int]:
        found = list(tensor.shape)
        for dim, indices in kept_indices(structure, name, kept):
            found[dim] = len(indices)
        return found

    if structure.tape.abstract:
        return on_meta(model, shape)
    return copied(model, lambda name, tensor: sliced(structure, kept, name, tensor))


def _numbers(tape: Tape, call: Call) -> list[float]:
    """What a call computes with: its fractions, whole numbers that are no sizes, and constants of the model's code."""
    kinds = float if call.operator in _SIZED else (int, float)
    found: list[float] = []
    if call.operator == "full":
        found.append(call.args[1])
    elif call.operator == "convolution":  # all but the groups, which may be channels
        found += [part for arguments in call.args[3:8] if isinstance(arguments, tuple) for part in arguments]
    for value in call.leaves:
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
        most = min(family.size - 2, 31) if family.size > 3 else family.size - 1  # one unit left may be a special case
        gone = 1 + alike[family.size] % most
        alike[family.size] += 1
        kept[family.first + rng.choice(family.size, gone, replace=False)] = False
    return kept
