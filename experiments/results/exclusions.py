"""Rows that count in no mean, each named in a line: of networks that diverged, of metrics that are not finite, and of
tasks without the metric.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd

from experiments.configuration.targets import short_name
from experiments.records import as_dicts
from experiments.records.losses import failed_training
from experiments.records.values import UNDESCRIBED, Value
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
    loss = f"{value.part}_loss" if value.part else ""
    if loss in frame:  # outputs that are NaN have an accuracy too
        found[_describes(frame, value) & frame[loss].isna()] = f"{loss} is not finite"
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
    return _by_run(frame, reasons(frame, value))


def failed_trainings(frame: pd.DataFrame) -> list[str]:
    """A line for every run whose training made a network worse, which counts all the same: "run snip-0: training loss
    grew from 2.3 to 5e+28 (level 0)".
    """
    return _by_run(frame, pd.Series(list(map(failed_training, as_dicts(frame))), frame.index, dtype=object))


def _by_run(frame: pd.DataFrame, why: pd.Series) -> list[str]:
    """A line for every run with rows that have a reason, with their levels."""
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


def measured(frame: pd.DataFrame, value: Value) -> tuple[pd.DataFrame, list[str]]:
    """The rows of the runs that have `value`, and a line for the other runs of each task and data set.

    Of a value that is no metric, as "removed_bytes", pruned networks that lack it are left out too. Where no run has
    it, all rows stay: who reads the column raises.
    """
    there = _has(frame, value)
    of_run = there.groupby(frame["run"]).transform("any")
    if not of_run.any():
        return frame, []
    others: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in as_dicts(frame[~of_run]):
        others[_task(row)].append(row)
    lines = [f"{_runs(rows)} of {task}: no {value.column}, but {_metrics(rows[0])}" for task, rows in others.items()]
    lacking = of_run & ~there & (frame["level"] > 0)
    if lacking.any():
        lines.append(f"{lacking.sum()} rows of {_runs(as_dicts(frame[lacking]))}: no {value.column}")
    return frame[of_run & ~lacking], lines


def _has(frame: pd.DataFrame, value: Value) -> pd.Series:
    """Whether each row has `value`: it says so of a metric, or there is something in the column."""
    there = pd.Series(value.column in frame, frame.index) & ~_missing(frame, value)
    if value.metric is None or not value.part or "metrics" not in frame:
        return there
    return _describes(frame, value).where(frame["metrics"].map(lambda cell: isinstance(cell, list)), there)


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


def _task(row: Mapping[str, Any]) -> str:
    """ "Regression on diabetes"."""
    task = row["config"].get("task") if isinstance(row.get("config"), Mapping) else None
    name = f"{short_name(task)} on " if isinstance(task, Mapping) and "_target_" in task else ""
    return f"{name}{row.get('data')}"


def _metrics(row: Mapping[str, Any]) -> str:
    """ "r2, mse and loss"."""
    cell = row.get("metrics")
    *others, last = [one["name"] for one in cell] if isinstance(cell, list) else [one.name for one in UNDESCRIBED]
    return f"{', '.join(others)} and {last}" if others else last


def _runs(rows: list[dict[str, Any]]) -> str:
    count = len({row["run"] for row in rows})
    return f"{count} run" if count == 1 else f"{count} runs"
