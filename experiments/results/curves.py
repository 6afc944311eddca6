"""One number for a curve of a metric over densities: its area, the sparsity it bears, the runs that collapsed."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import integrate

from experiments.records.values import Value, resolve
from experiments.results.exclusions import counted

LOST = 0.9
"""A run collapsed where this share of what the dense network has beyond chance is gone."""


def collapsed(points: pd.DataFrame, frame: pd.DataFrame, value: Value | str | None = None) -> pd.Series:
    """Whether each of the `points` collapsed: 1 or 0, NaN where chance or the dense network's value is not known, or
    that is no better than chance, so that there is nothing to lose.

    Collapsed is a value worse than chance + 0.1 · (dense − chance), where dense is that of the same run's dense network
    (level 0 of `frame`) and chance is what the metric says of itself (see `Value.chances`), in either direction.
    """
    value = resolve(frame, value)
    chance, dense = value.chances(points), own_dense(points, frame, value)
    limit = (chance + (1 - LOST) * (dense - chance)).round(12)
    known = value.lost(dense, chance) > 0
    lost: pd.Series = value.lost(limit, points[value.column].astype(float))
    return (lost > 0).where(known).astype(float)


def own_dense(points: pd.DataFrame, frame: pd.DataFrame, value: Value | str | None = None) -> pd.Series:
    """The value of the dense network that each of the `points` started from; NaN where it diverged, or `frame` lacks
    it.
    """
    value = resolve(frame, value)
    if "dense" not in frame or value.column not in frame:
        return pd.Series(math.nan, index=points.index)
    start = counted(frame[frame["level"] == 0], value).drop_duplicates("dense").set_index("dense")[value.column]
    return points["dense"].map(start).astype(float)


def area(densities: Sequence[float], values: Sequence[float], low: float, high: float) -> float:
    """The mean of a curve over the logarithm of density, between the densities `low` < `high`, in the unit of `values`.

    The area under the curve of `values` over log density by the trapezoid rule, divided by log(high / low); between its
    points the curve is straight in log density. NaN where the curve does not reach over the whole of [low, high]; a
    point of density 0 lies at no logarithm, so it reaches nowhere.
    """
    at, of = np.asarray(densities, dtype=float), np.asarray(values, dtype=float)
    at, of = at[at > 0], of[at > 0]
    if not 0 < low < high or not at.size or at.min() > low or at.max() < high:
        return math.nan
    order = np.argsort(at)
    ends = np.log([low, high])
    x, y = np.log(at[order]), of[order]
    inside = (x > ends[0]) & (x < ends[1])
    grid = np.concatenate([ends[:1], x[inside], ends[1:]])
    return float(integrate.trapezoid(np.interp(grid, x, y), grid) / (ends[1] - ends[0]))


def complete(points: pd.DataFrame) -> pd.DataFrame:
    """Those of `points` whose seed has all densities of its method, of methods that have at least two."""
    asked = points.groupby("method")["requested_density"].nunique()
    got = points.groupby(["method", "seed"])["requested_density"].transform("nunique")
    wanted = points["method"].map(asked)
    return points[(got == wanted) & (wanted > 1)]


def common_span(points: pd.DataFrame) -> tuple[float, float]:
    """The densities, realised and above 0, between which the curves of all methods and seeds in `points` reach.

    The first is not below the second where they have no such span; both are NaN without points.
    """
    curves = points[points["density"] > 0].groupby(["method", "seed"])["density"]
    return float(curves.min().max()), float(curves.max().min())


def critical_sparsity(sparsities: Sequence[float], losses: Sequence[float], within: float) -> float:
    """The largest sparsity up to which a curve stays within `within` of dense; 0 where no point does.

    `losses` are by how much the point at each of the `sparsities` is worse than dense, in the unit of `within`. The
    first point from dense to sparse that loses more ends it: a luckier one beyond does not count, and nothing is
    interpolated.
    """
    best = 0.0
    for sparsity, loss in sorted(zip(sparsities, losses, strict=True)):
        if not round(loss, 12) <= within:  # 0.97 - 0.96 is not 0.01 in binary
            break
        best = float(sparsity)
    return best
