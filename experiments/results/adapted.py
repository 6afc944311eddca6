"""Adaptations by what they cost: trained weights, bytes, the optimizer's state, time of a step; and what they reach."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from experiments.records.values import Value
from experiments.results.intervals import INTERVALS
from experiments.results.labels import methods
from pruning.errors import RecordsError

if TYPE_CHECKING:
    import pandas as pd

COSTS = ("trained", "bytes", "optimizer_bytes", "step_ms", "filled")
CHOICES = ("search_seconds", "support_seconds")
"""Columns that rows of earlier versions do not have."""


def adaptations(final: pd.DataFrame, value: Value, interval: str = "t") -> pd.DataFrame:
    """One row for every method, density and budget: the mean of `value` over seeds, its interval, and costs.

    Columns: `method` (without its budget), `requested_density`, `budget`, `n`, `mean`, `std`, `low`, `high`, the means
    of `trained` weights, of `bytes` on disk, of `optimizer_bytes`, of `step_ms`, of `filled` zeros, of
    `search_seconds`, which the trainings at all learning rates took, and of `support_seconds`, which the choice of what
    is trained took, NaN without one; and `rates`, those that validation chose, one a seed; sorted by trained weights.

    `final` are `statistics.points`. Raises `RecordsError` where nothing is adapted.
    """
    import pandas as pd  # noqa: PLC0415  # slow to import

    if "adaptation_trained" not in final or not final["adaptation_trained"].notna().any():
        raise RecordsError("no network is adapted: set adaptation=")
    adapted = final[final["adaptation_trained"].notna()]
    names = methods(adapted, budgets=False)
    budgets = adapted["adaptation_budget"].fillna("None").astype(str)  # groups of NaN would be left out
    rows = []
    for (_, density, budget), at in adapted.groupby([names, "requested_density", budgets], sort=False):
        found = INTERVALS[interval](at[value.column].astype(float).tolist())
        rows.append(
            {
                "method": names[at.index[0]],
                "requested_density": density,
                "budget": None if budget == "None" else budget,
                **{name: getattr(found, name) for name in ("n", "mean", "std", "low", "high")},
                **{name: _mean(at, name) for name in (*COSTS, *CHOICES)},
                "rates": tuple(at["adaptation_rate"]),
            }
        )
    order = sorted(rows, key=lambda row: (-row["requested_density"], row["trained"], row["method"]))
    return pd.DataFrame(order)


def _mean(rows: pd.DataFrame, name: str) -> float:
    column = f"adaptation_{name}"
    return float(rows[column].astype(float).mean()) if column in rows else math.nan


def is_adapted(final: pd.DataFrame) -> bool:
    """Whether any of these rows is of an adapted network."""
    return "adaptation_trained" in final and bool(final["adaptation_trained"].notna().any())


def bounds(table: pd.DataFrame) -> list[bool]:
    """Whether a row of `adaptations` bounds the others: it trains nothing, or, without a budget, far more."""
    trained = [float(count) for count in table["trained"]]
    most = max(trained)
    others = max((count for count in trained if count < most), default=math.inf)
    free = table["budget"].isna()
    return [n == 0 or (alone and n == most and most > 10 * others) for n, alone in zip(trained, free, strict=True)]
