"""Columns of rows: the values that each may hold.

A value that is null or absent was not measured. Columns that are not named here may hold any value that every reader
can show.
"""

import re
import reprlib
import sys
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, TypeGuard

from experiments.records.metrics import ANSWER_METRICS, Metric
from experiments.records.values import PARTS

DEEPEST, LARGEST = 50, 1e100
"""Deepest nesting of a row (those of this project have six levels), and its largest number that figures can show."""

LONGEST = 1e11  # seconds, three thousand years


def fault_of(row: Mapping[str, Any]) -> str | None:
    """The first fault in the values of a row, with its column and reason; None if there is none."""
    known = _COLUMNS | _measured(row.get("metrics"))
    for name, value in row.items():
        reason = _unreadable(name) or _unreadable(value, sys.float_info.max if name == "config" else LARGEST)
        wanted, holds = known.get(name, _ANYTHING)
        if reason is None and value is not None and not holds(value):
            reason = f"no {wanted}"
        if reason is not None:
            return f"{name!a} is {_short(value)}, {reason}"
    for names in _ASCENDING:
        there = [(name, row[name]) for name in names if row.get(name) is not None]
        for (low, a), (high, b) in pairwise(there):
            if a > b:
                return f"{low!r} is {a}, more than {high!r}, which is {b}"
    density, kept, prunable = (row.get(name) for name in ("density", "kept", "prunable"))
    if None not in (density, kept) and prunable and abs(density - kept / prunable) > 1e-6:
        return f"'density' is {density}, but 'kept' by 'prunable' {kept / prunable:.6g}"
    return None


def _short(value: Any) -> str:
    return ascii(reprlib.repr(value))[1:-1] if isinstance(value, str) else reprlib.repr(value)


def _unreadable(value: Any, largest: float = LARGEST, depth: int = 1) -> str | None:
    """Why some reader could not show a value (broken text, too large, nested too deeply); None if all can."""
    if isinstance(value, str):
        return "no text" if any("\ud800" <= sign <= "\udfff" for sign in value) else None
    if isinstance(value, int | float):
        return f"beyond {largest:.3g}" if abs(value) > largest else None
    if not isinstance(value, Mapping | list):
        return None
    if depth > DEEPEST:
        return f"nested deeper than {DEEPEST} levels"
    inner = [*value, *value.values()] if isinstance(value, Mapping) else value
    return next((reason for item in inner if (reason := _unreadable(item, largest, depth + 1)) is not None), None)


# Kinds of values


Check = Callable[[Any], bool]


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _amount(value: Any) -> bool:
    return _number(value) and value >= 0


def _duration(value: Any) -> bool:
    return _amount(value) and value <= LONGEST


def _fraction(value: Any) -> bool:
    return _number(value) and 0 <= value <= 1


def _count(value: Any) -> bool:
    """Also as 3.0, which is what pandas makes of counts where some row has none."""
    return _amount(value) and value == int(value)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and _amount(value)


def is_name(value: Any) -> TypeGuard[str]:
    """Whether `value` is text in one line."""
    return isinstance(value, str) and value != "" and value.isprintable()


def _key(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[\w-]+(\+[\w-]+)?", value) is not None


def _names(value: Any) -> bool:
    return isinstance(value, list) and all(map(is_name, value))


def _object(value: Any) -> bool:
    return isinstance(value, Mapping)


def _versions(value: Any) -> bool:
    return isinstance(value, Mapping) and all(map(is_name, value.values()))


def _layers(value: Any) -> bool:
    """At least one, each by a name of its own."""
    if not isinstance(value, list) or not all(map(_layer, value)):
        return False
    return 0 < len({layer["name"] for layer in value}) == len(value)


def _layer(value: Any) -> bool:
    if not isinstance(value, Mapping) or not {"name", "kept", "total"} <= set(value):
        return False
    shape = value.get("shape", [])
    counts = _count(value["kept"]) and _count(value["total"]) and value["kept"] <= value["total"]
    return is_name(value["name"]) and counts and isinstance(shape, list) and all(map(_count, shape))


def _losses(value: Any) -> bool:
    """Epochs since the initialisation, and the loss, null where it diverged."""
    return isinstance(value, list) and all(
        isinstance(pair, list) and len(pair) == 2 and _amount(pair[0]) and (pair[1] is None or _number(pair[1]))
        for pair in value
    )


def _metrics(value: Any) -> bool:
    """At least one, each by a name of its own."""
    if not isinstance(value, list) or not all(map(_metric, value)):
        return False
    return 0 < len({one["name"] for one in value}) == len(value)


def _metric(value: Any) -> bool:
    if not isinstance(value, Mapping) or not {"name", "higher_is_better"} <= set(value):
        return False
    scale, chance, unit = value.get("scale", 1.0), value.get("chance"), value.get("unit", "")
    return (
        isinstance(value["name"], str)
        and re.fullmatch(r"\w+", value["name"]) is not None
        and isinstance(value["higher_is_better"], bool)
        and _number(scale)
        and scale > 0
        and (unit == "" or is_name(unit))
        and (chance is None or _number(chance))
        and isinstance(value.get("log", False), bool)
    )


def _measured(metrics: Any) -> "dict[str, tuple[str, Check]]":
    """The columns of a row's own metrics; none where they cannot be read, which is said of "metrics" itself."""
    if not _metrics(metrics):
        return {}
    described = map(Metric.from_dict, metrics)
    return {f"{part}_{one.name}": _SHARE if one.fraction else _NUMBER for one in described for part in PARTS}


_SHARE: tuple[str, Check] = ("fraction from 0 to 1", _fraction)
_NUMBER: tuple[str, Check] = ("number", _number)
_ANYTHING: tuple[str, Check] = ("value", lambda _: True)
_COLUMNS: dict[str, tuple[str, Check]] = {
    **dict.fromkeys(
        (
            *("density", "requested_density", "target_density", "smallest_density"),
            *("validation_accuracy", "test_accuracy"),
        ),
        _SHARE,
    ),
    **dict.fromkeys(
        (
            *("round", "rounds", "prunable", "kept", "parameters", "nonzero", "dense_macs", "macs", "bytes"),
            *("removed_parameters", "removed_bytes", "latency_batch", "threads", "processes"),
            *(f"adaptation_{name}" for name in ("trained", "dense", "bytes", "optimizer_bytes", "filled")),
        ),
        ("count", _count),
    ),
    **dict.fromkeys(
        ("latency_ms", "removed_difference", "epochs", "total_epochs", "adaptation_step_ms", "adaptation_rate"),
        ("number of at least 0", _amount),
    ),
    **dict.fromkeys(
        ("seconds", "total_seconds", "adaptation_search_seconds", "adaptation_support_seconds"),
        (f"number of seconds, from 0 to {LONGEST:g}", _duration),
    ),
    **{f"test_{metric.name}": _SHARE for metric in ANSWER_METRICS},
    **dict.fromkeys(("answers", "targets"), ("encoded answers", is_name)),
    "worst_class": ("class, a count", _count),
    **dict.fromkeys(("validation_loss", "test_loss", "first_loss"), _NUMBER),
    **dict.fromkeys(("scorer", "model", "data", "when", "dense", "device", "smallest_layer"), ("name", is_name)),
    **dict.fromkeys(("emptied", "sparse", "adaptation_others"), ("list of names", _names)),
    "network": ("key of a network", _key),
    "metrics": ("list of metrics, each with a name of its own and its direction", _metrics),
    "diverged": ("step, a count", _count),
    "seed": ("whole number of at least 0", _whole),
    "layers": ("list of layers, each with a name of its own and no more kept than in total", _layers),
    "losses": ("list of pairs, epoch and loss", _losses),
    "adaptation_ms": _NUMBER,
    "adaptation_rates": ("list of pairs, learning rate and validation metric", _losses),
    "versions": ("object of names and versions", _versions),
    "config": ("object", _object),
}
"""Column → what it must be, and whether a value that is not null is that."""

_ASCENDING = (
    ("kept", "prunable", "parameters"),
    ("nonzero", "parameters"),
    ("macs", "dense_macs"),
    ("round", "rounds"),
)
"""Columns that are never above those after them."""
