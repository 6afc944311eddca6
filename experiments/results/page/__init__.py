"""One self-contained report.html: curves to filter and hover over, tables, a checklist; it needs no network.

What comes from runs is text: the template escapes it, and the script writes none of it as HTML.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from experiments.records.runs import State
from experiments.records.values import Value, resolve
from experiments.results import statistics
from experiments.results.checklist import checklist
from experiments.results.comparison import Comparison
from experiments.results.intervals import described
from experiments.results.page.data import configuration, curves, runs
from experiments.results.wording import COLLAPSED, COLUMNS, CURVE_COLUMNS, cells, curve_cells, within_words, words

_HERE = Path(__file__).parent


def render(
    frame: pd.DataFrame,
    states: list[State],
    folder: Path,
    output: Path,
    value: Value | str | None = None,
    comparisons: Sequence[Comparison] = (),
    refused: Sequence[str] = (),
    interval: str = "t",
    left_out: Sequence[str] = (),
) -> str:
    """The page as HTML, to be written into the folder `output`, from where it links to the rows below `folder`.

    `comparisons` and `refused` are what `comparison.comparisons` returns for `interval`; the curves, which the page
    averages again after filtering, have t-intervals. `left_out` are lines about what counts in no mean (see
    `results.exclusions`). Raises `RecordsError` where statistics refuse the rows.
    """
    value = resolve(frame, value)
    same, apart = configuration(frame)
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        title=folder.resolve().name,
        label=value.label,
        plotly=get_plotlyjs(),
        css=(_HERE / "page.css").read_text(encoding="utf-8"),
        script=(_HERE / "page.js").read_text(encoding="utf-8"),
        data=_embedded(curves(frame, value)),
        counts=_counts(frame, value),
        comparisons=[_shown(comparison, interval) for comparison in comparisons],
        refused=refused,
        left_out=left_out,
        checks=checklist(frame, value),
        same=same,
        apart=apart,
        runs=runs(frame, states, folder, output),
    )


def _embedded(data: Any) -> str:
    """JSON that may stand in a script element: nothing in it can end that element."""
    text = json.dumps(data, allow_nan=False)
    return text.replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e")


def _counts(frame: pd.DataFrame, value: Value) -> str:
    final = statistics.points(frame, value)
    parts = [
        (frame["run"].nunique(), "run", "runs"),
        (final["method"].nunique(), "method", "methods"),
        (final["requested_density"].nunique(), "density", "densities"),
        (final["seed"].nunique(), "seed", "seeds"),
    ]
    return ", ".join(f"{count} {one if count == 1 else many}" for count, one, many in parts)


def _shown(comparison: Comparison, interval: str) -> dict[str, Any]:
    """A table and its sentences."""
    value = comparison.value
    within = "sparsity within 1 point" if value.percent else within_words(value)
    return {
        "setup": comparison.setup,
        "baseline": comparison.baseline,
        "columns": [value.label if column == "value" else column for column in COLUMNS],
        "rows": cells(comparison, interval),
        "shown": described(interval),
        "curve_columns": [within if column == "sparsity within" else column for column in CURVE_COLUMNS],
        "curves": curve_cells(comparison, interval),
        "span": comparison.overall["span"].iloc[0],
        "collapsed": COLLAPSED,
        "words": words(comparison),
    }
