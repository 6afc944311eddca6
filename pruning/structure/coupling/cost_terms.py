"""Parameters and multiply-accumulates, as sums of products of how many indices are left of each axis."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from pruning.products import GROUPED_PRODUCTS, MATRIX_PRODUCTS, VECTOR_PRODUCTS
from pruning.structure.coupling.labels import Array, Axes
from pruning.structure.recording.tape import Ref, Tape

_PRODUCTS = MATRIX_PRODUCTS | GROUPED_PRODUCTS

Kept = NDArray[np.bool_]
"""One bool a unit, True = kept."""

UnitsOf = Mapping[str, tuple[Array | None, ...]]
"""Tensor name → for each dimension the unit of every index (-1: it always stays), or None if all stay."""


def left(axis: Array, kept: Kept) -> Kept:
    """Which indices of an axis, given as the unit of each or -1, are left."""
    return (axis < 0) | kept[axis] if kept.size else axis < 0


@dataclass(frozen=True)
class CostTerm:
    """A product that a cost is a sum of: `constant` times the number of indices that are left of each axis."""

    constant: int
    axes: tuple[Array, ...]

    def value(self, kept: Kept) -> int:
        """Its value when only the `kept` units are left."""
        return self.constant * prod(int(left(axis, kept).sum()) for axis in self.axes)

    def shrunk(self) -> tuple[Array, Array]:
        """The units that occur in it, and by how much it shrinks when each of them goes alone."""
        units = np.unique(np.concatenate(self.axes)) if self.axes else np.empty(0, np.int64)
        units = units[units >= 0]
        rest = np.full(len(units), self.constant, np.int64)
        for axis in self.axes:
            rest *= len(axis) - np.bincount(np.searchsorted(units, axis[axis >= 0]), minlength=len(units))
        return units, self.constant * prod(len(axis) for axis in self.axes) - rest


def parameter_terms(tape: Tape, axes: UnitsOf) -> Iterator[CostTerm]:
    """One term a parameter, each storage once."""
    for name, value in tape.tensors.items():
        if name not in tape.buffers:
            yield _term(axes[name], tape.shapes[value])


def mac_terms(tape: Tape, labels: Mapping[int, Axes], unit: Array) -> Iterator[CostTerm]:
    """One term a matrix product or convolution of the tape's first pass."""
    for call in tape.calls[: tape.counted]:
        if call.operator == "convolution":
            # every weight of the kernel is used once at each output position; transposed, at each input position
            seen, kernel = call.args[0] if call.args[6] else Ref(call.outputs[0]), call.args[1].value
            shape, rank = tape.shapes[seen.value], len(tape.shapes[kernel]) - 2
            uses = prod(shape) // shape[-rank - 1]
            axes, sizes = labels[kernel], (*tape.shapes[kernel], uses)
        elif call.operator in _PRODUCTS:
            first = _PRODUCTS[call.operator]
            a, b = call.args[first].value, call.args[first + 1].value
            axes, sizes = (*labels[a], labels[b][-1]), (*tape.shapes[a], tape.shapes[b][-1])
        elif call.operator in VECTOR_PRODUCTS:
            a = call.args[VECTOR_PRODUCTS[call.operator]].value
            axes, sizes = labels[a], tape.shapes[a]
        elif call.operator == "trilinear":  # a bilinear form uses each weight once an example
            examples, weight = tape.shapes[call.args[0].value][0], call.args[1].value
            axes, sizes = labels[weight], (*tape.shapes[weight], examples)
        elif call.operator == "conv_tbc":
            weight, positions = call.args[1].value, prod(tape.shapes[call.outputs[0]][:-1])
            axes, sizes = labels[weight], (*tape.shapes[weight], positions)
        else:
            continue
        units = [None if axis is None else unit[axis.labels] for axis in axes]
        yield _term([*units, None][: len(sizes)], sizes)


def _term(axes: Iterable[Array | None], sizes: Iterable[int]) -> CostTerm:
    constant, moving = 1, []
    for axis, size in zip(axes, sizes, strict=True):
        if axis is None or not (axis >= 0).any():
            constant *= size
        else:
            moving.append(axis)
    return CostTerm(constant, tuple(moving))
