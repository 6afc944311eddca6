"""Densities of layers by method and requested density: where a global mask takes its weights from."""

import math

import numpy as np
import pandas as pd
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from experiments.results.figures.axes import apart
from experiments.results.figures.style import STYLE, WIDTH, panel_title
from pruning.errors import RecordsError

COLOURMAP = "cividis"  # made for the colour-blind, and as well in grey
PANEL_CHARACTERS = 70  # of the ticks' font, over the width of the figure that is left to the panels


def layer_densities(points: pd.DataFrame) -> pd.DataFrame:
    """Densities of layers in `statistics.points`: method, requested density, layer, share of prunable weights, density,
    kept.

    Density and kept are means over seeds. Layers are in the order of the network. Raises `RecordsError` where a row
    has no layers.
    """
    if (
        "layers" not in points
        or not points["layers"].map(lambda measured: isinstance(measured, list) and len(measured) > 0).all()
    ):
        raise RecordsError("some row has no layers: repeat that run")
    found: dict[tuple[str, float, str], list[tuple[int, int]]] = {}
    first: dict[tuple[str, float], tuple[str, list[str]]] = {}
    columns = (points[column] for column in ("run", "method", "requested_density", "layers"))
    for run, method, requested, measured in zip(*columns, strict=True):
        names = [layer["name"] for layer in measured]
        other, known = first.setdefault((method, requested), (run, names))
        if names != known:
            raise RecordsError(f"runs {other} and {run}: their layers have other names: move one away")
        for layer in measured:
            found.setdefault((method, requested, layer["name"]), []).append((layer["total"], layer["kept"]))
    rows = []
    for (method, requested, name), counts in found.items():
        total, kept = np.mean(counts, axis=0)
        rows.append(
            {
                "method": method,
                "requested_density": requested,
                "layer": name,
                "total": total,
                "kept": kept,
                "density": kept / total,
            }
        )
    return pd.DataFrame(rows)


def layers(densities: pd.DataFrame) -> Figure:
    """A panel a method: layers downwards, requested densities to the right, colour and number the density in percent.

    `densities` is what `layer_densities` returns. One colour scale, logarithmic, holds for all panels; an emptied layer
    is white with a 0.
    """
    methods = list(dict.fromkeys(densities["method"]))
    names = list(dict.fromkeys(densities["layer"]))
    known = densities.loc[densities["density"] > 0, "density"]
    norm = LogNorm(min(float(known.min()), 0.99) if len(known) else 0.01, 1.0)
    columns = min(len(methods), 2)
    down = math.ceil(len(methods) / columns)
    with style.context(["default", STYLE, {"axes.grid": False}]):
        height = 0.55 + down * (0.45 + 0.19 * max(3, len(names)))
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        panels = figure.subplots(down, columns, squeeze=False, sharey=True).ravel()
        for panel, method in zip(panels, methods, strict=False):
            table = densities[densities["method"] == method].pivot(
                index="layer", columns="requested_density", values="density"
            )
            table = table.loc[[name for name in names if name in table.index], sorted(table.columns, reverse=True)]
            found = table.to_numpy(dtype=float)
            image = panel.imshow(np.ma.masked_equal(found, 0), aspect="auto", cmap=COLOURMAP, norm=norm)
            _numbers(panel, found, norm)
            panel_title(panel, str(method), columns)
            asked = [f"{100 * at:.3g} %" for at in table.columns]
            room = PANEL_CHARACTERS / columns * (len(asked) - 1) / len(asked)
            shown = apart(np.arange(len(asked)), asked, room)
            panel.set_xticks(shown, [asked[place] for place in shown])
            panel.set_yticks(range(len(table)), [name.removesuffix(".weight") for name in table.index])
            panel.tick_params(length=0)
        for panel in panels[len(methods) :]:
            panel.set_axis_off()
        figure.supxlabel("Density asked for", fontsize=9)
        bar = figure.colorbar(image, ax=list(panels), shrink=0.8, aspect=30, label="Kept (%)")
        bar.ax.yaxis.set_major_formatter(lambda at, _: f"{100 * at:.3g}")
        bar.ax.yaxis.set_minor_formatter(lambda *_: "")
    return figure


def _numbers(panel: Axes, found: np.ndarray, norm: LogNorm) -> None:
    """The density in every cell, if they have room."""
    if found.shape[1] > 10:
        return
    for (row, column), density in np.ndenumerate(found):
        if not math.isnan(density):
            light = density > 0 and norm(density) < 0.55
            panel.text(
                column,
                row,
                f"{100 * density:.2g}" if density < 0.1 else f"{100 * density:.0f}",
                ha="center",
                va="center",
                fontsize=6.5,
                color="white" if light else "black",
            )
