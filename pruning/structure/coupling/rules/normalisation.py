"""Batch norm treats channels alone; layer and group norm take statistics over them."""

from collections.abc import Sequence
from dataclasses import replace

from pruning.structure.coupling.labels import Axes, Axis, Labelling, Rule, argument, nonzero
from pruning.structure.recording.tape import Call, Ref


def _affine(state: Labelling, axis: Axis | None, weight: Ref | None, bias: Ref | None) -> Axis | None:
    """Tie weight and bias to the channels. Both zero: the output is zero whatever the statistics were."""
    given = [state.of(ref)[0] for ref in (weight, bias) if ref is not None]
    if not given:
        return axis and replace(axis, holds_zeros=False)
    return state.tie([axis, *given], weight is not None and all(a is not None and a.holds_zeros for a in given))


def _batch_norm(state: Labelling, call: Call) -> Sequence[Axes]:
    batch, channels, *space = state.of(call.args[0])
    weight, bias, *statistics = call.args[1:5]
    if _by_batch(call):
        for axis in (batch, *space):
            state.fix(axis)
        batch, space = None, [None] * len(space)
    for ref in statistics:
        if isinstance(ref, Ref):
            channels = state.tie([channels, state.of(ref)[0]], False)
    channels = _affine(state, channels, weight, bias)
    count = state.shape(call.args[0])[1]
    output: Axes = (*nonzero([batch]), channels, *nonzero(space))
    rest = [(channels,) if state.made(call, i) == (count,) else (None,) for i in range(1, len(call.outputs))]
    return [output, *rest]


def _by_batch(call: Call) -> bool:
    """Whether statistics are taken of this batch, as in training, and by networks that standardise weights."""
    if call.operator in ("native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm"):
        return bool(call.args[5])
    return call.operator in ("batch_norm_with_update", "native_batch_norm_legit")


def _layer_norm(state: Labelling, call: Call) -> Sequence[Axes]:
    """Layer norm and RMS norm: over the last dimensions."""
    axes = list(state.of(call.args[0]))
    count = len(call.args[1])
    affine = [ref for ref in call.args[2:4] if isinstance(ref, Ref)]
    for i in range(len(axes) - count, len(axes)):
        own = [state.of(ref)[i - len(axes) + count] for ref in affine]
        if state.lossy:
            axes[i] = state.tie([axes[i], *own], bool(own))
        else:
            for axis in (axes[i], *own):
                state.fix(axis)
            axes[i] = None
    output = tuple(a and replace(a, holds_zeros=a.holds_zeros and i >= len(axes) - count) for i, a in enumerate(axes))
    statistics = [
        tuple(None if i >= len(axes) - count else a and replace(a, holds_zeros=False) for i, a in enumerate(axes))
    ] * (len(call.outputs) - 1)
    return [output, *statistics]


def _group_norm(state: Labelling, call: Call) -> Sequence[Axes]:
    """A group of one channel is like batch norm; statistics over several fix them."""
    batch, channels, *space = state.of(call.args[0])
    weight, bias = call.args[1:3]
    groups = argument(call, 6, "group")
    if channels is not None and groups != len(channels) and not state.lossy:
        state.fix(channels)
    elif channels is not None and groups != len(channels):
        grid = channels.labels.reshape(groups, -1)
        state.equate(grid[:1], grid)
    channels = _affine(state, channels, weight, bias)
    output = (*nonzero([batch]), channels, *nonzero(space))
    alone = channels is not None and groups == len(channels)
    return [output, *[(None, channels if alone else None)] * (len(call.outputs) - 1)]


def _weight_norm(state: Labelling, call: Call) -> Sequence[Axes]:
    """g · v / ‖v‖ by index of one dimension. What g makes zero is zero whatever v is, which must not be zero there, and
    stays as it is. Zeros in v's other dimensions leave the norm as it is.
    """
    vectors, lengths, dim = call.args[0], call.args[1], argument(call, 2, "dim", 0)
    axis, scale = state.of(vectors)[dim], state.of(lengths)[dim]
    if vectors.value in state.weights and state.weights[vectors.value] == vectors.value:
        axis = state.tie([axis, scale], scale is not None and scale.holds_zeros)
        state.unmasked.append((vectors.value, dim))
    else:
        for other in (axis, scale):
            state.fix(other)
        axis = None
    own = state.of(vectors)
    state.summed_elsewhere += [other.labels for i, other in enumerate(own) if other is not None and i != dim]
    state.axes[vectors.value] = tuple(nonzero([a])[0] if i == dim else a for i, a in enumerate(own))
    return [(*own[:dim], axis, *own[dim + 1 :]), nonzero(state.of(lengths))]


RULES: dict[str, Rule] = {
    **dict.fromkeys(
        (
            "native_batch_norm",
            "native_batch_norm_legit_no_training",
            "native_batch_norm_legit",
            "cudnn_batch_norm",
            "miopen_batch_norm",
            "batch_norm_with_update",
            "batch_norm_no_update",
        ),
        _batch_norm,
    ),
    **dict.fromkeys(("native_layer_norm", "fused_rms_norm", "rms_norm"), _layer_norm),
    "native_group_norm": _group_norm,
    "weight_norm_interface": _weight_norm,
}
