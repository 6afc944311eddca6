"""Means over seeds with honest intervals: what is averaged agrees in all but the seed, and every seed counts once."""

import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from experiments.records import as_dicts, require
from experiments.records.values import Value, remember, resolve
from experiments.results.curves import collapsed
from experiments.results.exclusions import check_counted, counted, is_number
from experiments.results.intervals import INTERVALS, Interval
from experiments.results.labels import methods, setups
from pruning.errors import RecordsError

INCIDENTAL = frozenset(
    {
        *("format", "run", "level", "seconds", "total_seconds", "threads", "processes", "device", "versions", "config"),
        *("latency_ms", "metrics"),
    }
)
"""Keys of a row that may differ between two records of the same measurement."""


def points(frame: pd.DataFrame, value: Value | str | None = None) -> pd.DataFrame:
    """The rows that count, one for every method, requested density and seed, with their `method` (`labels.methods`).

    What counts is the last round of each density's chain (`round == rounds`), level 0 not among them. Where all runs of
    a method head for one and the same density, every evaluated round of their chains is a point of its own. Networks
    that diverged do not count, nor a metric that is not finite (see `exclusions`). Sorted by method, then from dense to
    sparse.

    The same seed found twice counts once where all that was measured agrees (two sweeps that share a density), and
    raises `RecordsError` where it does not: averaging both would count one seed as two. It also raises for no
    level that counts, and a `value` that is no finite number for another reason. For None that is the headline metric
    of the rows, in the test part (see `values.resolve`).
    """
    value = resolve(frame, value)
    require(frame, ["run", "level"])
    pruned = frame[frame["level"] > 0]
    check_counted(pruned, frame, value, "no pruned level in these rows, only dense networks; let the runs go on")
    require(pruned, ["round", "rounds", "requested_density", "density"])
    pruned = pruned.assign(method=methods(frame)[frame["level"] > 0])
    last = pruned["round"] == pruned["rounds"]
    if "target_density" in pruned:
        last |= pruned.groupby("method")["target_density"].transform("nunique", dropna=False) == 1
    final = pruned[last]
    check_counted(final, frame, value, "no level in these rows is the last round of its chain; let the runs go on")
    final = counted(final, value)
    check_counted(final, frame, value, "")
    _numbers(final, value.column)
    curves = dict.fromkeys(zip(final["method"], final["requested_density"], strict=True))
    ordered = sorted(curves, key=lambda point: (natural(point[0]), -point[1]))
    place = {point: number for number, point in enumerate(ordered)}
    places = [place[point] for point in zip(final["method"], final["requested_density"], strict=True)]
    final = final.iloc[np.argsort(places, kind="stable")]
    key = ["method", "requested_density", "seed"]
    again = final.duplicated(key)
    if again.any():
        several = final[final.duplicated(key, keep=False)]
        for (name, requested), rows in several.groupby(key[:2], sort=False):
            _each_once(rows, "seed", f"method {name}, density {requested}")
    return final[~again].reset_index(drop=True)


def summarise(frame: pd.DataFrame, value: Value | str | None = None, interval: str = "t") -> pd.DataFrame:
    """One row for every method and requested density of `points`: the mean of `value` over seeds, its 95 % interval.

    `interval` is one of `intervals.INTERVALS`. Columns: `method`, `requested_density`, `density` (realised, mean over
    seeds, of the *prunable* weights: no biases, no normalisation), `sparsity` = 1 − density, `compression` =
    1 / density, so prunable / kept (infinite where nothing is kept), `n` (distinct seeds), `mean`, `std`, `low`, `high`
    (in the unit of `value`; see `Interval`), `median`, `collapsed` (the share of seeds; see `curves.collapsed`; NaN
    where that is not known), `seeds` (a sorted tuple), and the means over seeds of `macs` (remaining / dense),
    `latency_ms` and `total_epochs`, NaN where they were not measured. Raises what `points` raises.
    """
    value = resolve(frame, value)
    return summarise_points(points(frame, value), frame, value, interval)


def summarise_points(final: pd.DataFrame, frame: pd.DataFrame, value: Value, interval: str = "t") -> pd.DataFrame:
    """What `summarise` returns, of the `points` of a frame that are known already."""
    columns = {name: _numeric_column(final, name) for name in ("density", value.column, *_COSTS)}
    columns["collapsed"] = collapsed(final, frame, value).to_numpy(dtype=float)
    seeds = final["seed"].to_numpy()
    rows = []
    for (method, requested), at in group(final).items():
        density, values = float(columns["density"][at].mean()), columns[value.column][at]
        found = INTERVALS[interval](values.tolist())
        share, macs, dense_macs, latency, epochs = (float(columns[name][at].mean()) for name in ("collapsed", *_COSTS))
        rows.append(
            {
                "method": method,
                "requested_density": float(requested),
                "density": density,
                "sparsity": 1 - density,
                "compression": 1 / density if density > 0 else math.inf,
                **{name: getattr(found, name) for name in ("n", "mean", "std", "low", "high")},
                "median": float(np.median(values)),
                "collapsed": share,
                "seeds": tuple(sorted(int(seed) for seed in seeds[at])),
                "macs": macs / dense_macs if dense_macs else math.nan,
                "latency_ms": latency,
                "total_epochs": epochs,
            }
        )
    return remember(pd.DataFrame(rows), value)


def group(final: pd.DataFrame) -> dict[tuple[str, float], list[int]]:
    """The places of the rows of every method and requested density, both in the order in which they appear."""
    places: dict[tuple[str, float], list[int]] = {}
    for place, point in enumerate(zip(final["method"], final["requested_density"], strict=True)):
        places.setdefault(point, []).append(place)
    return places


def dense(frame: pd.DataFrame, value: Value | str | None = None, interval: str = "t") -> dict[str, Interval]:
    """The dense networks' `value` (level 0): a 95 % interval for every set-up, by its label.

    Usually that is one, {"dense": Interval}; a frame with several models, data sets or trainings has more (see
    `labels.setups`), since their mean would be meaningless. The networks are identified by their key ("dense"):
    four scorers that start from the same three networks give n = 3, and a pretrained one, which all seeds share, n = 1.
    Those that diverged do not count, nor those without a value that is no metric, as "removed_bytes"; a set-up with no
    other has no interval.

    Raises `RecordsError` for no level 0, one network with two values, and two networks of one set-up and seed.
    """
    value = resolve(frame, value)
    column = value.column
    require(frame, ["run", "level"])
    start = frame[frame["level"] == 0]
    if start.empty:
        raise RecordsError("no dense network (level 0) in these rows; repeat the runs, or add the folder that has it")
    require(start, ["dense"])
    start = start.assign(setup=setups(frame)[frame["level"] == 0])
    start = counted(start, value)
    if value.metric is None and column in start:
        start = start.dropna(subset=[column])
    _numbers(start, column)

    intervals = {}
    for setup, rows in sorted(start.groupby("setup"), key=lambda group: natural(str(group[0]))):
        # Scorers write different rows about one network, so here only the value must agree.
        networks = _each_once(rows[["run", "level", "dense", column]], "dense", f"dense network of {setup}")
        _each_once(rows[["run", "level", "seed", "dense"]], "seed", str(setup))
        intervals[str(setup)] = INTERVALS[interval](networks[column].astype(float).tolist())
    return intervals


def start_shares(frame: pd.DataFrame) -> dict[str, dict[str, float]]:
    """The mean `density` and `macs` (remaining / original) of the networks of level 0, for every set-up: below 1 where
    they are of another run, which pruned them.
    """
    start = start_of(frame)
    shares = {"density": _numeric_column(start, "density")}
    shares["macs"] = _numeric_column(start, "macs") / _numeric_column(start, "dense_macs")
    means = pd.DataFrame(shares).fillna(1.0).groupby(start["setup"].to_numpy()).mean()
    return {str(setup): {str(name): float(of) for name, of in row.items()} for setup, row in means.iterrows()}


def start_of(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of the dense networks, each once. Their `setup` (`labels.setups`) is their `method` too."""
    labelled = setups(frame)
    start = frame.assign(setup=labelled, method=labelled, requested_density=1.0)
    return start[start["level"] == 0].drop_duplicates("dense")


def natural(text: str) -> list[Any]:
    """A key that sorts text by the numbers in it: "epochs=5" before "epochs=20", "lr=0.05" before "lr=0.1"."""
    parts = re.split(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)", text)
    return [float(part) if place % 2 else part for place, part in enumerate(parts)]


def _numbers(rows: pd.DataFrame, column: str) -> None:
    """Raise where `column` is not a finite number in each of the rows, and name the first run where it is not."""
    if column not in rows.columns:
        known = ", ".join(sorted(str(name) for name in rows.columns if _numeric(rows[name])))
        raise RecordsError(f'no column "{column}" in these rows; choose one of {known}')
    for run, level, cell in zip(rows["run"], rows["level"], rows[column], strict=True):
        if not is_number(cell) or not math.isfinite(cell):
            raise RecordsError(
                f"run {run}, level {level}: {column} is {cell!r}, not a finite number; repeat this run, or move it away"
            )


def _numeric(column: Iterable[Any]) -> bool:
    return all(map(is_number, column))


_COSTS = ("macs", "dense_macs", "latency_ms", "total_epochs")
"""Columns that some rows may lack."""


def _numeric_column(rows: pd.DataFrame, name: str) -> np.ndarray:
    """Its values as floats, so that a mean with a missing one is NaN; all NaN where there is no such column."""
    return rows[name].to_numpy(dtype=float, na_value=math.nan) if name in rows else np.full(len(rows), math.nan)


def _each_once(rows: pd.DataFrame, key: str, what: str) -> pd.DataFrame:
    """The first row of every value of `key`; the others must say the same of all but `INCIDENTAL` columns."""
    kept: dict[Any, Mapping[str, Any]] = {}
    for row in as_dicts(rows):
        first = kept.setdefault(row[key], row)
        if first is row:
            continue
        differ = [name for name in row if name not in INCIDENTAL and _text(row[name]) != _text(first[name])]
        if differ:
            raise RecordsError(
                f"{what}: runs {first['run']} and {row['run']} have the same {key} ({row[key]}) but not the same "
                f"{', '.join(map(str, differ))}; move one of them away"
            )
    return pd.DataFrame(list(kept.values()), columns=rows.columns)


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
