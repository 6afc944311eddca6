"""A comparison in words and in the cells of a table."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from experiments.records.values import Value
from experiments.results.comparison import POINT, RELATIVE, Comparison
from experiments.results.intervals import written
from experiments.results.significance import smallest_p

UNLIKE = 0.02
"""Relative difference of realised densities above which a sentence mentions it."""


COLUMNS = ("density", "method", "n", "value", "difference", "p", "p Holm", "verdict")


CURVE_COLUMNS = ("method", "area", "difference", "p", "p Holm", "verdict", "sparsity within", "collapsed")


COLLAPSED = "lost 90 % of what the dense one has beyond chance"


def cells(comparison: Comparison, interval: str = "t") -> list[list[str]]:
    """The rows of the table, as text: from dense to sparse, the baseline first. n is that of the mean; a difference of
    fewer pairs says so.
    """
    scale, digits = comparison.value.scale, comparison.value.digits
    known = comparison.summary.set_index(["method", "requested_density"])
    rows = []
    order = comparison.differences.assign(first=comparison.differences["method"] != comparison.baseline)
    order = order.sort_values(["requested_density", "first"], ascending=[False, True], kind="stable")
    points: Iterable[Any] = order.itertuples()
    for row in points:
        at = known.loc[(row.method, row.requested_density)]
        mean, low, high = (scale * at[name] for name in ("mean", "low", "high"))
        plain = written(mean, low, high, interval, digits)
        rows.append([f"{row.requested_density:.4g}", row.method, str(at["n"]), plain])
        if row.method == comparison.baseline:
            rows[-1] += ["", "", "", ""]
            continue
        rows[-1] += [_difference(row, int(at["n"]), scale, digits, interval), _p(row.p), _p(row.p_holm), row.verdict]
    return rows


def curve_cells(comparison: Comparison, interval: str = "t") -> list[list[str]]:
    """The rows of the table of whole curves, as text, in the columns `CURVE_COLUMNS`."""
    scale, digits = comparison.value.scale, comparison.value.digits
    rows = []
    curves: Iterable[Any] = comparison.overall.itertuples()
    for row in curves:
        area = "" if math.isnan(row.area) else f"{scale * row.area:.{digits}f}"
        shown = [_difference(row, row.seeds, scale, digits, interval), _p(row.p), _p(row.p_holm), row.verdict]
        critical = "" if math.isnan(row.critical) else f"{100 * row.critical:.4g} %"
        share = "" if math.isnan(row.collapsed) else f"{100 * row.collapsed:.0f} %"
        rows.append([row.method, area, *(shown if row.method != comparison.baseline else [""] * 4), critical, share])
    return rows


def _difference(row: Any, seeds: int, scale: float, digits: int, interval: str) -> str:
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
        over: Any = whole.loc[method]
        parts = [_whole_words(over, comparison.value, test, alpha) if comparison.curved else ""]
        for verdict in ("higher", "lower"):
            at = rows[rows["verdict"] == verdict]
            if len(at):
                meaning = "" if over["verdict"] == verdict else _meaning(comparison.value, verdict)
                parts.append(f"significantly {verdict} at {_list(at)}{meaning}")
        unclear = rows[(rows["verdict"] == "") & rows["p"].notna()]
        if len(unclear):
            parts.append(f"no significant difference at {_list(unclear)}")
        untested = rows[rows["p"].isna()]
        if len(untested):
            why = "one pair has no spread" if (untested["n"] == 1).all() else "no spread to test with"
            parts.append(f"no test at {_list(untested)} ({why})")
        sentence = f"{method} against {baseline}: {'; '.join(part for part in parts if part)}."
        alone = rows[rows["unpaired"] > 0]
        for count, lacking in alone.groupby("unpaired"):
            sentence += f" {count} {'seed has' if count == 1 else 'seeds have'} no pair at {_list(lacking)}."
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
    for method in comparison.unpaired:
        sentences.append(f"{method} is not compared: it shares no seed at any density with {baseline}.")
    for method in comparison.left_out:
        sentences.append(f"{method} is not compared: none of its networks counts.")
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
    """Column title of the critical sparsity, with its limit in the unit that is shown; None: the default limit."""
    if within is None and not value.percent:
        return f"sparsity within {100 * RELATIVE:g} % of dense"
    return f"sparsity within {POINT * value.scale if within is None else within:g} of dense"


def _list(rows: pd.DataFrame) -> str:
    return "density " + ", ".join(f"{density:.4g}" for density in sorted(rows["requested_density"], reverse=True))


def _p(value: float) -> str:
    if math.isnan(value):
        return "-"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
