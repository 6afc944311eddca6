"""Rows: one JSON object a level, one file a run; a folder of runs becomes one frame, and each of its rows has a label.

Nothing that is read is evaluated or unpickled, and nothing is averaged here. What may be averaged is decided here:
two rows belong together only where `methods` gives them the same label, which it does only where their configurations
agree in everything but the seed and bookkeeping.
"""

import json
import math
import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import pandas as pd

from pruning.errors import RecordsError

FORMAT = 1
FILE = "rows.jsonl"

BOOKKEEPING = frozenset(
    {
        *("seed", "density", "folder", "store", "threads", "device", "name", "tracker", "experiment", "progress"),
        *("checkpoint", "controls", "latency"),
    }
)
"""Top-level keys of a configuration that do not make another method: which repetition, which densities, where."""

PRUNING = frozenset(
    {
        "scorer",
        "scoring",
        "when",
        "granularity",
        "allocation",
        "schedule",
        "compensate",
        "dynamic",
        "recovery",
        "include",
        "exclude",
    }
)
"""Top-level keys that act after the dense network is trained. A key that is in neither set is taken to shape both."""


def write(folder: str | Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write a run's rows to `folder`/rows.jsonl, all or none, and return that path.

    The file is replaced in one step, so a reader or a crash never meets half of it; where it already begins with these
    rows (a run that is repeated), it stays, so that nothing known is lost if the repetition fails. A float that is not
    finite (the loss of a diverged network) is written as null, since JSON has no word for it; `read` gives it back as
    missing, and statistics refuse to average it. What this function accepts, `read` accepts.

    Raises `RecordsError` for no rows, a row without "format", "run" and "level", or a level that comes twice, and
    `OSError` where the folder cannot be written.
    """
    path = Path(folder) / FILE
    lines = []
    seen: _Seen = {}
    for number, row in enumerate(rows, start=1):
        _check(row, seen, f"{path}, row {number}", number)
        lines.append(json.dumps(_finite(row), allow_nan=False) + "\n")
    if not lines:
        raise RecordsError(f"{path}: there are no rows to write; evaluate at least the dense network (level 0) first")

    if _starts(path, lines):
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{FILE}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _starts(path: Path, lines: list[str]) -> bool:
    try:
        return path.read_text(encoding="utf-8").startswith("".join(lines))
    except (OSError, UnicodeDecodeError):
        return False


def read(folder: str | Path) -> pd.DataFrame:
    """Every rows.jsonl below `folder` as one frame: a row a level, a column a key, in the order of the paths.

    Rows need not have the same keys: what a row lacks is missing (NaN or None) in the frame. Unknown keys are kept,
    and nested ones ("config", "layers") stay objects. A run that is found twice with identical rows (a copied folder)
    is counted once; found twice with different rows it is an error, so that n is never larger than what was run.

    Raises `RecordsError`, which names file and line, for a missing folder, no rows, a line that is cut or not JSON, a
    row of another format, and a run that is there twice; `OSError` where something cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise RecordsError(f"{folder}: there is no such folder; give the folder that holds the runs")

    runs: dict[str, tuple[Path, list[dict[str, Any]]]] = {}
    for path in _files(folder):
        found: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in _rows(path):
            found[row["run"]].append(row)
        for run, rows in found.items():
            first, known = runs.setdefault(run, (path, rows))
            if known != rows:
                raise RecordsError(f"{path}: run {run} is also in {first}, with other rows; move one of them away")
    if not runs:
        raise RecordsError(f"{folder}: no {FILE} in it or below; run `python -m experiments.run` first")
    return pd.DataFrame([row for _, rows in runs.values() for row in rows])


def methods(frame: pd.DataFrame) -> pd.Series:
    """The method of every row, as a label: what its configuration says, without seed, densities and bookkeeping.

    Two rows have the same label exactly where scorer, model, data and the rest of the configuration agree. A label
    is the scorer's short name, then in brackets what tells it from the frame's other methods of that name:
    "taylor (form=abs)", "magnitude (recovery.epochs=20)". Model and data appear where the frame has several. So a
    label depends on the frame, but not on the order of its rows.

    The rows of a control (see `experiments.controls`) are another method, and its name ends the label: "magnitude,
    reinit".

    A nested "folder" is a place and is ignored; a nested "seed" is ignored where it follows the run's own seed in
    all rows that otherwise agree, and is an ordinary option (a fixed split, say) where it does not.

    Raises `RecordsError` where a row lacks its scorer, model, data, seed or configuration.
    """
    labels = _labels(frame, "scorer", BOOKKEEPING)
    if "control" not in frame:
        return labels
    return labels.where(frame["control"].isna(), labels + ", " + frame["control"].astype(str))


def baselines(frame: pd.DataFrame) -> pd.Series:
    """The set-up of the dense network that every row starts from, as a label: "dense", or "dense (model=lenet_5)".

    As `methods`, over what is decided before pruning: every key of the configuration but those of `PRUNING`.
    """
    return _labels(frame, None, BOOKKEEPING | PRUNING)


def require(frame: pd.DataFrame, columns: Iterable[str]) -> None:
    """Raise `RecordsError` where a column is not there, or missing in some row."""
    for column in columns:
        if column not in frame.columns:
            raise RecordsError(f'no row has "{column}"; its rows were written by another program, run the sweep again')
        missing = frame[column].isna()
        if missing.any():
            row = frame[missing].iloc[0]
            raise RecordsError(
                f'run {row["run"]}, level {row["level"]}: no "{column}"; move this run away or repeat it'
            )


# Files and rows


def _files(folder: Path) -> Iterator[Path]:
    """The paths of rows below `folder`, sorted. A folder that cannot be listed raises: its runs would silently lack."""

    def fail(error: OSError) -> NoReturn:
        raise error

    found = [Path(place) / FILE for place, _, names in os.walk(folder, onerror=fail) if FILE in names]
    return iter(sorted(found))


def _rows(path: Path) -> list[dict[str, Any]]:
    rows = []
    seen: _Seen = {}
    # Split the bytes, not the text: JSON may hold U+2028, which str.splitlines takes for the end of a line.
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line, parse_constant=_refuse)
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", error)  # without JSONDecodeError's own "line 1", which is not the file's
            raise RecordsError(f"{where}: cut or not JSON ({reason}); repeat this run, or move it away") from None
        _check(row, seen, where, number)
        rows.append(row)
    if not rows:
        raise RecordsError(f"{path}: the file is empty; repeat this run, or move it away")
    return rows


_Seen = dict[tuple[str, int, str | None], int]
"""Run, level and control of the rows of a file -> their numbers."""


def _check(row: Any, seen: _Seen, where: str, number: int) -> None:
    """What every row must have to be told from others; `seen` remembers the levels of this file."""
    if not isinstance(row, Mapping):
        raise RecordsError(f"{where}: a row is a JSON object, this is {type(row).__name__}; repeat this run")
    if type(row.get("format")) is not int or row["format"] != FORMAT:
        raise RecordsError(
            f"{where}: format {row.get('format')!r}, this version reads {FORMAT}; "
            "read it with the version that wrote it, or repeat this run"
        )
    run, level = row.get("run"), row.get("level")
    if not isinstance(run, str) or type(level) is not int or level < 0:
        raise RecordsError(f'{where}: "run" must be a name and "level" a count from 0; repeat this run')
    control = row.get("control")
    if control is not None and not isinstance(control, str):
        raise RecordsError(f'{where}: "control" must be a name or null; repeat this run')
    first = seen.setdefault((run, level, control), number)
    if first != number:
        raise RecordsError(f"{where}: level {level} of run {run} was in line {first} already; repeat this run")


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _finite(value: Any) -> Any:
    """`value` with every float that is not finite replaced by None, at any depth."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


# Labels


def _labels(frame: pd.DataFrame, head: str | None, ignored: Collection[str]) -> pd.Series:
    """A label a row: the value in column `head` ("dense" for None), then what differs among those that share it."""
    require(frame, [*([head] if head else []), "model", "data", "seed", "config"])
    options = _options(frame, ignored)
    heads = [str(name) for name in frame[head]] if head else ["dense"] * len(frame)
    places = list(zip(frame["model"].astype(str), frame["data"].astype(str), strict=True))

    implied = _constant({"model", "data"}, places, options)
    shown: dict[str, list[str]] = {}
    for name in set(heads):
        members = [option for option, other in zip(options, heads, strict=True) if other == name]
        shown[name] = _telling([path for path in _differing(members) if path not in implied], members)
    several = [len(set(names)) > 1 for names in zip(*places, strict=True)] if places else []

    paths = {path for option in options for path in option}
    short = {path: _short(path, paths) for path in paths}
    targets = _targets(options)
    labels = []
    for name, place, option in zip(heads, places, options, strict=True):
        parts = [f"{key}={text}" for key, text, many in zip(("model", "data"), place, several, strict=True) if many]
        parts += [f"{short[path]}={_text(path, option[path], targets)}" for path in shown[name] if path in option]
        labels.append(f"{name} ({', '.join(parts)})" if parts else name)
    return pd.Series(labels, index=frame.index, name="method", dtype=object)


def _options(frame: pd.DataFrame, ignored: Collection[str]) -> list[dict[str, str]]:
    """The flattened configuration of every row, without what is ignored, and without seeds that follow the run's."""
    options, nested = [], []
    for run, config in zip(frame["run"], frame["config"], strict=True):
        if not isinstance(config, Mapping):
            raise RecordsError(f'run {run}: "config" is not a mapping; move this run away or repeat it')
        flat = dict(_flatten(config))
        flat = {path: value for path, value in flat.items() if path.split(".")[0] not in ignored}
        nested.append({path: value for path, value in flat.items() if _leaf(path) == "seed"})
        options.append({path: value for path, value in flat.items() if _leaf(path) not in ("seed", "folder")})

    # A seed follows where it equals the run's in *all* rows that agree otherwise: in one row alone it may by chance.
    follows: dict[tuple[Any, str], bool] = defaultdict(lambda: True)
    alike = [frozenset(option.items()) for option in options]
    for group, seeds, own in zip(alike, nested, frame["seed"], strict=True):
        for path, value in seeds.items():
            follows[group, path] &= value == str(own)
    for group, option, seeds in zip(alike, options, nested, strict=True):
        option.update((path, value) for path, value in seeds.items() if not follows[group, path])
    return options


def _flatten(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Leaves of a nested mapping as (dotted path, JSON): text, so that 1, 1.0, true and "1" stay four values."""
    if isinstance(value, Mapping) and (value or not path):
        for key, item in value.items():
            yield from _flatten(item, f"{path}.{key}" if path else str(key))
    else:
        yield path, json.dumps(value, sort_keys=True)


def _leaf(path: str) -> str:
    return path.rsplit(".", 1)[-1]


def _differing(options: list[dict[str, str]]) -> list[str]:
    """Paths whose value, or presence, is not the same in all `options`; sorted, the scorer's own before others."""
    paths = {path for option in options for path in option}
    differing = [path for path in paths if len({option.get(path) for option in options}) > 1]
    return sorted(differing, key=lambda path: (not path.startswith("scorer."), path))


def _telling(paths: list[str], options: list[dict[str, str]]) -> list[str]:
    """`paths` without those that a target among them decides: "granularity=Channels" tells the options of Channels too,
    if all who have Channels agree on them."""

    def decided(path: str) -> bool:
        target = f"{path.rpartition('.')[0]}._target_"
        values: dict[str | None, set[str | None]] = defaultdict(set)
        for option in options:
            values[option.get(target)].add(option.get(path))
        return target != path and target in paths and all(len(found) == 1 for found in values.values())

    return [path for path in paths if not decided(path)]


def _constant(roots: set[str], places: list[tuple[str, str]], options: list[dict[str, str]]) -> set[str]:
    """Paths below `roots` that (model, data) already decide, so that the short names say all."""
    groups: dict[tuple[str, str], list[dict[str, str]]] = defaultdict(list)
    for place, option in zip(places, options, strict=True):
        groups[place].append(option)
    paths = {path for option in options for path in option if path.split(".")[0] in roots}
    return paths - {path for group in groups.values() for path in _differing(group)}


def _short(path: str, paths: set[str]) -> str:
    """The path as a label shows it: "granularity" for its target, "form" for a scorer's own option."""
    path = path.removesuffix("._target_")
    own = path.removeprefix("scorer.")
    return path if own in paths or f"{own}._target_" in paths or own == "seed" else own


def _targets(options: list[dict[str, str]]) -> dict[str, str]:
    """Import paths (as JSON) -> their last part, where no other import path of the frame ends in the same."""
    found = {value for option in options for path, value in option.items() if _leaf(path) == "_target_"}
    names = {value: str(json.loads(value)).rsplit(".", 1)[-1] for value in found}
    return {value: name for value, name in names.items() if list(names.values()).count(name) == 1}


def _text(path: str, value: str, targets: Mapping[str, str]) -> str:
    """JSON as a label shows it: a string without its quotes, unless it would then read as something else."""
    if _leaf(path) == "_target_" and value in targets:
        return targets[value]
    plain = json.loads(value)
    if not isinstance(plain, str) or not plain or not plain.isprintable() or set(plain) & set(',=()"'):
        return value
    try:
        json.loads(plain)
    except ValueError:
        return plain
    return value
