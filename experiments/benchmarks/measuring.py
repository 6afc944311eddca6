"""Timing on a noisy machine: contenders take turns, medians are compared; and what a call needs in memory."""

import gc
import json
import statistics
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def median_ratio(numerator: list[float], denominator: list[float]) -> float:
    """The median over turns of the ratio within a turn."""
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))


def peak_bytes(call: Callable[[], Any]) -> tuple[Any, int]:
    """The result of `call`, and the growth of resident memory at its peak, sampled every millisecond (Linux)."""
    gc.collect()
    before = _resident()
    highest = before
    done = threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.wait(0.001):
            highest = max(highest, _resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    result = call()
    done.set()
    watcher.join()
    return result, max(highest, _resident()) - before


def show(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]], summary: Mapping[str, Any]) -> None:
    """The table, and the last line: `summary` as JSON."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column == columns[0] else "right")
    for row in rows:
        table.add_row(*row)
    Console(width=110).print(table)
    print(json.dumps(summary))


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
