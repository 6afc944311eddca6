"""What a run is doing: a small file in its folder, and a lock that the operating system drops with its process."""

import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from experiments import records

log = logging.getLogger("experiments")

FILE, LOCK = "state.json", ".lock"


@dataclass(frozen=True)
class State:
    """Of one run.

    Attributes:
        run: the name of its folder.
        state: "running", "done", "failed" (by an error, which `reason` tells), or "cut" (its process ended without a
            word: killed, out of memory, a machine that went down, or the user's interruption).
        command: what repeats it.
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
def recorded(folder: Path, command: str, hardware: str = "") -> Iterator[None]:
    """Tell in `folder` that a run is going on, and how it ended. Another process that is at the same run is waited for.

    Where nothing can be written, nothing is told: a finished run may lie where nobody can write any more.
    """
    if not os.access(folder, os.W_OK):
        yield
        return
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("waiting for another process, which is at %s", folder.name)
        lock.acquire()
    here = {"host": socket.gethostname(), "process": os.getpid(), "hardware": hardware}
    state = State(folder.name, "running", command, None, time.time(), None, **here)
    try:
        _write(folder, state)
        yield
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        try:
            _write(folder, replace(state, state="failed", reason=reason, ended=time.time()))
        except OSError as second:  # a disk that is full is why it failed: that error is the one to tell
            log.warning("%s: %s", folder / FILE, second)
        raise
    else:
        _write(folder, replace(state, state="done", ended=time.time()))
    finally:
        lock.release()


def states(folder: Path) -> list[State]:
    """The states of all runs at any depth below `folder`, by the time they began. Raises `OSError`."""
    found = []
    for path in sorted(folder.rglob(FILE)):
        try:
            state = State(**json.loads(path.read_text()))
        except (ValueError, TypeError) as error:
            raise OSError(0, f"is no state of a run ({error}): remove it", str(path)) from error
        if state.state == "running" and not _held(path.parent / LOCK):
            state = replace(state, state="cut")
        rows = path.parent / records.FILE
        count = sum(1 for line in rows.read_bytes().split(b"\n") if line) if rows.exists() else 0
        found.append(replace(state, rows=count))
    return sorted(found, key=lambda state: state.began)


def _held(path: Path) -> bool:
    if not path.exists():
        return False
    try:
        with FileLock(path).acquire(timeout=0):
            return False
    except Timeout:
        return True
    except PermissionError:  # of another user: what cannot be known is told as it was written
        return True


def _write(folder: Path, state: State) -> None:
    """A reader never meets half of it."""
    temporary = folder / f".{FILE}.{os.getpid()}.tmp"
    known = {key: value for key, value in asdict(state).items() if key != "rows"}
    temporary.write_text(json.dumps(known, indent=1))
    temporary.replace(folder / FILE)
