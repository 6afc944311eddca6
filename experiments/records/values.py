"""The value that is averaged, compared and drawn: a column of rows, and the metric that describes it."""

from __future__ import annotations

import argparse
import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from experiments.records.metrics import ANSWER_METRICS, LOSS, Metric, share
from pruning.errors import RecordsError

if TYPE_CHECKING:
    import pandas as pd

PARTS = ("test", "validation")
UNDESCRIBED = (share("accuracy"), LOSS)
"""The metrics of rows that do not describe theirs: those of earlier versions, which knew classification alone."""


@dataclass(frozen=True)
class Value:
    """A column of rows.

    Attributes:
        column: "test_accuracy".
        metric: which number it holds; None: no row describes it, as "macs", so that its direction is not known.
        part: of the data, one of `PARTS`; "" where the column is of none.
    """

    column: str
    metric: Metric | None = None
    part: str = ""

    @property
    def scale(self) -> float:
        """The factor by which its numbers are shown."""
        return 1.0 if self.metric is None else self.metric.scale

    @property
    def percent(self) -> bool:
        """Whether it is shown in percent."""
        return self.metric is not None and self.metric.percent

    @property
    def log(self) -> bool:
        """Whether its axis is logarithmic."""
        return self.metric is not None and self.metric.log

    @property
    def digits(self) -> int:
        """Digits after the point in tables."""
        return 2 if self.percent or self.log else 4

    @property
    def words(self) -> str:
        """The metric's name as text has it, or the column's."""
        return self.column.replace("_", " ").strip() if self.metric is None or not self.part else self.metric.words

    @property
    def title(self) -> str:
        """Its name without a unit: "Test accuracy"."""
        text = f"{self.part} {self.words}" if self.part else self.words
        return text[:1].upper() + text[1:]

    @property
    def label(self) -> str:
        """Label of axes and tables: "Test accuracy (%)", "Test perplexity (lower is better)"."""
        if self.metric is None:
            return self.title
        notes = [self.metric.unit, "" if self.metric.higher_is_better else "lower is better"]
        text = ", ".join(note for note in notes if note)
        return f"{self.title} ({text})" if text else self.title

    @property
    def difference(self) -> str:
        """Name of its differences: "difference in points"."""
        if self.metric is None:
            return "difference in its unit"
        unit = "points" if self.percent else self.metric.unit
        better = "" if self.metric.higher_is_better else " (below 0 is better)"
        return f"difference{unit and f' in {unit}'}{better}"

    @property
    def stem(self) -> str:
        """Stem of file names: the metric where it is of the test part, else the column."""
        name = self.metric.name if self.metric is not None and self.part == "test" else self.column
        return re.sub(r"\W", "_", name)

    def lost(self, dense: Any, value: Any) -> Any:
        """Drop from `dense` to `value` (above 0: worse), numbers or series, in the column's unit; NaN if unknown."""
        if self.metric is None:
            return math.nan * (dense - value)
        return dense - value if self.metric.higher_is_better else value - dense

    def meaning(self, verdict: str) -> str:
        """Meaning of "higher" or "lower": "better", "worse", or "" where that is not known."""
        if self.metric is None:
            return ""
        return "better" if (verdict == "higher") == self.metric.higher_is_better else "worse"

    def chances(self, rows: pd.DataFrame) -> pd.Series:
        """Chance level in each of `rows`: what guessing reaches; NaN where that is not known.

        A row that does not describe its metrics has 1 / classes of its configuration as chance of an accuracy.
        """
        import pandas as pd  # noqa: PLC0415  # slow to import

        return pd.Series([self._chance(row) for row in _columns(rows, "metrics", "config")], rows.index, dtype=float)

    def _chance(self, row: Mapping[str, Any]) -> float:
        if self.metric is None:
            return math.nan
        if isinstance(row["metrics"], list):
            found = [one.get("chance") for one in row["metrics"] if one["name"] == self.metric.name]
            return math.nan if not found or found[0] is None else float(found[0])
        return _guessing(row["config"]) if self.metric.name.endswith("accuracy") else math.nan


def resolve(frame: pd.DataFrame, asked: Value | str | None = None) -> Value:
    """The value of a frame of rows: that of a column, or for None the headline, of the test part.

    A column need not be there: who reads it says so. Raises `RecordsError` where rows have several headlines, or
    describe a metric in two ways.
    """
    if isinstance(asked, Value):
        return asked
    known = _described(frame)
    if asked is not None:
        return _column(asked, known)
    headlines = list(dict.fromkeys(metrics[0].name for metrics in known))
    if len(headlines) > 1:
        raise RecordsError(
            f"these rows have several headline metrics, {' and '.join(headlines)}: choose one by --metric, or a folder "
            "of one task"
        )
    return Value(f"test_{headlines[0]}", _agreed(headlines[0], known), "test")


def resolve_metric(frame: pd.DataFrame, name: str) -> Value:
    """The value of a metric, of the test part. Raises `RecordsError` where no row has it."""
    known = _described(frame)
    if f"test_{name}" in frame and name in {metric.name for metric in ANSWER_METRICS}:
        return resolve(frame, f"test_{name}")
    names = list(dict.fromkeys(metric.name for metrics in known for metric in metrics))
    if name not in names:
        close = difflib.get_close_matches(name, names, n=3)
        hint = f"did you mean {' or '.join(close)}? They have" if close else "choose among"
        raise RecordsError(f"no metric {name!a} in these rows; {hint} {', '.join(names)}")
    return Value(f"test_{name}", _agreed(name, known), "test")


def remember(table: pd.DataFrame, value: Value) -> pd.DataFrame:
    """Store in a table of statistics which value it shows, so that figures of it need no further argument."""
    table.attrs["value"] = {"column": value.column, "part": value.part}
    table.attrs["value"] |= {"metric": None if value.metric is None else value.metric.as_dict()}
    return table


def recall(table: pd.DataFrame, asked: Value | str | None = None) -> Value:
    """The value that a table of statistics shows, as `remember` stored it.

    A table that stores none, and another column that is asked for, are read as rows without descriptions of metrics.
    """
    import pandas as pd  # noqa: PLC0415  # slow to import

    if isinstance(asked, Value):
        return asked
    kept = table.attrs.get("value")
    if kept is not None and asked in (None, kept["column"]):
        metric = None if kept["metric"] is None else Metric.from_dict(kept["metric"])
        return Value(kept["column"], metric, kept["part"])
    return resolve(pd.DataFrame(), asked)


# Commands


def add_options(parser: argparse.ArgumentParser, what: str) -> None:
    """Add the options `--metric` and `--value`, which exclude each other; see `chosen`."""
    options = parser.add_mutually_exclusive_group()
    options.add_argument("--metric", help=f"the metric to {what}, of the test part (default: the task's headline)")
    options.add_argument("--value", help=f"the column to {what}, as validation_loss or macs")


def chosen(frame: pd.DataFrame, asked: argparse.Namespace) -> Value:
    """The value that `--metric` or `--value` names, or the headline. Raises `RecordsError` where there is none."""
    return resolve(frame, asked.value) if asked.metric is None else resolve_metric(frame, asked.metric)


# What rows say


def _described(frame: pd.DataFrame) -> list[tuple[Metric, ...]]:
    """The different descriptions of metrics in rows."""
    cells = {repr(cell): cell for cell in frame["metrics"]} if "metrics" in frame else {}
    found = {
        tuple(map(Metric.from_dict, cell)) if isinstance(cell, list) else UNDESCRIBED: None for cell in cells.values()
    }
    return list(found) or [UNDESCRIBED]


def _agreed(name: str, known: Sequence[tuple[Metric, ...]]) -> Metric:
    """The metric of this name, with the chance of all that have it if that is one."""
    found = [metric for metrics in known for metric in metrics if metric.name == name]
    plain = {replace(metric, chance=None) for metric in found}
    if len(plain) > 1:
        raise RecordsError(
            f"metric {name}: these rows describe it in several ways ({'; '.join(sorted(map(_shown, plain)))}): choose "
            "a folder of one task"
        )
    return found[0] if len(set(found)) == 1 else plain.pop()


def _shown(metric: Metric) -> str:
    which = "higher" if metric.higher_is_better else "lower"
    return f"{which} is better, times {metric.scale:g}{metric.unit and f' {metric.unit}'}{', log' * metric.log}"


def _column(column: str, known: Sequence[tuple[Metric, ...]]) -> Value:
    part, _, name = column.partition("_")
    for metric in ANSWER_METRICS if part == "test" else ():
        if metric.name == name:
            return Value(column, metric, part)
    if part in PARTS and any(metric.name == name for metrics in known for metric in metrics):
        return Value(column, _agreed(name, known), part)
    # An accuracy is a share, whoever measured it.
    return Value(column, share(column) if column.replace("_", " ").strip().endswith("accuracy") else None)


def _columns(rows: pd.DataFrame, *names: str) -> list[dict[str, Any]]:
    missing: dict[str, Any] = dict.fromkeys(names)
    known = rows[[name for name in names if name in rows]].to_dict("records")
    return [missing | {str(name): value for name, value in row.items()} for row in known]


def _guessing(config: Any) -> float:
    data = config.get("data") if isinstance(config, Mapping) else None
    classes = data.get("classes") if isinstance(data, Mapping) else None
    return 1 / classes if isinstance(classes, int) and classes > 0 else math.nan
