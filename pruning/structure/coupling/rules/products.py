"""Matrix products and convolutions: what is summed over must agree, and be zero where it is removed."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from pruning.structure.coupling.labels import Axes, Axis, Labelling, Rule, argument, nonzero
from pruning.structure.coupling.rules.elementwise import broadcast
from pruning.structure.recording.tape import Call, Ref


def contract(state: Labelling, left: tuple[Ref, Axis | None], right: tuple[Ref, Axis | None]) -> None:
    """Sum over an axis of two factors: one of them at least must hold zeros where it is removed."""
    (first, a), (second, b) = left, right
    tied = state.tie([a, b], True)
    if tied is None or a is None or b is None:
        return
    if not (a.holds_zeros or b.holds_zeros):
        state.fix(tied)
    weights = first.value in state.weights, second.value in state.weights
    if weights[0] == weights[1]:
        state.summed_elsewhere += [a.labels, b.labels]
        return
    weight, activation = (a, b) if weights[0] else (b, a)
    state.reads.append(weight.labels)
    if not activation.holds_zeros:
        state.nonzero_when_removed.append(activation.labels)


def _matmul(state: Labelling, left: Ref, right: Ref) -> Axes:
    """[(b,) m, k] times [(b,) k, n]."""
    *batch, rows, inner = state.of(left)
    *other, summed, columns = state.of(right)
    contract(state, (left, inner), (right, summed))
    shared = [
        state.tie([a, b], bool(a and b and (a.holds_zeros or b.holds_zeros))) for a, b in zip(batch, other, strict=True)
    ]
    state.heads += [axis.labels for axis in (*batch, *other) if axis is not None]
    return (*shared, rows, columns)


def _product(state: Labelling, call: Call) -> Sequence[Axes]:
    return [_matmul(state, *call.args[:2])]


def _product_and_sum(state: Labelling, call: Call) -> Sequence[Axes]:
    """A bias, and a product."""
    bias, left, right = call.args[:3]
    product = call.outputs[0]
    state.axes[product] = _matmul(state, left, right)
    scaled = argument(call, 3, "beta", 1)
    return [broadcast(state, call, [bias, Ref(product)], all) if scaled else state.axes[product]]


def _vector_product(state: Labelling, call: Call) -> Sequence[Axes]:
    """A matrix, or a vector, times a vector."""
    left, right = call.args[:2]
    *rows, inner = state.of(left)
    contract(state, (left, inner), (right, state.of(right)[0]))
    return [tuple(rows)]


def _distances(state: Labelling, call: Call) -> Sequence[Axes]:
    """‖a - b‖ₚ of all pairs of rows: a sum over features, of which neither may be there where they are removed."""
    *batch, rows, left = state.of(call.args[0])
    *other, columns, right = state.of(call.args[1])
    order = argument(call, 2, "p", 2.0)
    summed = state.tie(
        [left, right], bool(left and right and left.holds_zeros and right.holds_zeros and 0 < order < float("inf"))
    )
    if summed is not None and not summed.holds_zeros:
        state.fix(summed)
    elif summed is not None:
        state.summed_elsewhere.append(summed.labels)
    shared = [state.tie([a, b], False) for a, b in zip(batch, other, strict=True)]
    return [nonzero((*shared, rows, columns))]


def _convolution(state: Labelling, call: Call) -> Sequence[Axes]:
    """One group ties inputs to inputs; several lose the same channel each, or whole groups if they have one input."""
    source, kernel, bias = call.args[:3]
    transposed, groups = call.args[6], call.args[8]
    *batch, channels = state.of(source)[: -len(state.shape(kernel)[2:])]
    for axis in (*state.of(source)[len(batch) + 1 :], *state.of(kernel)[2:]):
        state.fix(axis)
    first, second = state.of(kernel)[:2]
    inputs = state.shape(source)[len(batch)]
    if groups == 1:
        weighed, made = (first, second) if transposed else (second, first)
        contract(state, (source, channels), (kernel, weighed))
    elif inputs == groups:
        made = _depthwise(state, channels, first, second, transposed)
    else:
        made = _grouped(state, call, channels)
    if bias is not None:
        offset = state.of(bias)[0]
        made = state.tie([made, offset], bool(made and offset and made.holds_zeros and offset.holds_zeros))
    return [(*batch, made, *(None,) * len(state.shape(kernel)[2:]))]


def _depthwise(
    state: Labelling, channels: Axis | None, first: Axis | None, second: Axis | None, transposed: bool
) -> Axis | None:
    """Each group has one input, and goes with it, with all its outputs."""
    if transposed:  # the kernel is [groups, outputs a group]
        state.fix(second)
        tied = state.tie([channels, first], True)
        made = None if second is None else len(second)
        return tied if tied is None or made is None else replace(tied, labels=tied.labels.repeat(made))
    if channels is None or first is None:
        state.fix(channels)
        state.fix(first)
        return None
    grid = first.labels.reshape(len(channels), -1)
    state.equate(channels.labels[:, None], grid)
    return replace(first, holds_zeros=first.holds_zeros or channels.holds_zeros)


def _grouped(state: Labelling, call: Call, channels: Axis | None) -> Axis | None:
    """The same channel of every group goes; the number of groups stays."""
    (source, kernel), transposed, groups = call.args[:2], call.args[6], call.args[8]
    first, second = state.of(kernel)[:2]
    if transposed:  # [inputs, outputs a group]
        inner = _across_groups(state, channels, groups)
        own = _across_groups(state, first, groups)
        contract(state, (source, inner), (kernel, own))
        if second is None:
            return None
        return replace(second, labels=np.tile(second.labels, groups))
    contract(state, (source, _across_groups(state, channels, groups)), (kernel, second))
    _across_groups(state, first, groups)
    return first


def _across_groups(state: Labelling, axis: Axis | None, groups: int) -> Axis | None:
    """The labels of a group, after those of all groups were tied."""
    if axis is None:
        return None
    grid = axis.labels.reshape(groups, -1)
    state.equate(grid[:1], grid)
    if grid.shape[1] == 1:
        state.fix(axis)
        return None
    return replace(axis, labels=grid[0])


RULES: dict[str, Rule] = {
    **dict.fromkeys(("mm", "bmm"), _product),
    **dict.fromkeys(("addmm", "baddbmm"), _product_and_sum),
    "cdist_forward": _distances,
    **dict.fromkeys(("mv", "dot", "vdot"), _vector_product),
    **dict.fromkeys(("convolution", "convolution_overrideable"), _convolution),
}
