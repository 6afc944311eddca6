"""Operators that move elements about: views, transpositions, concatenations, slices."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from pruning.structure.labels import Axes, Axis, Labelling, Rule, Split, argument
from pruning.structure.tape import Call


def _view(state: Labelling, call: Call) -> Sequence[Axes]:
    axes, before, after = state.of(call.args[0]), state.shape(call.args[0]), state.made(call)
    if 0 in before:  # of nothing, any view is a view
        state.fix_all(axes)
        return [(None,) * len(after)]
    found: list[Axis | None] = []
    for old, new in _matching(before, after):
        flat = _merged(state, axes[old], before[old])
        found += _parted(state, flat, after[new], new.start)
    return [tuple(found)]


def _matching(before: Sequence[int], after: Sequence[int]) -> Iterator[tuple[slice, slice]]:
    """The smallest runs of dimensions that hold the same elements before and after a view."""
    i = j = 0
    while i < len(before) or j < len(after):
        start, begin = i, j
        left = before[i] if i < len(before) else 1
        right = after[j] if j < len(after) else 1
        i, j = min(i + 1, len(before)), min(j + 1, len(after))
        while left != right:
            if left < right:
                left, i = left * before[i], i + 1
            else:
                right, j = right * after[j], j + 1
        yield slice(start, i), slice(begin, j)


def _merged(state: Labelling, axes: Axes, shape: Sequence[int]) -> Axis | None:
    """One axis for several dimensions, the last of which runs fastest. Only one of them can keep its labels."""
    known = {i: axis for i, axis in enumerate(axes) if axis is not None}
    if not known:
        return None
    keep = max(known, key=lambda i: (not known[i].free, shape[i]))
    for i, axis in known.items():
        if i != keep:
            state.fix(axis)
    axis = known[keep]
    if len(shape) == 1:
        return axis
    aligned = axis.labels.reshape([-1 if i == keep else 1 for i in range(len(shape))])
    return replace(axis, labels=np.broadcast_to(aligned, shape).ravel())


def _parted(state: Labelling, flat: Axis | None, shape: Sequence[int], first: int) -> list[Axis | None]:
    """The axes of the dimensions, from number `first`, into which one is split: one of them keeps its labels."""
    found: list[Axis | None] = [None] * len(shape)
    wide = [i for i, size in enumerate(shape) if size > 1]
    if flat is None or not wide:
        return found
    if len(wide) == 1:
        found[wide[0]] = flat
        return found
    grid = flat.labels.reshape(shape)
    runs = {i: np.moveaxis(grid, i, 0).reshape(shape[i], -1) for i in wide}
    for i in wide:
        if (runs[i] == runs[i][:, :1]).all():  # the labels already depend on this one alone
            found[i] = replace(flat, labels=runs[i][:, 0])
            return found
    number = state.number
    if state.choices is None:
        parts = {i: state.fresh(shape[i], flat.zero) for i in wide}
        state.splits[number] = Split(flat.labels, {i + first: axis.labels for i, axis in parts.items() if axis})
        return [parts.get(i) for i in range(len(shape))]
    keep = state.choices.get(number, first + wide[0]) - first
    labels = runs[keep][:, 0] if keep in runs else runs[wide[0]][:, 0]
    keep = keep if keep in runs else wide[0]
    state.equate(labels[:, None], runs[keep])
    state.splits[number] = Split(flat.labels, {i + first: runs[i][:, 0] for i in wide})
    found[keep] = replace(flat, labels=labels)
    return found


def _permute(state: Labelling, call: Call) -> Sequence[Axes]:
    axes = state.of(call.args[0])
    return [tuple(axes[dim] for dim in argument(call, 1, "dims"))]


def _transpose(state: Labelling, call: Call) -> Sequence[Axes]:
    axes = list(state.of(call.args[0]))
    if call.operator == "t":
        return [tuple(reversed(axes))]
    first, second = call.args[1:3]
    axes[first], axes[second] = axes[second], axes[first]
    return [tuple(axes)]


def _squeeze(state: Labelling, call: Call) -> Sequence[Axes]:
    """Without dimensions of size 1: all of them, or those named."""
    axes, shape = state.of(call.args[0]), state.shape(call.args[0])
    dims = argument(call, 1, "dim", tuple(range(len(shape))))
    gone = {dim % len(shape) for dim in (dims if isinstance(dims, tuple) else (dims,))}
    return [tuple(a for i, a in enumerate(axes) if i not in gone or shape[i] != 1)]


def _unsqueeze(state: Labelling, call: Call) -> Sequence[Axes]:
    axes = list(state.of(call.args[0]))
    axes.insert(call.args[1] % (len(axes) + 1), None)
    return [tuple(axes)]


def _expand(state: Labelling, call: Call) -> Sequence[Axes]:
    axes, shape, before = state.of(call.args[0]), state.made(call), state.shape(call.args[0])
    first = len(shape) - len(axes)
    return [
        tuple(
            axes[i - first] if i >= first and before[i - first] == size else state.fresh(size, False, free=True)
            for i, size in enumerate(shape)
        )
    ]


def _repeat(state: Labelling, call: Call) -> Sequence[Axes]:
    axes, times = state.of(call.args[0]), call.args[1]
    axes = (None,) * (len(times) - len(axes)) + axes
    return [tuple(a and replace(a, labels=np.tile(a.labels, n)) for a, n in zip(axes, times, strict=True))]


def _cat(state: Labelling, call: Call) -> Sequence[Axes]:
    tensors = [ref for ref in call.args[0] if state.shape(ref) != (0,)]
    dim = argument(call, 1, "dim", 0) % len(state.made(call))
    found: list[Axis | None] = []
    for i in range(len(state.made(call))):
        axes = [state.of(ref)[i] for ref in tensors]
        if i != dim:
            found.append(state.tie(axes, all(a.zero for a in axes if a)))
            continue
        sizes = [state.shape(ref)[i] for ref in tensors]
        if all(a is None for a in axes):
            found.append(None)
            continue
        parts = [a if a is not None else _anchored(state, size) for a, size in zip(axes, sizes, strict=True)]
        found.append(Axis(np.concatenate([a.labels for a in parts]), all(a.zero for a in axes if a)))
    return [tuple(found)]


def _anchored(state: Labelling, size: int) -> Axis:
    """Labels of their own for a fixed part of what is otherwise free."""
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
        tied.append(state.tie(axes, all(a.zero for a in axes if a)))
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


def _pixel_shuffle(state: Labelling, call: Call) -> Sequence[Axes]:
    """C·r² channels become C channels of r times the height and width."""
    *batch, channels, height, width = state.of(call.args[0])
    state.fix(height)
    state.fix(width)
    if channels is None:
        return [(*batch, None, None, None)]
    grid = channels.labels.reshape(-1, call.args[1] ** 2)
    state.equate(grid[:, :1], grid)
    kept = replace(channels, labels=grid[:, 0]) if len(grid) > 1 else None
    if kept is None:
        state.fix(channels)
    return [(*batch, kept, None, None)]


def _pixel_unshuffle(state: Labelling, call: Call) -> Sequence[Axes]:
    *batch, channels, height, width = state.of(call.args[0])
    state.fix(height)
    state.fix(width)
    return [(*batch, channels and replace(channels, labels=channels.labels.repeat(call.args[1] ** 2)), None, None)]


def _channel_shuffle(state: Labelling, call: Call) -> Sequence[Axes]:
    """Groups × channels, transposed: the same channels of every group go."""
    batch, channels, *space = state.of(call.args[0])
    if channels is not None:
        grid = channels.labels.reshape(call.args[1], -1)
        state.equate(grid[:1], grid)
        channels = replace(channels, labels=grid.T.ravel())
    return [(batch, channels, *space)]


def _as_strided(state: Labelling, call: Call) -> Sequence[Axes]:
    """Understood only where it is the tensor itself."""
    axes, shape = state.of(call.args[0]), state.shape(call.args[0])
    if tuple(call.args[1]) == tuple(shape) and tuple(call.args[2]) == _contiguous(shape):
        return [axes]
    state.fix_all(axes)
    return [(None,) * len(call.args[1])]


def _contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    steps = [1]
    for size in reversed(shape[1:]):
        steps.append(steps[-1] * size)
    return tuple(reversed(steps))[: len(shape)]


RULES: dict[str, Rule] = {
    **dict.fromkeys(("view", "unsafe_view", "reshape_alias", "reshape"), _view),
    "permute": _permute,
    **dict.fromkeys(("transpose", "t"), _transpose),
    "squeeze": _squeeze,
    "unsqueeze": _unsqueeze,
    "expand": _expand,
    "repeat": _repeat,
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
    "pixel_shuffle": _pixel_shuffle,
    "pixel_unshuffle": _pixel_unshuffle,
    **dict.fromkeys(("channel_shuffle", "native_channel_shuffle"), _channel_shuffle),
    "as_strided": _as_strided,
}
