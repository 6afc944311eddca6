"""Operators that put a dimension together: sums do not feel zeros, all others do."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from pruning.structure.coupling.labels import Axes, Axis, Labelling, Rule, argument, nonzero
from pruning.structure.recording.tape import Call


def _dims(call: Call, rank: int, position: int = 1, name: str = "dim") -> set[int]:
    given = argument(call, position, name)
    if given is None or given == ():
        return set(range(rank))
    return {dim % rank for dim in (given if isinstance(given, tuple) else (given,))}


def _reduction(feels: Callable[[Labelling, Axis], bool], keeps: bool, position: int = 1, name: str = "dim") -> Rule:
    """`feels`: whether a removed index would change the result; `keeps`: whether zeros give zero."""

    def rule(state: Labelling, call: Call) -> Sequence[Axes]:
        axes = state.of(call.args[0])
        gone = _dims(call, len(axes), position, name)
        for dim in gone:
            axis = axes[dim]
            if axis is not None and feels(state, axis):
                state.fix(axis)
            elif axis is not None:
                state.summed_elsewhere.append(axis.labels)
        left = [a and replace(a, holds_zeros=a.holds_zeros and keeps) for a in axes]
        kept = len(state.made(call)) == len(axes)
        found = tuple(None if i in gone else a for i, a in enumerate(left) if kept or i not in gone)
        # places, as of the maximum; or the mean beside the variance
        second = found if call.operator.endswith("_mean") else nonzero(found)
        return [found, *[second] * (len(call.outputs) - 1)]

    return rule


def _not_zero(_: Labelling, axis: Axis) -> bool:
    return not axis.holds_zeros


def _always(_: Labelling, __: Axis) -> bool:
    return True


def _average(state: Labelling, axis: Axis) -> bool:
    return not state.lossy


def _norm(state: Labelling, call: Call) -> Sequence[Axes]:
    """Norms of order 0 < p < ∞ are sums."""
    order = argument(call, 1, "ord", argument(call, 1, "p", 2))
    summed = isinstance(order, int | float) and 0 < order < float("inf")
    return _reduction(_not_zero if summed or order is None else _always, True, 2)(state, call)


def _softmax(state: Labelling, call: Call) -> Sequence[Axes]:
    """Along a dimension every index takes part; all others it leaves, though not as zeros."""
    axes = list(state.of(call.args[0]))
    dim = argument(call, 1, "dim") % len(axes)
    if not state.lossy:
        state.fix(axes[dim])
        axes[dim] = None
    return [nonzero(axes)]


def _scan(state: Labelling, call: Call) -> Sequence[Axes]:
    """Cumulative sums feel no zeros, but stand at every index; other scans, sorting and ranking feel them."""
    axes = list(state.of(call.args[0]))
    dim = argument(call, 1, "dim", -1)
    dim = dim if isinstance(dim, int) and not isinstance(dim, bool) else -1
    state.fix(axes[dim])
    axes[dim] = None
    return [tuple(axes), *[nonzero(axes)] * (len(call.outputs) - 1)]


def _top(state: Labelling, call: Call) -> Sequence[Axes]:
    axes = list(state.of(call.args[0]))
    dim = argument(call, 2, "dim", -1)
    state.fix(axes[dim])
    axes[dim] = None
    return [tuple(axes), nonzero(axes)]


def _pooled(spatial: int) -> Rule:
    """Pooling and resampling of the last dimensions."""

    def rule(state: Labelling, call: Call) -> Sequence[Axes]:
        axes = state.of(call.args[0])
        for axis in axes[-spatial:]:
            state.fix(axis)
        found = (*axes[:-spatial], *(None,) * spatial)
        return [found, *[nonzero(found)] * (len(call.outputs) - 1)]

    return rule


RULES: dict[str, Rule] = {
    **dict.fromkeys(("sum", "nansum"), _reduction(_not_zero, True)),
    "mean": _reduction(_average, True),
    **dict.fromkeys(("amax", "amin", "max", "min", "prod", "median"), _reduction(_always, True)),
    **dict.fromkeys(("any", "all", "argmax", "argmin", "logsumexp"), _reduction(_always, False)),
    **dict.fromkeys(("var", "std", "var_mean", "std_mean"), _reduction(_average, True)),
    **dict.fromkeys(("linalg_vector_norm", "norm"), _norm),
    **dict.fromkeys(("softmax", "log_softmax", "safe_softmax"), _softmax),
    **dict.fromkeys(("cumsum", "cumprod", "sort"), _scan),
    "topk": _top,
    **{
        f"{name}{d}d{more}": _pooled(d)
        for d in (1, 2, 3)
        for name, more in (
            ("max_pool", ""),
            ("max_pool", "_with_indices"),
            ("avg_pool", ""),
            ("adaptive_avg_pool", ""),
            ("adaptive_max_pool", ""),
            ("upsample_nearest", ""),
            ("upsample_nearest_exact", ""),
        )
    },
    "upsample_linear1d": _pooled(1),
    "upsample_trilinear3d": _pooled(3),
    **{f"upsample_{kind}2d{more}": _pooled(2) for kind in ("bilinear", "bicubic") for more in ("", "_aa")},
}
