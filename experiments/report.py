"""python -m experiments.report FOLDER: from a folder of runs to the table and the figures of its sweep.

    python -m experiments.report runs/scorers
    python -m experiments.report runs/scorers --value validation_accuracy --output paper/figures
    python -m experiments.report runs/channels --x macs latency

Reads every rows.jsonl below FOLDER and writes accuracy_compression and accuracy_sparsity, or what --x asks for, each as
.png, .pdf and .csv (the numbers that are drawn). It only reads the runs, so it may look at a sweep that is going on.
"""

import argparse
import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments import figures, records, statistics
from experiments.figures.axes import TIMES, percent, ratio
from experiments.intervals import Interval
from pruning.errors import PruningError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0 for success, 1 for what a user can mend, told in one line on standard error (2: argparse)."""
    arguments = _arguments(argv)
    output = arguments.output or arguments.folder
    try:
        frame = records.read(arguments.folder)
        summary = statistics.summarise(frame, arguments.value)
        dense = statistics.dense(frame, arguments.value)
        written = draw(summary, dense, arguments.value, output, arguments.x)
    except PruningError as error:
        return _fail(str(error))
    except OSError as error:
        reason = error.strerror or str(error)
        return _fail(f"{error.filename or output}: {reason}; make room or give access, or name another --output")

    # A pipe has no width of its own: 120 columns cut nothing off and fit most pagers.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    console.print(table(summary, dense, arguments.value, console.encoding))
    for path in written:
        console.print(Text(str(path)), soft_wrap=True)  # a long path stays one line; and rich bears `| head`
    return 0


def draw(
    summary: pd.DataFrame,
    dense: Mapping[str, Interval],
    value: str,
    output: Path,
    axes: Sequence[figures.X] = ("compression", "sparsity"),
) -> list[Path]:
    """Write a figure for each x axis, and their numbers, into `output`, made if missing; return the paths.

    They are called accuracy_… for the test accuracy and after the column for any other `value`.
    """
    stem = "accuracy" if value == "test_accuracy" else re.sub(r"\W", "_", value)
    numbers = pd.DataFrame([*_dense_rows(dense), *summary.to_dict("records")], columns=summary.columns)
    output.mkdir(parents=True, exist_ok=True)
    written = []
    for x in axes:
        written += figures.save(figures.accuracy(summary, dense, x, value), output / f"{stem}_{x}", numbers)
    return written


def table(summary: pd.DataFrame, dense: Mapping[str, Interval], value: str, encoding: str = "utf-8") -> Table:
    """Dense networks on top, then for every density the methods side by side: mean ± half of the t-interval.

    Asked is the requested density; what follows is realised, which differs where units are coarse. A cell like the one
    above it within a group is left empty.
    """
    unicode = encoding.lower().startswith("utf")
    label, scale = figures.describe(value)
    sign, times = ("±", TIMES) if unicode else ("+/-", "x")
    caption = f"mean {sign} half of the 95 % t-interval over n seeds; compression = prunable / kept weights"
    result = Table(box=SIMPLE_HEAD, caption=caption, caption_justify="left", caption_style="", safe_box=True)
    for name in ("asked", "density", "sparsity", "compression", "method", "n", label):
        left = name == "method"
        result.add_column(Text(name), justify="left" if left else "right", overflow="fold", no_wrap=not left)

    for name, interval in dense.items():
        result.add_row("1", "1", "0 %", f"1{times}", Text(name), str(interval.n), _mean(interval, scale, sign))
    groups = sorted(summary.groupby("requested_density"), key=lambda group: -float(group[0]))
    for requested, rows in groups:
        result.add_section()
        asked, above = f"{requested:.4g}", ["", "", ""]
        for row in rows.itertuples():
            got = [f"{row.density:.4g}", percent(row.density), ratio(row.compression, times)]
            shown = ["", "", ""] if got == above else got
            result.add_row(asked, *shown, Text(row.method), str(row.n), _mean(row, scale, sign))
            asked, above = "", got
    return result


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.report",
        description="Table and figures of a folder of runs: accuracy against sparsity.",
    )
    parser.add_argument("folder", type=Path, help="the folder that holds the runs, at any depth")
    parser.add_argument("--value", default="test_accuracy", help="the column to average (default: %(default)s)")
    parser.add_argument("--x", nargs="+", choices=figures.AXES, default=["compression", "sparsity"], help="x axes")
    parser.add_argument("--output", type=Path, help="where the figures go (default: FOLDER)")
    return parser.parse_args(argv)


def _dense_rows(dense: Mapping[str, Interval]) -> list[dict[str, object]]:
    """The dense networks as rows of the summary."""
    everything = {"requested_density": 1.0, "density": 1.0, "sparsity": 0.0, "compression": 1.0}
    return [{"method": name, **everything, **vars(interval)} for name, interval in dense.items()]


def _mean(row: Interval, scale: float, sign: str) -> str:
    """ "94.10 ± 0.35"; the mean alone for one seed, which has no interval."""
    digits = 2 if scale == 100 else 4
    half = scale * (row.high - row.low) / 2
    return f"{scale * row.mean:.{digits}f}" + ("" if math.isnan(half) else f" {sign} {half:.{digits}f}")


def _fail(message: str) -> int:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
