"""Operators that look up by index, and those that make constants."""

from collections.abc import Sequence

import torch

from pruning.structure.coupling.labels import Axes, Axis, Labelling, Rule, argument
from pruning.structure.recording.tape import Call, Ref


def _embedding(state: Labelling, call: Call) -> Sequence[Axes]:
    """Rows of a table: which ones is up to the data, so all stay."""
    table, places = call.args[:2]
    rows, *features = state.of(table)
    state.fix(rows)
    state.fix_all(state.of(places))
    return [((None,) * len(state.shape(places)) + tuple(features))]


def _embedding_bag(state: Labelling, call: Call) -> Sequence[Axes]:
    """Sums, means or maxima of rows of a table."""
    rows, features = state.of(call.args[0])
    state.fix(rows)
    for ref in call.refs[1:]:
        state.fix_all(state.of(ref))
    others = [(None,) * len(state.made(call, i)) for i in range(1, len(call.outputs))]
    return [(None, features), *others]


def _index_add(state: Labelling, call: Call) -> Sequence[Axes]:
    """Rows of the source are added to those of a target that are named; all other dimensions are the same."""
    target, dim, index, source = call.args[:4]
    state.fix_all(state.of(index))
    found: list[Axis | None] = []
    for i, (a, b) in enumerate(zip(state.of(target), state.of(source), strict=True)):
        if i == dim % len(state.shape(target)):
            state.fix(a)
            state.fix(b)
            found.append(None)
        else:
            found.append(state.tie([a, b], bool(a and b and a.holds_zeros and b.holds_zeros)))
    return [tuple(found)]


def _index_select(state: Labelling, call: Call) -> Sequence[Axes]:
    axes = list(state.of(call.args[0]))
    dim = call.args[1] % len(axes)
    state.fix(axes[dim])
    axes[dim] = None
    return [tuple(axes)]


def _index(state: Labelling, call: Call) -> Sequence[Axes]:
    """tensor[index, :, index]: what is indexed is fixed, and the rest keeps its labels."""
    axes = state.of(call.args[0])
    return [tuple(None if i is None else axes[i] for i in _chosen(state, call))]


def _chosen(state: Labelling, call: Call) -> list[int | None]:
    """The dimensions of tensor[index, :, index]: which of the tensor's each is, None for those of the indices. What is
    indexed is fixed."""
    axes = state.of(call.args[0])
    indexed: list[int] = []
    dim = count = 0
    for place in call.args[1]:
        wide = 1
        if isinstance(place, Ref):
            boolean = state.tape.dtypes[place.value] == torch.bool
            wide = len(state.shape(place)) if boolean else 1  # a mask covers as many dimensions as it has
            count = max(count, 1 if boolean else len(state.shape(place)))
            state.fix_all(state.of(place))
            indexed += range(dim, dim + wide)
        dim += wide
    for i in indexed:
        state.fix(axes[i])
    adjacent = indexed == list(range(indexed[0], indexed[-1] + 1)) if indexed else True
    where = indexed[0] if adjacent and indexed else 0
    rest = [i for i in range(len(axes)) if i not in indexed]
    return [*(i for i in rest if i < where), *(None,) * count, *(i for i in rest if i >= where)]


def _index_put(state: Labelling, call: Call) -> Sequence[Axes]:
    """tensor[index, :] = values, or +=: what is indexed is fixed, and the rest is the same in the values."""
    axes, given = list(state.of(call.args[0])), state.of(call.args[2])
    for back, i in enumerate(reversed(_chosen(state, call)), start=1):
        other = given[-back] if back <= len(given) else None
        if i is None:
            state.fix(other)
        else:
            axis = axes[i]
            axes[i] = state.tie([axis, other], bool(axis and other and axis.holds_zeros and other.holds_zeros))
    return [tuple(axes)]


def _along(state: Labelling, call: Call) -> Sequence[Axes]:
    """gather and scatter along a dimension; others are left alone where the index was broadcast over them."""
    target, dim, index = call.args[:3]
    source = call.args[3] if len(call.args) > 3 else 0
    values = [ref for ref in (target, source) if isinstance(ref, Ref)]
    found: list[Axis | None] = []
    for i in range(len(state.shape(target))):
        axes = [state.of(ref)[i] for ref in (*values, index)]
        sizes = {state.shape(ref)[i] for ref in (*values, index)}
        if i == dim % len(state.shape(target)) or len(sizes) > 1:
            for axis in axes:
                state.fix(axis)
            found.append(None)
        else:
            zeros = [axis is not None and axis.holds_zeros for axis in axes[:-1]]
            found.append(state.tie(axes, all(zeros) and (isinstance(source, Ref) or source == 0)))
    return [tuple(found)]


def _constant(holds_zeros: bool) -> Rule:
    """Every index holds the same, so any of them may go."""

    def rule(state: Labelling, call: Call) -> Sequence[Axes]:
        return [tuple(state.fresh(size, holds_zeros, interchangeable=True) for size in state.made(call))]

    return rule


def _fill(state: Labelling, call: Call) -> Sequence[Axes]:
    value = argument(call, 1, "fill_value", 1)
    call_value = call.args[2] if call.operator == "new_full" else value
    return _constant(call_value == 0)(state, call)


def _fixed(state: Labelling, call: Call) -> Sequence[Axes]:
    """Data of their own, or places in others' data."""
    if call.operator not in ("new_empty", "new_empty_strided"):
        for ref in call.refs:
            state.fix_all(state.of(ref))
    return [tuple(None for _ in state.made(call, i)) for i in range(len(call.outputs))]


_FIXED = """empty new_empty empty_strided new_empty_strided arange linspace scalar_tensor eye tril triu rand randn
randint randperm local_scalar_dense item nonzero range complex tril_indices"""

RULES: dict[str, Rule] = {
    "embedding": _embedding,
    **dict.fromkeys(("embedding_bag", "embedding_bag_forward_only"), _embedding_bag),
    "index_add": _index_add,
    "index_select": _index_select,
    "index": _index,
    **dict.fromkeys(("index_put", "index_put_impl", "unsafe_index_put"), _index_put),
    **dict.fromkeys(("gather", "scatter_add", "scatter"), _along),
    **dict.fromkeys(("zeros", "new_zeros"), _constant(True)),
    **dict.fromkeys(("ones", "new_ones"), _constant(False)),
    **dict.fromkeys(("full", "new_full"), _fill),
    **dict.fromkeys(_FIXED.split(), _fixed),
}
