"""python -m experiments.report FOLDER: from a folder of runs to the table, the figures and the page of its sweep.

    python -m experiments.report runs/scorers
    python -m experiments.report runs/scorers --value validation_accuracy --output paper/figures
    python -m experiments.report runs/channels --x macs latency --baseline taylor --interval bootstrap

Reads every rows.jsonl below FOLDER and writes report.html, one page that needs no network, and figures as .png, .pdf
and .csv (the numbers that are drawn): the metric over every x axis in the rows, differences to the baseline, densities
of layers, overlap of masks, weights before and after, losses. It only reads the runs, so it may look at a sweep that is
running.
"""

import argparse
import gc
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments import records
from experiments.records.runs import State, states
from experiments.records.values import Value, add_options, chosen, recall
from experiments.results import figures, statistics
from experiments.results.comparison import Comparison, comparisons
from experiments.results.exclusions import exclusions, failed_trainings, measured
from experiments.results.figures.axes import TIMES, percent, ratio
from experiments.results.gallery import FigureOptions, gallery
from experiments.results.intervals import INTERVALS, Interval, described, written
from experiments.results.labels import methods
from experiments.results.page import render
from experiments.runtime.errors import report_error
from pruning.errors import PruningError, RecordsError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; exit code 1 for an error that the user can fix, in one line on standard error (2: argparse)."""
    asked = _arguments(argv)
    output = asked.output or asked.folder
    try:
        frame = records.read(asked.folder)
        with _settled():
            value = chosen(frame, asked)
            frame, others = measured(frame, value)
            left_out = [*others, *exclusions(frame, value)]
            summary = statistics.summarise(frame, value, asked.interval)
            dense = statistics.dense(frame, value, asked.interval)
            compared, refused = _compared(frame, value, asked)
            wanted = FigureOptions(value, asked.interval, compared, asked.x, asked.store)
            paths, skipped = gallery(frame, wanted, output)
            known, unknown = _states(asked.folder)
            html = render(frame, known, asked.folder, output, value, compared, refused, asked.interval, left_out)
        page = output / "report.html"
        page.write_text(html, encoding="utf-8")
    except PruningError as error:
        return report_error(str(error))
    except OSError as error:
        reason = error.strerror or str(error)
        return report_error(f"{error.filename or output}: {reason}; make room or give access, or name another --output")

    # A pipe has no width of its own: 120 columns cut nothing off and fit most pagers.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    shares = statistics.start_shares(frame)
    console.print(table(summary, dense, value, console.encoding, asked.interval, shares))
    for line in (
        *(f"left out: {line}" for line in left_out),
        *(f"counted, but check optimizer.lr: {line}" for line in failed_trainings(frame)),
        *(f"not compared: {reason}" for reason in refused),
        *(f"not drawn: {line}" for line in skipped),
        *unknown,
    ):
        console.print(Text(line), soft_wrap=True)
    for path in (*paths, page):
        console.print(Text(str(path)), soft_wrap=True)  # a long path stays one line; and rich bears `| head`
    return 0


@contextmanager
def _settled() -> Iterator[None]:
    """Exclude existing objects from garbage collection: drawing triggers it often, and modules and rows are many."""
    theirs = gc.get_freeze_count() > 0
    if not theirs:
        gc.freeze()
    try:
        yield
    finally:
        if not theirs:
            gc.unfreeze()


def _states(folder: Path) -> tuple[list[State], list[str]]:
    """The states of the runs, or a line that says why they are not known: a report of rows does without."""
    try:
        return states(folder), []
    except RecordsError as error:
        return [], [f"states of runs not known: {error}"]


def _compared(frame: pd.DataFrame, value: Value, asked: argparse.Namespace) -> tuple[list[Comparison], list[str]]:
    """Compare with the baseline that is asked for, or with magnitude where it is one of several methods."""
    labels = set(methods(frame[frame["level"] > 0]))
    baseline = asked.baseline or "magnitude"
    if asked.baseline is None and (len(labels) < 2 or "magnitude" not in {name.split(" (")[0] for name in labels}):
        return [], []
    found, refused = comparisons(frame, baseline, value, interval=asked.interval)
    if asked.baseline and not found:
        raise RecordsError(refused[0])
    return found, refused


def table(
    summary: pd.DataFrame,
    dense: Mapping[str, Interval],
    value: Value | str | None = None,
    encoding: str = "utf-8",
    interval: str = "t",
    shares: Mapping[str, Mapping[str, float]] | None = None,
) -> Table:
    """Dense networks on top, then for every density the methods side by side: mean and interval of the value that
    `summary` remembers, unless another is given. `shares` are those of `statistics.start_shares`; None: dense is whole.

    Asked is the requested density; what follows is realised, which differs where units are coarse. A cell like the one
    above it within a group is left empty.
    """
    unicode = encoding.lower().startswith("utf")
    value = recall(summary, value)
    scale, digits = value.scale, value.digits
    sign, times = ("±", TIMES) if unicode else ("+/-", "x")
    caption = f"{described(interval, sign)} over n seeds; compression = prunable / kept weights"
    result = Table(box=SIMPLE_HEAD, caption=caption, caption_justify="left", caption_style="", safe_box=True)
    for name in ("asked", "density", "sparsity", "compression", "method", "n", value.label):
        left = name == "method"
        result.add_column(Text(name), justify="left" if left else "right", overflow="fold", no_wrap=not left)

    def mean(row: Any) -> str:
        return written(scale * row.mean, scale * row.low, scale * row.high, interval, digits, sign)

    for name, found in dense.items():
        density = 1.0 if shares is None else shares[name]["density"]
        compression = 1 / density if density else math.inf
        result.add_row("1", *_sizes(density, compression, times), Text(name), str(found.n), mean(found))
    groups = {float(str(requested)): rows for requested, rows in summary.groupby("requested_density")}
    for requested, rows in sorted(groups.items(), reverse=True):
        result.add_section()
        asked, above = f"{requested:.4g}", ["", "", ""]
        points: Iterable[Any] = rows.itertuples()
        for row in points:
            got = _sizes(row.density, row.compression, times)
            shown = ["", "", ""] if got == above else got
            result.add_row(asked, *shown, Text(row.method), str(row.n), mean(row))
            asked, above = "", got
    return result


def _sizes(density: float, compression: float, times: str) -> list[str]:
    return [f"{density:.4g}", percent(density), ratio(compression, times)]


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.report",
        description="Table, figures and page of a folder of runs.",
    )
    parser.add_argument("folder", type=Path, help="the folder that holds the runs, at any depth")
    add_options(parser, "average")
    parser.add_argument("--x", nargs="+", choices=figures.AXES, help="x axes (default: all that the rows have)")
    parser.add_argument("--baseline", help="a method to compare with (default: magnitude, where it is there)")
    parser.add_argument("--interval", choices=tuple(INTERVALS), default="t", help="of means (default: %(default)s)")
    parser.add_argument("--store", type=Path, help="where masks and weights lie (default: where the runs put them)")
    parser.add_argument("--output", type=Path, help="where page and figures go (default: FOLDER)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
