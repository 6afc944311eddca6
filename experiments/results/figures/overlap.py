"""Overlap of masks: a matrix of methods for every density."""

import math

import numpy as np
import pandas as pd
from matplotlib import style
from matplotlib.figure import Figure

from experiments.results.figures.style import STYLE, WIDTH

COLOURMAP = "cividis"
PANELS = 6


def overlap(overlaps: pd.DataFrame) -> Figure:
    """A panel a density: the Jaccard index of every two methods at the same seed; on the diagonal, between seeds.

    `overlaps` is what `overlap.overlaps` returns. Of more than six densities six are shown, evenly spread over them;
    the table has all. A title gives the index that two random masks of these sizes would have.
    """
    names = list(dict.fromkeys([*overlaps["method"], *overlaps["other"]]))
    densities = sorted(set(overlaps["requested_density"]), reverse=True)
    if len(densities) > PANELS:
        densities = [densities[place] for place in np.linspace(0, len(densities) - 1, PANELS).round().astype(int)]
    columns = min(3 if len(names) <= 10 else 2, len(densities))
    down = math.ceil(len(densities) / columns)
    places = list(range(len(names)))
    highest = math.ceil(10 * overlaps["jaccard"].max()) / 10 or 1.0
    labels = [name if len(name) <= 18 else f"{name[:17]}…" for name in names]
    with style.context(["default", STYLE, {"axes.grid": False}]):
        side = (WIDTH - 2) / columns
        height = 0.75 + down * (0.25 + side)
        size = min(8.0, 0.85 * 72 * side / len(names))  # points: no label reaches over the next
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        panels = figure.subplots(down, columns, squeeze=False).ravel()
        for place, (panel, density) in enumerate(zip(panels, densities, strict=False)):
            at = overlaps[overlaps["requested_density"] == density]
            found = np.full((len(names), len(names)), math.nan)
            for row in at.itertuples():
                a, b = names.index(row.method), names.index(row.other)
                found[a, b] = found[b, a] = row.jaccard
            image = panel.imshow(found, vmin=0, vmax=highest, cmap=COLOURMAP, aspect="equal")
            for (a, b), value in np.ndenumerate(found):
                if not math.isnan(value) and len(names) <= 8:
                    colour = "white" if value < 0.55 * highest else "black"
                    panel.text(b, a, f"{value:.2f}", ha="center", va="center", fontsize=6.5, color=colour)
            panel.set_title(f"{100 * density:.3g} % kept (chance {at['chance'].median():.2g})", y=1.0)
            below, left = place + columns >= len(densities), place % columns == 0
            panel.set_xticks(places if below else [])
            panel.set_yticks(places if left else [])
            if below:
                panel.set_xticklabels(labels, rotation=45, ha="right", rotation_mode="anchor")
            if left:
                panel.set_yticklabels(labels)
            panel.tick_params(length=0, labelsize=size)
        for panel in panels[len(densities) :]:
            panel.set_axis_off()
        figure.colorbar(
            image,
            ax=list(panels),
            shrink=0.7,
            aspect=30,
            label="Jaccard index of the masks\n(diagonal: of two seeds)",
        )
    return figure
