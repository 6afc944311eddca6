"""Rows that count in no mean, each named in a line: of networks that diverged, and of metrics that are not finite."""

from __future__ import annotations

import math
from collections import defaultdict
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd

from experiments.records import as_dicts
from experiments.records.values import Value
from pruning.errors import RecordsError


def is_number(cell: Any) -> bool:
    """Whether a cell is a number, finite or not; a truth value is none."""
    return not isinstance(cell, (bool, np.bool_)) and isinstance(cell, Real)


def reasons(frame: pd.DataFrame, value: Value) -> pd.Series:
    """Why each row counts in no mean of `value`: "diverged at step 41", "test_perplexity is not finite"; "" if it does.

    Not finite is a metric that the row says it has, and that is missing. A row that lacks any other value counts, so
    that who averages it raises.
    """
    found = pd.Series("", frame.index, dtype=object)
    found[_describes(frame, value) & _missing(frame, value)] = f"{value.column} is not finite"
    if "diverged" not in frame:
        return found
    steps = frame["diverged"].map(lambda step: f"diverged at step {step:.0f}", na_action="ignore")
    return steps.where(frame["diverged"].notna(), found)


def counted(frame: pd.DataFrame, value: Value) -> pd.DataFrame:
    """The rows that count."""
    return frame[reasons(frame, value) == ""]


def without_diverged(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of networks whose training did not diverge."""
    return frame[frame["diverged"].isna()] if "diverged" in frame else frame


def exclusions(frame: pd.DataFrame, value: Value) -> list[str]:
    """A line for every run with rows that do not count: "run snip-0: diverged at step 41 (level 2)"."""
    why = reasons(frame, value)
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for row, reason in zip(as_dicts(frame[why != ""]), why[why != ""], strict=True):
        control = f" {row['control']}" if isinstance(row.get("control"), str) else ""
        found[row["run"]][reason].append(f"level {row['level']}{control}")
    return [
        f"run {run}: " + ", ".join(f"{reason} ({', '.join(levels)})" for reason, levels in parts.items())
        for run, parts in found.items()
    ]


def check_counted(rows: pd.DataFrame, frame: pd.DataFrame, value: Value, otherwise: str) -> None:
    """Raise `RecordsError` if there are no `rows`: because none of `frame` counts, and what to do, or `otherwise`."""
    if not rows.empty:
        return
    lines = exclusions(frame, value)
    fix = "lower optimizer.lr, or set training.clip"
    if not any("diverged" in line for line in lines):
        fix = "choose another --metric"
    raise RecordsError(f"no pruned network counts: {'; '.join(lines)}: {fix}" if lines else otherwise)


def _describes(frame: pd.DataFrame, value: Value) -> pd.Series:
    """Whether each row says that it has the metric of `value`."""
    if value.metric is None or not value.part or "metrics" not in frame:
        return pd.Series(False, frame.index)
    name = value.metric.name
    return frame["metrics"].map(lambda cell: isinstance(cell, list) and name in [one["name"] for one in cell])


def _missing(frame: pd.DataFrame, value: Value) -> pd.Series:
    """Whether each row lacks a finite `value`."""
    cells = frame[value.column] if value.column in frame else pd.Series(None, frame.index, dtype=object)
    return cells.map(lambda cell: cell is None or (is_number(cell) and not math.isfinite(cell))).astype(bool)
