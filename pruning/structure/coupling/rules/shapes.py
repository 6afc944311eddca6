"""Operators that show the same elements in another form: views, transpositions, repetitions, shuffles."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from pruning.structure.coupling.labels import Axes, Axis, Labelling, Rule, Split, argument
from pruning.structure.recording.tape import Call


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
    keep = max(known, key=lambda i: (not known[i].interchangeable, shape[i]))
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
        parts = {i: state.fresh(shape[i], flat.holds_zeros) for i in wide}
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
    """Drop dimensions of size 1: all of them, or those named."""
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
            axes[i - first]
            if i >= first and before[i - first] == size
            else state.fresh(size, False, interchangeable=True)
            for i, size in enumerate(shape)
        )
    ]


def _repeat(state: Labelling, call: Call) -> Sequence[Axes]:
    axes, times = state.of(call.args[0]), call.args[1]
    axes = (None,) * (len(times) - len(axes)) + axes
    return [tuple(a and replace(a, labels=np.tile(a.labels, n)) for a, n in zip(axes, times, strict=True))]


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
    """Keep labels where the view is the tensor itself; fix all of them otherwise."""
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
    "pixel_shuffle": _pixel_shuffle,
    "pixel_unshuffle": _pixel_unshuffle,
    **dict.fromkeys(("channel_shuffle", "native_channel_shuffle"), _channel_shuffle),
    "as_strided": _as_strided,
}
