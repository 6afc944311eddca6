"""What adaptations reach by what they train: a curve a method over trained weights, and over bytes on disk."""

from __future__ import annotations

from itertools import cycle

import pandas as pd
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.records.values import Value
from experiments.results.adapted import bounds
from experiments.results.figures.style import COLOURS, DENSE_LINES, MARKERS, STYLE, WIDTH, abbreviated_ticks
from pruning.errors import RecordsError

APART = 1.06
"""Factor between methods of the same budget, so that each is seen."""

X = {"trained": "Trained weights, the head aside", "bytes": "Bytes of the adaptation on disk"}


def adaptation(table: pd.DataFrame, value: Value, interval: str = "t") -> Figure:
    """Two panels with a log axis each; nothing trained, and everything, are bands across. Methods are moved apart along
    the axis by a few percent.

    `table` is what `adapted.adaptations` returns. Raises `RecordsError` for networks of several densities.
    """
    densities = sorted(set(table["requested_density"]))
    if len(densities) > 1:
        raise RecordsError("adapted networks of several densities: their curves are those over sparsity")
    beyond = bounds(table)
    curves = list(table[[not at for at in beyond]].groupby("method", sort=False))
    with style.context(["default", STYLE]):
        figure = Figure(figsize=(WIDTH, 3.9), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        for panel, (column, label) in zip(panels, X.items(), strict=True):
            for (_, row), line in zip(table[beyond].iterrows(), cycle(DENSE_LINES)):
                _band(panel, row, value.scale, line)
            for place, ((name, at), colour, marker) in enumerate(zip(curves, cycle(COLOURS), cycle(MARKERS))):
                at = at.sort_values(column)
                beside = APART ** (place - (len(curves) - 1) / 2)  # methods of one budget would lie on each other
                scaled = value.scale * at[["mean", "low", "high"]]
                below, above = scaled["mean"] - scaled["low"], scaled["high"] - scaled["mean"]
                panel.errorbar(
                    at[column] * beside,
                    scaled["mean"],
                    yerr=[below, above],
                    color=colour,
                    marker=marker,
                    capsize=2,
                    label=name,
                )
            panel.set_xscale("log")
            abbreviated_ticks(panel.xaxis)
            panel.set_xlabel(label)
        panels[0].set_ylabel(value.label)
        handles, labels = panels[0].get_legend_handles_labels()
        seeds = sorted(set(table["n"]))
        said = "bootstrap interval" if interval == "bootstrap" else "t-interval"
        title = f"Mean and 95 % {said} over {' to '.join(map(str, sorted({seeds[0], seeds[-1]})))} seeds"
        figure.legend(handles, labels, loc="outside lower center", ncols=4, title=title, frameon=False)
    return figure


def _band(panel: Axes, row: pd.Series, scale: float, line: object) -> None:
    """A row that is no point of the axis."""
    what = "nothing else trained" if not row["trained"] else f"{row['trained']:,.0f} trained"
    panel.axhline(scale * row["mean"], color="black", linestyle=line, linewidth=1.1, label=f"{row['method']}: {what}")
    if row["n"] > 1:
        panel.axhspan(scale * row["low"], scale * row["high"], color="black", alpha=0.07, linewidth=0)
