"""Differences to a baseline, at the same seed and from the same dense network, over compression."""

import numpy as np
import pandas as pd
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.records.values import Value, recall
from experiments.results.figures.axes import compression_axis
from experiments.results.figures.style import COLOURS, LINES, MARKERS, STYLE, WIDTH, legend_below
from experiments.results.intervals import NAMES


def difference(
    differences: pd.DataFrame,
    baseline: str,
    value: Value | str | None = None,
    interval: str = "t",
    alpha: float = 0.05,
) -> Figure:
    """One line a method: its mean difference to `baseline`, with the interval of the pairs as a band.

    `differences` is what `comparison.differences` returns for `interval` and `alpha`; a `value` is needed only where
    that is not the one it remembers. Markers are filled where the difference is significant after Holm's correction,
    and hollow where it is not. Zero is the baseline. Points lie at the method's realised density.
    """
    value = recall(differences, value)
    scale = value.scale
    known = differences[differences["density"] > 0]
    known = known.assign(compression=1 / known["density"])
    shown = known[known["method"] != baseline]
    with style.context(["default", STYLE]):
        figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
        panel = figure.subplots()
        panel.axhline(0, color="black", linewidth=1, label=baseline, zorder=2.5)
        for place, (name, rows) in enumerate(known.groupby("method", sort=False)):  # as coloured as in other figures
            if name == baseline:
                continue
            rows = rows.sort_values("compression")
            colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
            at, means = rows["compression"].to_numpy(), scale * rows["mean"].to_numpy()
            line = LINES[place // len(COLOURS) % len(LINES)]
            panel.plot(at, means, color=colour, linestyle=line, marker=marker, markerfacecolor="white", label=str(name))
            sure = (rows["verdict"] != "").to_numpy()
            panel.plot(at[sure], means[sure], color=colour, linestyle="none", marker=marker, zorder=3)
            low, high = (scale * rows[end].to_numpy() for end in ("low", "high"))
            panel.fill_between(at, low, high, color=colour, alpha=0.12, linewidth=0, zorder=1)
        panel.set_ylabel(f"{value.title},\n{value.difference}")
        cut = " (cut at the edge)" if _cut(panel, scale * shown["mean"].to_numpy()) else ""
        compression_axis([panel], shown)
        legend_below(
            figure,
            [panel],
            f"Mean of paired differences, 95 % {NAMES[interval]}{cut}; filled: p < {alpha:g} after Holm's correction",
        )
    return figure


def _cut(panel: Axes, means: np.ndarray) -> bool:
    """Set limits that show all means, and cut bands that are far wider (three seeds); return whether one was cut."""
    low, high = panel.get_ylim()
    ends = [min(0.0, *means), max(0.0, *means)] if len(means) else [0.0, 0.0]
    room = 0.6 * (ends[1] - ends[0]) or 1.0
    panel.set_ylim(max(low, ends[0] - room), min(high, ends[1] + room))
    return panel.get_ylim() != (low, high)
