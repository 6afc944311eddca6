"""Rows: one JSON object a level, one file a run; a folder of runs becomes one frame.

Nothing that is read is evaluated or unpickled, and nothing is averaged here.
"""

from __future__ import annotations

import json
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from experiments.records.columns import fault_of, is_name
from pruning.errors import RecordsError

if TYPE_CHECKING:
    import pandas as pd

FORMAT = 2
READABLE = (1, FORMAT)
"""Rows of format 1 do not describe their metrics: they are of classifications."""
FILE = "rows.jsonl"


def write(folder: str | Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write a run's rows to `folder`/rows.jsonl, all or none, and return that path.

    The file is replaced in one step, so a reader or a crash never meets half of it. Where it already begins with these
    rows (a run that is repeated), their configuration aside, its later rows stay, so that nothing is lost if the
    repetition fails. A float that is not finite (the loss of a diverged network) is written as null, since JSON has no
    word for it; `read` gives it back as missing, and statistics refuse to average it. What this function accepts,
    `read` accepts.

    Raises `RecordsError` for no rows, a row without "format", "run" and "level", a level that comes twice, or a value
    that its column cannot hold (see `experiments.records.columns`), and `OSError` where the folder cannot be written.
    """
    path = Path(folder) / FILE
    lines = []
    seen = _Seen()
    for number, row in enumerate(rows, start=1):
        line = json.dumps(_finite(row), allow_nan=False)
        _row(line, seen, f"{path}, row {number}", number)
        lines.append(line + "\n")
    if not lines:
        raise RecordsError(f"{path}: there are no rows to write; evaluate at least the dense network (level 0) first")

    if _starts(path, lines):
        return path
    lines += _others(path, lines)
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
    """Whether the file begins with these lines, and can be read whatever follows."""
    try:
        _rows(path)
        return path.read_text(encoding="utf-8").startswith("".join(lines))
    except (OSError, UnicodeDecodeError, RecordsError):
        return False


def _others(path: Path, lines: list[str]) -> list[str]:
    """Later rows of the file, if it begins with rows equal to `lines`, configurations aside; else none."""
    try:
        there, new = _rows(path), [_parsed(line) for line in lines]
    except (OSError, RecordsError):
        return []
    same = all(a | {"config": None} == b | {"config": None} for a, b in zip(there, new, strict=False))
    return [json.dumps(row, allow_nan=False) + "\n" for row in there[len(lines) :]] if same else []


def read(folder: str | Path) -> pd.DataFrame:
    """Every rows.jsonl below `folder` as one frame: a row a level, a column a key, in the order of the paths.

    Rows need not have the same keys: what a row lacks is missing (NaN or None) in the frame. Unknown keys are kept,
    and nested ones ("config", "layers") stay objects. A run that is found twice with identical rows (a copied folder)
    is counted once; found twice with different rows it is an error, so that n is never larger than what was run.

    Raises `RecordsError`, which names file, line and column, for a missing folder, no rows, a line that is cut or not
    JSON, a row of another format, a value that its column cannot hold (see `experiments.records.columns`), and a run
    that is there twice; `OSError` where something cannot be read.
    """
    import pandas as pd  # noqa: PLC0415  # slow to import

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


def as_dicts(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a frame: column → value."""
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


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
    seen = _Seen()
    # Split the bytes, not the text: JSON may hold U+2028, which str.splitlines takes for the end of a line.
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        rows.append(_row(line, seen, f"{path}, line {number}", number))
    if not rows:
        raise RecordsError(f"{path}: the file is empty; repeat this run, or move it away")
    return rows


def _row(line: str | bytes, seen: _Seen, where: str, number: int) -> dict[str, Any]:
    try:
        row = _parsed(line)
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", error)  # without JSONDecodeError's own "line 1", which is not the file's
        raise RecordsError(f"{where}: cut or not JSON ({reason}); repeat this run, or move it away") from None
    _check(row, seen, where, number)
    found: dict[str, Any] = row
    return found


@dataclass
class _Seen:
    """Rows of a file so far: by run, level and control; and the first of each run that has layers, with their names."""

    levels: dict[tuple[str, int, str | None], int] = field(default_factory=dict)
    layers: dict[str, tuple[list[str], int]] = field(default_factory=dict)


def _check(row: Any, seen: _Seen, where: str, number: int) -> None:
    """Raise `RecordsError` for a row without format, run and level, one that comes twice, or an impossible value."""
    if not isinstance(row, Mapping):
        raise RecordsError(f"{where}: a row is a JSON object, this is {type(row).__name__}; repeat this run")
    if type(row.get("format")) is not int or row["format"] not in READABLE:
        raise RecordsError(
            f"{where}: format {row.get('format')!r}, this version reads {' and '.join(map(str, READABLE))}; "
            "read it with the version that wrote it, or repeat this run"
        )
    run, level, control = (row.get(name) for name in ("run", "level", "control"))
    if not is_name(run) or type(level) is not int or level < 0:
        raise RecordsError(f'{where}: "run" must be a name and "level" a count from 0; repeat this run')
    if control is not None and not is_name(control):
        raise RecordsError(f'{where}: "control" must be a name or null; repeat this run')
    fault = fault_of(row)
    if fault is not None:
        raise RecordsError(f"{where}: {fault}; repeat this run, or move it away")
    first = seen.levels.setdefault((run, level, control), number)
    if first != number:
        raise RecordsError(f"{where}: level {level} of run {run} was in line {first} already; repeat this run")
    if row.get("layers"):
        names = [layer["name"] for layer in row["layers"]]
        known, first = seen.layers.setdefault(run, (names, number))
        if names != known:
            raise RecordsError(f'{where}: "layers" have other names than in line {first}; repeat this run')


def _parsed(line: str | bytes) -> Any:
    """A line as JSON has it, but without what it leaves open: a key that comes twice, and numbers beyond floats."""
    return json.loads(line, parse_constant=_refuse, parse_float=_float, object_pairs_hook=_object)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _float(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refuse(text)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!a} comes twice")
    return found


def _finite(value: Any) -> Any:
    """`value` with every float that is not finite replaced by None, at any depth."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
