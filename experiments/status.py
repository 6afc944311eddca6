"""python -m experiments.status FOLDER: which runs are running, done, failed or cut, and the commands that repeat them.

    python -m experiments.status runs/mine
    python -m experiments.status runs/mine --commands > again.sh

It changes nothing, so it may look at a sweep that is going on; from another machine too, if the file system shares its
locks (NFS does), as a run is taken for cut where nobody holds its lock.
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments.records.runs import State, repetitions, states
from experiments.runtime.errors import report_error
from pruning.errors import RecordsError

ORDER = ("running", "failed", "cut", "done")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; exit code 1 for an error that the user can fix, in one line on standard error (2: argparse)."""
    asked = _arguments(argv)
    try:
        if not asked.folder.is_dir():
            return report_error(f"{asked.folder}: there is no such folder; give the folder that holds the runs")
        found = states(asked.folder)
    except RecordsError as error:
        return report_error(str(error))
    except OSError as error:
        return report_error(f"{error.filename or asked.folder}: {error.strerror or error}")
    if not found:
        return report_error(f"{asked.folder}: holds no run; start one with `python -m experiments.run`")
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    again = [state for state in found if state.state in ("failed", "cut")]
    if asked.commands:
        for state in again:
            console.print(Text(state.command), soft_wrap=True)
        return 0
    console.print(table(found))
    console.print(summary(found))
    for line in repetitions(again):
        console.print(Text(line), soft_wrap=True)
    return 0


def table(found: Sequence[State]) -> Table:
    """A table of all runs, those that need attention first."""
    result = Table(box=None, pad_edge=False)
    for name in ("state", "run", "rows", "time", "where", "why"):
        right = name in ("rows", "time")
        result.add_column(name, justify="right" if right else "left", overflow="fold", no_wrap=name == "state")
    for state in sorted(found, key=lambda state: ORDER.index(state.state)):
        end = time.time() if state.state == "running" else state.ended
        spent = "" if end is None else str(timedelta(seconds=round(end - state.began)))
        place = f"{state.host}, process {state.process}"
        result.add_row(state.state, Text(state.run), str(state.rows), spent, Text(place), Text(state.reason or ""))
    return result


def summary(found: Sequence[State]) -> str:
    """ "12 done, 1 failed"."""
    counts: Counter[str] = Counter(state.state for state in found)
    return ", ".join(f"{counts[name]} {name}" for name in reversed(ORDER) if counts[name])


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.status", description="What the runs of a folder are doing."
    )
    parser.add_argument("folder", type=Path, help="the folder that holds the runs, at any depth")
    parser.add_argument("--commands", action="store_true", help="only the commands that repeat what failed or was cut")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
