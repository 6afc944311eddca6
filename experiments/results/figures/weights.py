"""Histograms of kept weights, before and after pruning."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from experiments.records import as_dicts
from experiments.results.exclusions import without_diverged
from experiments.results.figures.style import NO_LABEL, STYLE, WIDTH, label_edges, legend_below, log_ticks, panel_title
from experiments.results.statistics import start_of

BINS = 81

Loader = Callable[[Mapping[str, Any]], Mapping[str, Tensor]]


def histograms(points: pd.DataFrame, frame: pd.DataFrame, load: Loader) -> pd.DataFrame:
    """Counts of kept weights by their value, all prunable tensors and seeds together.

    Columns: `dense` (the set-up of the dense networks, `labels.setups`; their own rows have it as their method),
    `method`, `requested_density` (1: before, the dense networks), `low` and `high` (a bin), `count` (mean over seeds).
    `frame` holds the rows of the dense networks (level 0); `load` gives a row's kept weights. Bins are equally wide,
    and the same for all; they reach as far as the largest weight of any.
    """
    start = start_of(frame)
    points = points.assign(setup=points["dense"].map(dict(zip(start["dense"], start["setup"], strict=True))))
    start = without_diverged(start)
    groups: dict[tuple[str, str, float], list[np.ndarray]] = {}
    whole = pd.concat([start, points])
    for (setup, method, requested), once in whole.groupby(["setup", "method", "requested_density"], sort=False):
        found = [_values(load(row)) for row in as_dicts(once)]
        groups[str(setup), str(method), float(str(requested))] = found
    reach = max((float(np.abs(v).max()) for found in groups.values() for v in found if v.size), default=1.0) or 1.0
    edges = np.linspace(-reach, reach, BINS + 1)
    rows = []
    for (setup, method, requested), found in groups.items():
        counts = sum(np.histogram(values, edges)[0] for values in found) / max(1, len(found))
        rows += [
            {
                "dense": setup,
                "method": method,
                "requested_density": requested,
                "low": low,
                "high": high,
                "count": count,
            }
            for low, high, count in zip(edges[:-1], edges[1:], np.broadcast_to(counts, BINS), strict=True)
        ]
    return pd.DataFrame(rows)


def weights(histograms: pd.DataFrame) -> Figure:
    """A panel a method: the dense networks' weights in grey, and a line for every density of what is kept after it."""
    starts = dict(zip(histograms["method"], histograms["dense"], strict=True))
    methods = [name for name, start in starts.items() if name != start]
    densities = sorted(set(histograms.loc[histograms["method"].isin(methods), "requested_density"]), reverse=True)
    colours = matplotlib.colormaps["viridis"](np.linspace(0.0, 0.85, len(densities)))
    columns = min(2, len(methods))
    down = math.ceil(len(methods) / columns)
    bins = histograms.drop_duplicates("low")
    counts = dict(iter(histograms.groupby(["method", "requested_density"])["count"]))
    edges = [*bins["low"], bins["high"].iloc[-1]]
    with style.context(["default", STYLE]):
        figure = Figure(figsize=(WIDTH, 1), layout="constrained")
        panels = figure.subplots(down, columns, squeeze=False, sharex=True, sharey=True).ravel()
        for panel, method in zip(panels, methods, strict=False):
            if (starts[method], 1.0) in counts:
                panel.stairs(counts[starts[method], 1.0], edges, fill=True, color="#cccccc")
            for colour, density in zip(colours, densities, strict=True):
                if (method, density) in counts:
                    _steps(panel, counts[method, density], edges, colour)
            panel_title(panel, str(method), columns)
        log_ticks(panels[0])  # the panels share scale, limits and ticks
        panels[0].set_ylim(bottom=0.3)
        panels[0].plot([], [], color="#cccccc", linewidth=5, label="before")
        for colour, density in zip(colours, densities, strict=True):
            panels[0].plot([], [], color=colour, label=f"{100 * density:.3g} % kept")
        label_edges(list(panels), len(methods), columns, "Value of the weight", "Weights a bin")
        legend_below(figure, [panels[0]], "Prunable weights before and, those kept, after; mean over seeds")
        figure.set_figheight(figure.get_figheight() + (down - 1) * 2.1)
    return figure


def _steps(panel: Axes, counts: pd.Series, edges: Sequence[float], colour: Any) -> None:
    """The outline of a histogram. (`stairs` would look at every side of it by itself for the limits.)"""
    heights = np.repeat(counts.to_numpy(dtype=float), 2)
    look = {"color": colour, "linewidth": 1.1, "solid_joinstyle": "miter", "label": NO_LABEL}
    panel.plot(np.repeat(edges, 2), [0.0, *heights, 0.0], **look)


def _values(found: Mapping[str, Tensor]) -> np.ndarray:
    return np.concatenate([values.numpy() for values in found.values()] or [np.zeros(0)])
