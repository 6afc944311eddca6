"""Gates of recurrent and gated layers."""

from collections.abc import Sequence
from dataclasses import replace

from pruning.structure.coupling.labels import Axes, Labelling, Rule, argument
from pruning.structure.recording.tape import Call


def _glu(state: Labelling, call: Call) -> Sequence[Axes]:
    """a · sigmoid(b) of two halves: index i of one goes with index i of the other."""
    axes = list(state.of(call.args[0]))
    dim = argument(call, 1, "dim", -1) % len(axes)
    axis = axes[dim]
    if axis is not None:
        halves = axis.labels.reshape(2, -1)
        if halves.shape[1] < 2:
            state.fix(axis)
            axes[dim] = None
        else:
            state.equate(halves[0], halves[1])
            axes[dim] = replace(axis, labels=halves[0])
    return [tuple(axes)]


RULES: dict[str, Rule] = {"glu": _glu}
