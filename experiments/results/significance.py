"""Paired tests, and Holm's correction where there are many."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from experiments.results.intervals import INTERVALS

TESTS = ("t", "wilcoxon")


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values corrected so that the chance of *any* false alarm among them stays below the level. NaN stays NaN.

    The k-th smallest of m is multiplied by m − k + 1, and none may be below one before it. Holm 1979, "A simple
    sequentially rejective multiple test procedure".
    """
    p = np.asarray(p_values, dtype=float)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    corrected = np.full(p.shape, math.nan)
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)))
    return [float(one) for one in corrected]


def smallest_p(n: int, test: str) -> float:
    """The smallest p-value that `n` pairs can reach: 2 / 2ⁿ for signed ranks, 0 for Student's test."""
    return 2.0 ** (1 - n) if test == "wilcoxon" else 0.0


def judged(rows: list[dict[str, Any]], alpha: float, among: Sequence[bool] | None = None) -> list[dict[str, Any]]:
    """The rows with p corrected for as many tests as they are (those `among` them that count), and a verdict."""
    counted = among or [True] * len(rows)
    corrected = holm([row["p"] if counts else math.nan for row, counts in zip(rows, counted, strict=True)])
    judged = []
    for row, p, counts in zip(rows, corrected, counted, strict=True):
        verdict = ("higher" if row["mean"] > 0 else "lower") if p < alpha else ""
        judged.append(row | {"p_holm": p if counts else row["p"], "verdict": verdict})
    return judged


def tested(found: np.ndarray, test: str, interval: str) -> dict[str, float]:
    """`n`, `mean`, `std`, `low`, `high` (by `interval`) of paired differences, and `p` that they are zero, by `test`:
    NaN for one pair alone, and where all are equal and not zero.
    """
    # Differences of decimal fractions differ in their last bits where those of the fractions do not.
    found = np.round(found, 12)
    measured = INTERVALS[interval](list(found))
    if len(found) == 1:
        p = math.nan
    elif not found.any():
        p = 1.0
    elif test == "wilcoxon":
        p = float(stats.wilcoxon(found).pvalue)
    else:
        p = float(stats.ttest_1samp(found, 0.0).pvalue) if np.ptp(found) > 0 else math.nan
    return {name: getattr(measured, name) for name in ("n", "mean", "std", "low", "high")} | {"p": p}
