"""Operators that mix positions and leave channels alone: patches, samples on a grid, Fourier transforms."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from pruning.structure.coupling.labels import Axes, Labelling, Rule, argument
from pruning.structure.recording.tape import Call


def _patches(state: Labelling, call: Call) -> Sequence[Axes]:
    """im2col: C channels become C·k rows, k for each."""
    batch, channels, *space = state.of(call.args[0])
    for axis in space:
        state.fix(axis)
    size = int(np.prod(call.args[1]))
    return [(batch, channels and replace(channels, labels=channels.labels.repeat(size)), None)]


def _from_patches(state: Labelling, call: Call) -> Sequence[Axes]:
    """col2im: the k rows of a channel go together."""
    batch, rows, places = state.of(call.args[0])
    state.fix(places)
    channels = None
    if rows is not None:
        grid = rows.labels.reshape(-1, int(np.prod(call.args[2])))
        state.equate(grid[:, :1], grid)
        if len(grid) > 1:
            channels = replace(rows, labels=grid[:, 0])
        else:
            state.fix(rows)
    return [(batch, channels, None, None)]


def _sampled(state: Labelling, call: Call) -> Sequence[Axes]:
    """grid_sample: each channel is read at the same places."""
    batch, channels, *space = state.of(call.args[0])
    for axis in (*space, *state.of(call.args[1])[1:]):
        state.fix(axis)
    batch = state.tie([batch, state.of(call.args[1])[0]], bool(batch and batch.holds_zeros))
    return [(batch, channels, *(None,) * len(space))]


def _grid(state: Labelling, call: Call) -> Sequence[Axes]:
    """affine_grid: gives places, and has no channels."""
    state.fix_all(state.of(call.args[0]))
    return [(None,) * len(state.made(call))]


def _transformed(state: Labelling, call: Call) -> Sequence[Axes]:
    """A Fourier transform over some dimensions."""
    axes = list(state.of(call.args[0]))
    for dim in argument(call, 1, "dim"):
        state.fix(axes[dim])
        axes[dim] = None
    return [tuple(axes)]


def _complex(state: Labelling, call: Call) -> Sequence[Axes]:
    """The last dimension holds the real and the imaginary part."""
    axes = state.of(call.args[0])
    if call.operator == "view_as_real":
        return [(*axes, None)]
    state.fix(axes[-1])
    return [axes[:-1]]


RULES: dict[str, Rule] = {
    "im2col": _patches,
    "col2im": _from_patches,
    **dict.fromkeys(("grid_sampler_2d", "grid_sampler_3d", "cudnn_grid_sampler"), _sampled),
    "affine_grid_generator": _grid,
    **dict.fromkeys(("fft_r2c", "fft_c2r", "fft_c2c"), _transformed),
    **dict.fromkeys(("view_as_complex", "view_as_real"), _complex),
}
