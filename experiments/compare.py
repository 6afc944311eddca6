"""python -m experiments.compare FOLDER --baseline magnitude: is one method better than another, and how sure is that?

    python -m experiments.compare runs/scorers --baseline magnitude
    python -m experiments.compare runs/scorers --baseline magnitude --test wilcoxon --within 0.5
    python -m experiments.compare runs/scorers --baseline magnitude --format latex > table.tex
    python -m experiments.compare runs/tokens --baseline magnitude --metric token_accuracy

Differences are paired: the same seed, the same dense network, the same density. Runs that do not share them are not
compared but refused; networks that diverged are left out, and named. Below the table it is said in words what is
significant and what is not. Set-ups (models, data, trainings of the dense networks) are compared one by one.
"""

import argparse
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments import records
from experiments.records.values import add_options, chosen
from experiments.results.comparison import Comparison, comparisons
from experiments.results.exclusions import exclusions, measured
from experiments.results.intervals import INTERVALS, described
from experiments.results.significance import TESTS
from experiments.results.wording import (
    COLLAPSED,
    COLUMNS,
    CURVE_COLUMNS,
    cells,
    curve_cells,
    within_words,
    words,
)
from experiments.runtime.errors import report_error
from pruning.errors import PruningError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; exit code 1 for an error that the user can fix, in one line on standard error (2: argparse)."""
    asked = _arguments(argv)
    try:
        frame = records.read(asked.folder)
        value = chosen(frame, asked)
        frame, others = measured(frame, value)
        left_out = [*others, *exclusions(frame, value)]
        options = {"test": asked.test, "interval": asked.interval, "alpha": asked.alpha}
        options["within"] = None if asked.within is None else asked.within / value.scale
        found, refused = comparisons(frame, asked.baseline, value, **options)
        for comparison in found:
            _print(comparison, f"{comparison.setup}: " if len(found) + len(refused) > 1 else "", asked)
        for line in left_out:  # beside a table for a paper, not in it
            print(f"left out: {line}", file=sys.stdout if asked.format == "text" else sys.stderr)
    except PruningError as error:
        return report_error(str(error))
    except OSError as error:
        return report_error(
            f"{error.filename or asked.folder}: {error.strerror or error}; give access, or copy the folder"
        )
    for reason in refused:
        report_error(reason)
    return 1 if refused else 0


def _print(comparison: Comparison, title: str, asked: argparse.Namespace) -> None:
    rows = cells(comparison, asked.interval)
    names = [comparison.value.label if name == "value" else name for name in COLUMNS]
    curves = curve_cells(comparison, asked.interval)
    within = within_words(comparison.value, asked.within)
    curve_names = [within if name == "sparsity within" else name for name in CURVE_COLUMNS]
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    if asked.format != "text":
        write = _markdown if asked.format == "markdown" else _latex
        tables = [write(names, rows), *([write(curve_names, curves)] if comparison.curved else [])]
        console.print(Text("\n\n".join(tables)), soft_wrap=True)
        return
    test = "Student's paired t-test" if asked.test == "t" else "Wilcoxon's signed-rank test"
    table = _table(names)
    above = ""
    for row in rows:
        if row[0] != above:
            table.add_section()
        table.add_row(*(Text(cell) for cell in (row if row[0] != above else ["", *row[1:]])))
        above = row[0]
    console.print(table)
    console.print(
        Text(
            f"{title}{described(asked.interval)} over n seeds; differences to {comparison.baseline} at the same seed; "
            f"{test}, p corrected over the densities of a method"
        )
    )
    if not comparison.curved:
        console.print()
        for sentence in words(comparison, asked.test, asked.alpha):
            console.print(Text(sentence))
        return
    table = _table(curve_names)
    for row in curves:
        table.add_row(*map(Text, row))
    console.print(table)
    low, high = comparison.overall["span"].iloc[0]
    area = f"area: mean over log density from {high:.4g} to {low:.4g}, p corrected over methods; " if low < high else ""
    console.print(Text(f"{area}collapsed: share of the networks that {COLLAPSED}\n"))
    for sentence in words(comparison, asked.test, asked.alpha):
        console.print(Text(sentence))


def _table(names: Sequence[str]) -> Table:
    table = Table(box=SIMPLE_HEAD)
    for name in names:
        left = name == "method"
        table.add_column(Text(name), justify="left" if left else "right", overflow="fold", no_wrap=not left)
    return table


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.compare",
        description="Paired differences of all methods of a folder of runs to a baseline.",
    )
    parser.add_argument("folder", type=Path, help="the folder that holds the runs, at any depth")
    parser.add_argument("--baseline", required=True, help="a method's label, or its scorer where that is enough")
    add_options(parser, "compare")
    parser.add_argument("--test", choices=TESTS, default="t", help="paired t-test, or Wilcoxon's signed ranks")
    parser.add_argument("--interval", choices=tuple(INTERVALS), default="t", help="of means (default: %(default)s)")
    parser.add_argument("--alpha", type=_level, default=0.05, help="level of significance (default: %(default)s)")
    parser.add_argument(
        "--within",
        type=_points,
        help="how far from dense, as shown, for the critical sparsity (default: 1 point, or 5 %% of dense)",
    )
    parser.add_argument("--format", choices=("text", "markdown", "latex"), default="text", help="latex: with booktabs")
    return parser.parse_args(argv)


def _level(text: str) -> float:
    level = float(text)
    if not 0 < level < 1:
        raise argparse.ArgumentTypeError(f"{text}: a level of significance lies between 0 and 1")
    return level


def _points(text: str) -> float:
    points = float(text)
    if not 0 <= points < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: give how much may be lost, at least 0")
    return points


def _markdown(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    sides = [":--" if name == "method" else "--:" for name in names]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in (names, sides, *rows)
    )


def _latex(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    sides = "".join("l" if name == "method" else "r" for name in names)
    text: str = pd.DataFrame([*rows], columns=[*names]).to_latex(index=False, escape=True, column_format=sides)
    text = re.sub(r"(?<![\w-])-(?=\d)", "$-$", text)
    return text.replace("±", r"$\pm$").replace("<", "$<$").rstrip("\n")  # what pandas takes for LaTeX's own


if __name__ == "__main__":
    sys.exit(main())
