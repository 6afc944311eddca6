"""Operators that put tensors together along a dimension, or take parts of it."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from pruning.structure.coupling.labels import Axes, Axis, Labelling, Rule, argument
from pruning.structure.recording.tape import Call


def _cat(state: Labelling, call: Call) -> Sequence[Axes]:
    tensors = [ref for ref in call.args[0] if state.shape(ref) != (0,)]
    dim = argument(call, 1, "dim", 0) % len(state.made(call))
    found: list[Axis | None] = []
    for i in range(len(state.made(call))):
        axes = [state.of(ref)[i] for ref in tensors]
        if i != dim:
            found.append(state.tie(axes, all(a.holds_zeros for a in axes if a)))
            continue
        sizes = [state.shape(ref)[i] for ref in tensors]
        if all(a is None for a in axes):
            found.append(None)
            continue
        parts = [a if a is not None else _anchored(state, size) for a, size in zip(axes, sizes, strict=True)]
        found.append(Axis(np.concatenate([a.labels for a in parts]), all(a.holds_zeros for a in axes if a)))
    return [tuple(found)]


def _anchored(state: Labelling, size: int) -> Axis:
    """New, fixed labels for a part of a dimension whose other parts may go."""
    labels = np.arange(state.size, state.size + size, dtype=np.int64)
    state.size += size
    axis = Axis(labels, False)
    state.fix(axis)
    return axis


def _stack(state: Labelling, call: Call) -> Sequence[Axes]:
    tensors = call.args[0]
    dim = argument(call, 1, "dim", 0) % len(state.made(call))
    tied = []
    for i in range(len(state.of(tensors[0]))):
        axes = [state.of(ref)[i] for ref in tensors]
        tied.append(state.tie(axes, all(a.holds_zeros for a in axes if a)))
    tied.insert(dim, None)
    return [tuple(tied)]


def _split(state: Labelling, call: Call) -> Sequence[Axes]:
    """Equal parts stay equal, as a chunk makes them: index i of each goes with index i of the others. Unequal ones have
    sizes that the module knows, and shrink on their own; those of a chunk, whose last is smaller, can not."""
    axes = state.of(call.args[0])
    dim = argument(call, 2, "dim", 0) % len(axes)
    sizes = [state.made(call, i)[dim] for i in range(len(call.outputs))]
    if len(set(sizes)) == 1:
        parts = [_equal_parts(state, axes[dim], sizes)] * len(sizes)
    elif not isinstance(call.args[1], tuple):
        state.fix(axes[dim])
        parts = [None] * len(sizes)
    else:
        parts = _unequal_parts(state, axes[dim], sizes)
    return [(*axes[:dim], part, *axes[dim + 1 :]) for part in parts]


def _unequal_parts(state: Labelling, axis: Axis | None, sizes: Sequence[int]) -> list[Axis | None]:
    if axis is None:
        return [None] * len(sizes)
    parts: list[Axis | None] = [replace(axis, labels=part) for part in np.split(axis.labels, np.cumsum(sizes)[:-1])]
    for i, size in enumerate(sizes):
        if size < 2:
            state.fix(parts[i])
            parts[i] = None
    return parts


def _equal_parts(state: Labelling, axis: Axis | None, sizes: Sequence[int]) -> Axis | None:
    if axis is None or len(sizes) == 1:
        return axis
    if len(set(sizes)) > 1 or sizes[0] < 2:
        state.fix(axis)
        return None
    grid = axis.labels.reshape(len(sizes), sizes[0])
    state.equate(grid[:1], grid)
    return replace(axis, labels=grid[0])


def _slice(state: Labelling, call: Call) -> Sequence[Axes]:
    """All of a dimension, or one of several equal parts of it (half of the channels); anything else fixes it."""
    axes, shape = list(state.of(call.args[0])), state.shape(call.args[0])
    dim = argument(call, 1, "dim", 0) % len(axes)
    size, kept = shape[dim], state.made(call)[dim]
    start, step = argument(call, 2, "start", 0) or 0, argument(call, 4, "step", 1)
    start = start + size if start < 0 else start
    if kept != size:
        equal = step == 1 and kept and size % kept == 0 and start % kept == 0
        axes[dim] = _equal_parts(state, axes[dim], [kept] * (size // kept) if equal else [1, 2])
    return [tuple(axes)]


def _select(state: Labelling, call: Call) -> Sequence[Axes]:
    axes = list(state.of(call.args[0]))
    state.fix(axes.pop(argument(call, 1, "dim") % len(axes)))
    return [tuple(axes)]


def _unbind(state: Labelling, call: Call) -> Sequence[Axes]:
    axes = list(state.of(call.args[0]))
    state.fix(axes.pop(argument(call, 1, "dim", 0) % len(axes)))
    return [tuple(axes)] * len(call.outputs)


def _reordered(state: Labelling, call: Call) -> Sequence[Axes]:
    """Flips and rolls of a dimension fix it."""
    axes = list(state.of(call.args[0]))
    dims = argument(call, 2, "dims", ()) if call.operator == "roll" else argument(call, 1, "dims")
    for dim in dims or range(len(axes)):
        state.fix(axes[dim])
        axes[dim] = None
    return [tuple(axes)]


def _pad(state: Labelling, call: Call) -> Sequence[Axes]:
    """What is padded with zeros has a fixed number of them at its ends."""
    axes = list(state.of(call.args[0]))
    widths, value = argument(call, 1, "pad"), argument(call, 2, "value", 0)
    for i, (before, after) in enumerate(zip(widths[::2], widths[1::2], strict=True)):
        dim = len(axes) - 1 - i
        axis = axes[dim]
        if axis is None or not (before or after):
            continue
        if call.operator != "constant_pad_nd" or value != 0 or before < 0 or after < 0:
            state.fix(axis)
            axes[dim] = None
            continue
        ends = [_anchored(state, width).labels for width in (before, after)]
        axes[dim] = replace(axis, labels=np.concatenate([ends[0], axis.labels, ends[1]]))
    return [tuple(axes)]


RULES: dict[str, Rule] = {
    **dict.fromkeys(("cat", "concat"), _cat),
    "stack": _stack,
    **dict.fromkeys(("split", "split_with_sizes", "unsafe_split", "unsafe_chunk", "chunk"), _split),
    "slice": _slice,
    "select": _select,
    "unbind": _unbind,
    **dict.fromkeys(("flip", "roll"), _reordered),
    **dict.fromkeys(
        ("constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "replication_pad1d", "replication_pad2d"), _pad
    ),
}
