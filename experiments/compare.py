"""python -m experiments.compare FOLDER --baseline magnitude: is one method better than another, and how sure is that?

    python -m experiments.compare runs/scorers --baseline magnitude
    python -m experiments.compare runs/scorers --baseline magnitude --test wilcoxon --within 0.5
    python -m experiments.compare runs/scorers --baseline magnitude --format latex > table.tex
    python -m experiments.compare runs/tokens --baseline magnitude --metric token_accuracy

Differences are paired: the same seed, the same dense network, the same density. Runs that do not share them are not
compared but refused. Below the table it is said in words what is significant and what is not. Set-ups (models, data,
trainings of the dense networks) are compared one by one.
"""

import argparse
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments import records
from experiments.results.comparison import POINT, RELATIVE, TESTS, Comparison, comparisons, smallest_p
from experiments.results.intervals import INTERVALS, described, written
from experiments.runtime.errors import told
from experiments.records.values import Value, add_options, chosen
from pruning.errors import PruningError

UNLIKE = 0.02
"""Realised densities that differ by a larger share are told."""
COLUMNS = ("density", "method", "n", "value", "difference", "p", "p Holm", "verdict")
CURVE_COLUMNS = ("method", "area", "difference", "p", "p Holm", "verdict", "sparsity within", "collapsed")
COLLAPSED = "lost 90 % of what the dense one has beyond chance"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0 for success, 1 for what a user can mend, told in one line on standard error (2: argparse)."""
    asked = _arguments(argv)
    try:
        frame = records.read(asked.folder)
        value = chosen(frame, asked)
        options = {"test": asked.test, "interval": asked.interval, "alpha": asked.alpha}
        options["within"] = None if asked.within is None else asked.within / value.scale
        found, refused = comparisons(frame, asked.baseline, value, **options)
        for comparison in found:
            _print(comparison, f"{comparison.setup}: " if len(found) + len(refused) > 1 else "", asked)
    except PruningError as error:
        return told(str(error))
    except OSError as error:
        return told(f"{error.filename or asked.folder}: {error.strerror or error}; give access, or copy the folder")
    for reason in refused:
        told(reason)
    return 1 if refused else 0


def cells(comparison: Comparison, interval: str = "t") -> list[list[str]]:
    """The rows of the table, as text: from dense to sparse, the baseline first. n is that of the mean; a difference of
    fewer pairs says so.
    """
    scale, digits = comparison.value.scale, comparison.value.digits
    known = comparison.summary.set_index(["method", "requested_density"])
    rows = []
    order = comparison.differences.assign(first=comparison.differences["method"] != comparison.baseline)
    for row in order.sort_values(["requested_density", "first"], ascending=[False, True], kind="stable").itertuples():
        at = known.loc[(row.method, row.requested_density)]
        plain = written(*(scale * at[name] for name in ("mean", "low", "high")), interval, digits)
        rows.append([f"{row.requested_density:.4g}", row.method, str(at["n"]), plain])
        if row.method == comparison.baseline:
            rows[-1] += ["", "", "", ""]
            continue
        rows[-1] += [_apart(row, int(at["n"]), scale, digits, interval), _p(row.p), _p(row.p_holm), row.verdict]
    return rows


def curve_cells(comparison: Comparison, interval: str = "t") -> list[list[str]]:
    """The rows of the table of whole curves, as text, in the columns `CURVE_COLUMNS`."""
    scale, digits = comparison.value.scale, comparison.value.digits
    rows = []
    for row in comparison.overall.itertuples():
        area = "" if math.isnan(row.area) else f"{scale * row.area:.{digits}f}"
        apart = [_apart(row, row.seeds, scale, digits, interval), _p(row.p), _p(row.p_holm), row.verdict]
        critical = "" if math.isnan(row.critical) else f"{100 * row.critical:.4g} %"
        share = "" if math.isnan(row.collapsed) else f"{100 * row.collapsed:.0f} %"
        rows.append([row.method, area, *(apart if row.method != comparison.baseline else [""] * 4), critical, share])
    return rows


def _apart(row: Any, seeds: int, scale: float, digits: int, interval: str) -> str:
    """A difference with its sign, "-1.40 ± 1.74", and its pairs where they are not all of the `seeds`."""
    if math.isnan(row.mean):
        return ""
    text = written(scale * row.mean, scale * row.low, scale * row.high, interval, digits)
    pairs = "" if row.n == seeds else f" ({row.n} {'pair' if row.n == 1 else 'pairs'})"
    return ("" if text.startswith("-") else "+") + text + pairs


def words(comparison: Comparison, test: str = "t", alpha: float = 0.05) -> list[str]:
    """A sentence a method: whether its curve is higher or lower than the baseline's, at which densities, and what
    cannot be said, and why not. What is better is said where it is known, of each direction once.
    """
    whole, baseline = comparison.overall.set_index("method"), comparison.baseline
    sentences = []
    for method, rows in comparison.differences.groupby("method", sort=False):
        if method == baseline:
            continue
        over = whole.loc[method]
        parts = [_whole_words(over, comparison.value, test, alpha)]
        for verdict in ("higher", "lower"):
            at = rows[rows["verdict"] == verdict]
            if len(at):
                meaning = "" if over["verdict"] == verdict else _meaning(comparison.value, verdict)
                parts.append(f"significantly {verdict} at {_list(at)}{meaning}")
        unclear = rows[(rows["verdict"] == "") & rows["p"].notna()]
        if len(unclear):
            parts.append(f"no significant difference at {_list(unclear)}")
        untold = rows[rows["p"].isna()]
        if len(untold):
            why = "one pair tells nothing of spread" if (untold["n"] == 1).all() else "no spread to test with"
            parts.append(f"no test at {_list(untold)} ({why})")
        sentence = f"{method} against {baseline}: {'; '.join(part for part in parts if part)}."
        ratios = (rows["density"] / rows["density_base"]).to_numpy()
        if (abs(ratios - 1) > UNLIKE).any():
            far = rows.iloc[np.nanargmax(abs(ratios - 1))]
            sentence += (
                f" Densities asked for are equal, those got are not ({far['density']:.3g} against "
                f"{far['density_base']:.3g} at {far['requested_density']:.4g}): the area is over those got."
            )
        tests = int(rows["p"].notna().sum())
        least = smallest_p(int(rows["n"].max()), test) * tests
        if least >= alpha:
            sentence += f" {rows['n'].max()} seeds and {tests} densities cannot come below p = {min(1, least):g} here."
        sentences.append(sentence)
    for method in comparison.apart:
        sentences.append(f"{method} is not compared: it shares no seed at any density with {baseline}.")
    return sentences


def _whole_words(row: pd.Series, value: Value, test: str, alpha: float) -> str:
    if math.isnan(row["area"]):
        return "no area (that takes two densities or more that all seeds have, and that all curves reach over)"
    if math.isnan(row["p"]):
        return "no test over the whole curve"
    corrected = f"p = {_p(row['p_holm'])}".replace("= <", "<")
    if not row["verdict"]:
        least = smallest_p(int(row["n"]), test)
        floor = f", and {row['n']} seeds cannot come below p = {least:g}" if least >= alpha else ""
        return f"over the whole curve no significant difference ({corrected}{floor})"
    return f"over the whole curve significantly {row['verdict']}{_meaning(value, row['verdict'])} ({corrected})"


def _meaning(value: Value, verdict: str) -> str:
    meaning = value.meaning(verdict)
    return f", which is {meaning}" if meaning else ""


def within_words(value: Value, within: float | None = None) -> str:
    """What a critical sparsity is within, in the unit that is shown; None: as by default."""
    if within is None and not value.percent:
        return f"sparsity within {100 * RELATIVE:g} % of dense"
    return f"sparsity within {POINT * value.scale if within is None else within:g} of dense"


def _print(comparison: Comparison, title: str, asked: argparse.Namespace) -> None:
    rows = cells(comparison, asked.interval)
    names = [comparison.value.label if name == "value" else name for name in COLUMNS]
    curves = curve_cells(comparison, asked.interval)
    within = within_words(comparison.value, asked.within)
    curve_names = [within if name == "sparsity within" else name for name in CURVE_COLUMNS]
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    if asked.format != "text":
        write = _markdown if asked.format == "markdown" else _latex
        console.print(Text(f"{write(names, rows)}\n\n{write(curve_names, curves)}"), soft_wrap=True)
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


def _list(rows: pd.DataFrame) -> str:
    return "density " + ", ".join(f"{density:.4g}" for density in sorted(rows["requested_density"], reverse=True))


def _p(value: float) -> str:
    if math.isnan(value):
        return "-"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _markdown(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    sides = [":--" if name == "method" else "--:" for name in names]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in (names, sides, *rows)
    )


def _latex(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    sides = "".join("l" if name == "method" else "r" for name in names)
    text: str = pd.DataFrame(rows, columns=names).to_latex(index=False, escape=True, column_format=sides)
    text = re.sub(r"(?<![\w-])-(?=\d)", "$-$", text)
    return text.replace("±", r"$\pm$").replace("<", "$<$").rstrip("\n")  # what pandas takes for LaTeX's own


if __name__ == "__main__":
    sys.exit(main())
