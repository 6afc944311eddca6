"""The state of a run: a small file in its folder, and a lock that the operating system frees with its process."""

import json
import logging
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import NoneType
from typing import Any, Literal

from filelock import Timeout

from experiments import records
from experiments.runtime.locks import acquire_with_log, file_lock
from pruning.errors import RecordsError

log = logging.getLogger("experiments")

FILE, LOCK = "state.json", ".lock"


@dataclass(frozen=True)
class State:
    """State of one run.

    Attributes:
        run: the name of its folder.
        state: "running", "done", "failed" (`reason` is the error), or "cut" (its process ended without a word:
            killed, out of memory, a machine that went down, or an interruption by the user).
        command: the command that repeats it.
        reason: one line, or None.
        began, ended: seconds since 1970; `ended` is None where it did not come to an end of its own.
        host, process, hardware: where it ran last, and on what.
        rows: how many levels it has written, dense network and controls among them.
    """

    run: str
    state: Literal["running", "done", "failed", "cut"]
    command: str
    reason: str | None
    began: float
    ended: float | None
    host: str
    process: int
    hardware: str
    rows: int = 0


@contextmanager
def record_state(folder: Path, command: str, hardware: str = "") -> Iterator[None]:
    """Write to `folder` that a run is running, and how it ended. Wait for another process with the same run.

    Nothing is written to a read-only folder: a finished run may lie in one.
    """
    if not os.access(folder, os.W_OK):
        yield
        return
    with acquire_with_log(file_lock(folder / LOCK), f"at {folder.name}"):
        here = socket.gethostname(), os.getpid(), hardware
        state = State(folder.name, "running", command, None, time.time(), None, *here)
        try:
            _write(folder, state)
            yield
        except KeyboardInterrupt:
            _end(folder, replace(state, state="cut", reason="it was interrupted", ended=time.time()))
            raise
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            _end(folder, replace(state, state="failed", reason=reason, ended=time.time()))
            raise
        _end(folder, replace(state, state="done", ended=time.time()))


def states(folder: Path) -> list[State]:
    """The states of all runs at any depth below `folder`, by the time they began.

    Raises `RecordsError` for a file that is no state, `OSError` for one that cannot be read.
    """
    found = []
    for path in sorted(folder.rglob(FILE)):
        state = _read(path)
        if state.state == "running" and not _held(path.parent / LOCK):
            state = _read(path)  # it may have come to its end between the two looks
            state = replace(state, state="cut") if state.state == "running" else state
        rows = path.parent / records.FILE
        count = sum(1 for line in rows.read_bytes().split(b"\n") if line) if rows.exists() else 0
        found.append(replace(state, rows=count))
    return sorted(found, key=lambda state: state.began)


def _held(path: Path) -> bool:
    if not path.exists():
        return False
    try:
        with file_lock(path).acquire(timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # of another user, or on a read-only disk: the written state stands
        return True


def _read(path: Path) -> State:
    try:
        state = State(**json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise RecordsError(f"{path}: is no state of a run ({error}): remove it") from error
    for name, kinds in _KINDS.items():
        if not isinstance(getattr(state, name), kinds):
            raise RecordsError(f"{path}: is no state of a run ({name} is {getattr(state, name)!r}): remove it")
    if state.state not in ("running", "done", "failed", "cut") or not 0 <= state.began <= (state.ended or _LATEST):
        raise RecordsError(f"{path}: is no state of a run ({state.state}, begun at {state.began}): remove it")
    return replace(state, ended=None if state.ended is None else min(state.ended, _LATEST))


_LATEST = 1e11  # seconds since 1970 that a clock shows
_KINDS: dict[str, Any] = dict.fromkeys(("run", "state", "command", "host", "hardware"), str)
_KINDS |= {"reason": (str, NoneType), "began": (int, float), "ended": (int, float, NoneType), "process": int}


def _end(folder: Path, state: State) -> None:
    """Write the final state; only warn where that fails, as on a full disk: the rows of the run stay valid."""
    try:
        _write(folder, state)
    except OSError as error:
        log.warning("%s: %s", folder / FILE, error)


def _write(folder: Path, state: State) -> None:
    """Replace the file in one step, so that a reader never meets half of it."""
    temporary = folder / f".{FILE}.{os.getpid()}.tmp"
    known = {key: value for key, value in asdict(state).items() if key != "rows"}
    temporary.write_text(json.dumps(known, indent=1))
    temporary.replace(folder / FILE)


def repetitions(again: Sequence[State]) -> list[str]:
    """Two lines per run that failed or was cut: the reason, and the command that repeats it."""
    lines = []
    for state in again:
        reason = state.reason or "its process ended without a word"
        lines += [f"{state.run}: {reason}", f"    {state.command}"]
    return lines
