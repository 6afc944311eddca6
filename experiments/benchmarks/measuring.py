"""Timing on a noisy machine: contenders take turns, medians are compared; and what a call needs in memory."""

import gc
import json
import statistics
import threading
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

Row = tuple[str, ...]
"""What a line of a table shows."""

_WIDTH = 44
"""Width of the first column, in characters: rows are printed before all of them are known."""


def rounded(value: float) -> float:
    """`value` to three digits: a ratio that is small does not become zero."""
    return float(f"{value:.3g}")


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
    try:
        result = call()
    finally:
        done.set()
        watcher.join()
    return result, max(highest, _resident()) - before


def show(title: str, columns: Row, rows: Iterable[Row], summary: Mapping[str, Any] | None) -> None:
    """Print a table, each row as soon as `rows` gives it, and in the last line `summary` as JSON, unless it is None.

    `rows` may be a generator that measures a row, writes into `summary` what it found, and yields it.
    """
    widths = [_WIDTH, *(max(len(column), 8) for column in columns[1:])]
    print(title)
    for name, *numbers in chain((columns, tuple("-" * width for width in widths)), rows):
        cells = [cell.rjust(width) for cell, width in zip(numbers, widths[1:], strict=True)]
        print("  ".join([name.ljust(widths[0]), *cells]), flush=True)
    if summary is not None:
        print(json.dumps(summary))


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
