"""Data of the report page: numbers for its script, text for its tables."""

import json
import math
import os
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
from scipy import stats

from experiments import records
from experiments.configuration.targets import short_name
from experiments.records.runs import State
from experiments.records.values import Value
from experiments.results import figures, statistics
from experiments.results.exclusions import counted, failed_trainings, without_diverged
from experiments.results.figures.layers import layer_densities
from experiments.results.gallery import available_axes
from experiments.results.labels import flattened, setups
from pruning.errors import RecordsError

CONFIDENCE = 0.95
NOTHING = "\N{EN DASH}"
"""Text for a field that a run does not have."""


def curves(frame: pd.DataFrame, value: Value) -> dict[str, Any]:
    """Every point of every seed, the dense networks, layers, and Student's quantiles, by which the page makes means."""
    final = statistics.points(frame, value)
    methods = list(dict.fromkeys(final["method"]))
    summary = statistics.summarise_points(final, frame, value)
    start = counted(frame[frame["level"] == 0], value).drop_duplicates("dense").dropna(subset=[value.column])
    labelled = setups(frame)[start.index]
    most = max(2, int(final.groupby(["method", "requested_density"])["seed"].nunique().max()), len(start))
    return {
        "label": value.label,
        "scale": value.scale,
        "digits": value.digits,
        "log": value.log and min(*final[value.column], *start[value.column]) > 0,
        "lower": value.meaning("lower") == "better",
        "axes": available_axes(summary),
        "methods": [
            {"name": name, "colour": _of(figures.COLOURS, place), "symbol": _of(_SYMBOLS, place)}
            for place, name in enumerate(methods)
        ],
        "points": [
            {
                "method": row["method"],
                "scorer": str(row["scorer"]),
                "granularity": _granularity(row["config"]),
                "seed": int(row["seed"]),
                "requested": float(row["requested_density"]),
                "density": float(row["density"]),
                "macs": _ratio(row.get("macs"), row.get("dense_macs")),
                "latency": _number(row.get("latency_ms")),
                "cost": _number(row.get("total_epochs")),
                "value": float(row[value.column]),
                "run": str(row["run"]),
            }
            for row in final.to_dict("records")
        ],
        "dense": [
            {"setup": setup, "seed": int(seed), "value": float(of)}
            for setup, seed, of in zip(labelled, start["seed"], start[value.column], strict=True)
        ],
        "layers": _layers(final),
        "quantiles": [
            None,
            None,
            *(float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) for n in range(2, max(most, 2) + 1)),
        ],
    }


def _layers(final: pd.DataFrame) -> list[dict[str, Any]]:
    """Densities of layers; none where some row has no layers."""
    try:
        return records.as_dicts(layer_densities(final))
    except RecordsError:
        return []


def runs(frame: pd.DataFrame, states: list[State], folder: Path, output: Path) -> list[dict[str, str]]:
    """A row of the page's table of runs for every run: what it was, where, how long, and a link to its rows."""
    known = {state.run: state for state in states}
    places = {path.parent.name: path for path in folder.rglob(records.FILE)}
    found = []
    for name, rows in frame.groupby("run", sort=False):
        last, state = rows.iloc[-1], known.get(str(name))
        place = places.get(str(name))
        found.append(
            {
                "run": str(name),
                "state": ", ".join(filter(None, ["" if state is None else state.state, *_failures(rows)])),
                "seed": str(last["seed"]),
                "rows": str(len(rows)),
                "trained": _trained(rows),
                "began": "" if state is None else _when(state.began),
                "hardware": "" if state is None else f"{state.hardware} ({state.host})",
                "threads": str(last.get("threads", "")),
                "versions": _versions(last.get("versions")),
                "command": "" if state is None else state.command,
                "link": "" if place is None else quote(_relative(place, output)),
            }
        )
    return found


def _trained(rows: pd.DataFrame) -> str:
    """Seconds of all trainings of a run; nothing where one of them is not known."""
    seconds = rows["seconds"].sum(skipna=False) if "seconds" in rows else math.nan
    return "" if math.isnan(seconds) else _duration(float(seconds))


def _failures(rows: pd.DataFrame) -> list[str]:
    """ "diverged at step 12 (level 1), 7 (level 2)", and what failed_trainings says; nothing where no level did."""
    grown = [text.split(": ", 1)[1] for text in failed_trainings(rows)]
    found = rows.drop(without_diverged(rows).index)
    if found.empty:
        return grown
    steps = [f"{step:.0f} (level {level})" for step, level in zip(found["diverged"], found["level"], strict=True)]
    return [f"diverged at step {', '.join(steps)}", *grown]


def configuration(frame: pd.DataFrame) -> tuple[list[tuple[str, str]], list[tuple[str, list[str]]]]:
    """The fields of the configuration in which all runs agree, with their value; the others, with all their values."""
    options = [dict(flattened(config)) for config in frame.drop_duplicates("run")["config"]]
    paths = sorted({path for option in options for path in option})
    same, apart = [], []
    for path in paths:
        values = list(dict.fromkeys(_plain(option[path]) if path in option else NOTHING for option in options))
        if len(values) == 1:
            same.append((path, values[0]))
        else:
            apart.append((path, values))
    return same, apart


_SYMBOLS = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "x")


def _plain(text: str) -> str:
    """JSON without the quotes of a string, where that can be read no other way."""
    value = json.loads(text)
    return value if isinstance(value, str) and value.isprintable() and value.strip() == value != "" else text


def _of(names: tuple[str, ...], place: int) -> str:
    return names[place % len(names)]


def _granularity(config: Mapping[str, Any]) -> str:
    part = config.get("granularity")
    return short_name(part).lower() if isinstance(part, Mapping) and "_target_" in part else ""


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _ratio(part: Any, whole: Any) -> float | None:
    a, b = _number(part), _number(whole)
    return a / b if a is not None and b else None


def _versions(versions: Any) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items()) if isinstance(versions, Mapping) else ""


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def _when(at: float) -> str:
    return datetime.fromtimestamp(at, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def _relative(path: Path, output: Path) -> str:
    return os.path.relpath(path.resolve(), output.resolve())
