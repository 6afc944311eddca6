"""A metric against sparsity, as a paper could print it: every seed's mean and band, the dense network, nothing hidden.

What one should show is what Blalock et al. 2020, "What is the state of neural network pruning?", recommend.
"""

import math
from collections.abc import Mapping
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.records.values import Value, recall
from experiments.results.figures.axes import compression_axis, sparsity_axis
from experiments.results.figures.style import (
    COLOURS,
    DENSE_LINES,
    LINES,
    MARKERS,
    STYLE,
    WIDTH,
    legend_below,
    log_ticks,
)
from experiments.results.intervals import NAMES, Interval
from pruning.errors import RecordsError

X = Literal["compression", "sparsity", "macs", "latency", "cost"]
AXES: tuple[X, ...] = ("compression", "sparsity", "macs", "latency", "cost")


def accuracy(
    summary: pd.DataFrame,
    dense: Mapping[str, Interval],
    x: X = "compression",
    value: Value | str | None = None,
    interval: str = "t",
) -> Figure:
    """One line a method with a marker at every operating point, its band, and the dense network as a line of its own.

    `summary` and `dense` are what `statistics.summarise` and `statistics.dense` return; `value` is needed only where it
    is not the one that `summary` remembers. Points lie at the realised density. `x` is "compression" (prunable / kept,
    log axis, sparsity on the upper edge), "sparsity" (in percent, linear), "macs" (what remains of them, in percent),
    "latency" (milliseconds, where it was measured) or "cost" (epochs of training in all, that of the dense network
    among them). The y axis is as the metric says: label and scale, and logarithmic if all that is drawn is above 0.

    A band is the `interval` of `summary`, which the legend names; where n = 1 there is none. Where some but not all
    runs of a point collapsed, a hollow marker shows their median, as a mean says little then. Where most points lie
    close to the dense network and others far off, a second panel shows the neighbourhood of the dense line. A point
    with nothing kept has no compression ratio: it is left out of that figure, and the legend says so.
    """
    if x not in AXES:
        raise ValueError(f"x is one of {', '.join(AXES)}, not {x!r}")
    column, _ = _COLUMNS[x]
    if x not in ("compression", "sparsity"):
        summary = summary[np.isfinite(summary[column])]
        if summary.empty:
            raise RecordsError(f"no row has {column}: run the sweep with latency=32, say, or choose another x")
    value = recall(summary, value)
    scale = value.scale
    curves = [(str(name), rows) for name, rows in summary.groupby("method", sort=False)]
    view = _View(value, summary, dense)
    panels = [view.full(), *view.near()]

    with style.context(["default", STYLE]):  # whatever the user's own matplotlibrc says
        figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
        axes = list(figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0])
        for panel, (low, high) in zip(axes, panels, strict=True):
            for place, (name, found) in enumerate(dense.items()):
                _dense(panel, name, found, DENSE_LINES[place % len(DENSE_LINES)], scale)
            for place, (name, rows) in enumerate(curves):
                _curve(panel, name, rows, place, x, scale=scale, alpha=min(0.15, 0.8 / len(curves)))
            panel.set_ylim(low, high)
            if view.log:
                log_ticks(panel)
        for panel, note in zip(axes, ("", "\nnear the dense network"), strict=False):
            panel.set_ylabel(value.label + note)
        if x == "compression":
            compression_axis(axes, summary)
        elif x == "sparsity":
            sparsity_axis(axes, summary)
        else:
            axes[-1].set_xlabel(_COSTS[x])
        nothing = x == "compression" and bool(np.isinf(summary["compression"]).any())
        notes = {
            f"Mean and 95 % {NAMES[interval]} over seeds": True,
            "without points where nothing is kept": nothing,
            "intervals that reach far beyond are cut": view.cut,
            "hollow: the median, where some runs collapsed": bool(_divided(summary).any()),
        }
        legend_below(figure, axes, "; ".join(note for note, holds in notes.items() if holds))
    return figure


# What is drawn


def _curve(panel: Axes, name: str, rows: pd.DataFrame, place: int, x: X, *, scale: float, alpha: float) -> None:
    rows = rows[np.isfinite(rows["compression"])] if x == "compression" else rows
    rows = rows.iloc[np.argsort(_x(rows, x), kind="stable")]
    at = _x(rows, x)
    colour = COLOURS[place % len(COLOURS)]
    low, high = (scale * rows[name].to_numpy(dtype=float) for name in ("low", "high"))
    panel.plot(
        at,
        scale * rows["mean"].to_numpy(dtype=float),
        color=colour,
        linestyle=LINES[place // len(COLOURS) % len(LINES)],
        marker=MARKERS[place % len(MARKERS)],
        markeredgecolor="white",
        markeredgewidth=0.5,
        label=f"{name}, {_count(rows['n'])}",
        zorder=3,
    )
    divided = _divided(rows).to_numpy()
    if divided.any():
        panel.plot(
            at[divided],
            scale * rows["median"].to_numpy(dtype=float)[divided],
            color=colour,
            linestyle="none",
            marker=MARKERS[place % len(MARKERS)],
            markerfacecolor="white",
            zorder=3,
        )
    panel.fill_between(at, low, high, color=colour, alpha=alpha, linewidth=0, zorder=2)
    # A band needs two neighbours; a point that stands alone shows its interval as a bar.
    known = np.isfinite(low)
    beside = np.concatenate([[False], known[:-1]]) | np.concatenate([known[1:], [False]])
    alone = known & ~beside
    if alone.any():
        panel.vlines(at[alone], low[alone], high[alone], color=colour, linewidth=1, alpha=0.6, zorder=2)


def _dense(panel: Axes, name: str, interval: Interval, line: object, scale: float) -> None:
    if interval.n > 1:
        panel.axhspan(scale * interval.low, scale * interval.high, color="black", alpha=0.1, linewidth=0, zorder=1)
    panel.axhline(
        scale * interval.mean,
        color="black",
        linewidth=1,
        linestyle=line,
        label=f"{name}, {_count([interval.n])}",
        zorder=2.5,
    )


def _count(counts: pd.Series | list[int]) -> str:
    """ "n = 3", "n = 2–3" where points differ; one seed has no interval, and the legend says so."""
    low, high = min(counts, default=0), max(counts, default=0)
    text = f"n = {low}" if low == high else f"n = {low}\N{EN DASH}{high}"
    return text + (" (no interval)" if high == 1 else "")


def _x(rows: pd.DataFrame, x: X) -> np.ndarray:
    column, scale = _COLUMNS[x]
    return scale * rows[column].to_numpy(dtype=float)


def _divided(rows: pd.DataFrame) -> pd.Series:
    """Points where some but not all runs collapsed."""
    share = rows["collapsed"].fillna(0.0)
    return (share > 0) & (share < 1)


_COLUMNS = {
    "compression": ("compression", 1),
    "sparsity": ("sparsity", 100),
    "macs": ("macs", 100),
    "latency": ("latency_ms", 1),
    "cost": ("total_epochs", 1),
}
_COSTS = {
    "macs": "Remaining multiply-accumulates (%)",
    "latency": "Milliseconds a forward pass of one batch",
    "cost": "Epochs of training in all",
}


# Limits


ROOM = 3.0
"""How far a band may reach over all means on a logarithmic axis: by this factor."""

SPREAD = 1.0
"""How far on a linear axis that no unit bounds: by this share of the distance between the lowest and highest mean."""


class _View:
    """What there is to see on the y axis, in the shown unit; on a logarithmic one limits are found among logarithms."""

    def __init__(self, value: Value, summary: pd.DataFrame, dense: Mapping[str, Interval]) -> None:
        self.percent, self.cut = value.percent, False
        self.means = value.scale * summary["mean"].to_numpy(dtype=float)
        self.lines = value.scale * np.array([interval.mean for interval in dense.values()])
        points = summary[["low", "high"]].to_numpy(dtype=float).ravel()
        bands = [end for interval in dense.values() for end in (interval.low, interval.high)]
        self.ends, self.bands = (
            ends[np.isfinite(ends)] for ends in (value.scale * points, value.scale * np.array(bands))
        )
        values = np.concatenate([self.means, self.lines])
        self.log = value.log and bool((values > 0).all())
        lowest, highest = self._reach(values)
        both = np.concatenate([self.ends, self.bands])
        self.cut = bool((both < lowest).any() or (both > highest).any())
        self.ends, self.bands = (np.clip(ends, lowest, highest) for ends in (self.ends, self.bands))
        if self.log:
            self.ends, self.bands = np.log10(self.ends), np.log10(self.bands)
            self.means, self.lines = np.log10(self.means), np.log10(self.lines)

    def _reach(self, values: np.ndarray) -> tuple[float, float]:
        """How far intervals are shown: one of two seeds may be ten times as long as all means are apart, or end below
        0, which has no logarithm.
        """
        if self.log:
            return values.min() / ROOM, values.max() * ROOM
        beyond = SPREAD * (values.max() - values.min())
        if self.percent or not beyond:
            return -math.inf, math.inf
        return values.min() - beyond, values.max() + beyond

    def full(self) -> tuple[float, float]:
        """All means and intervals; what leaves [0 %, 100 %] is cut there by the panel, not in the numbers."""
        return self._shown(*self._whole())

    def near(self) -> list[tuple[float, float]]:
        """The dense lines, their bands and the nearer half of the points; none where that is much of the range."""
        if not self.lines.size:
            return []
        away = np.maximum(np.maximum(self.lines.min() - self.means, self.means - self.lines.max()), 0)
        shown = [*self.means[away <= 1.15 * np.median(away)], *self.lines, *self.bands]
        low, high = min(shown), max(shown)
        full_low, full_high = self._whole()
        if not 0 < high - low < (full_high - full_low) / 4:
            return []
        margin = 0.1 * (high - low)
        return [self._shown(low - margin, high + margin)]

    def _whole(self) -> tuple[float, float]:
        ends = np.concatenate([self.means, self.lines, self.ends, self.bands])
        bounds = (0.0, 100.0) if self.percent else (-math.inf, math.inf)
        low, high = np.clip([ends.min(), ends.max()], *bounds)
        margin = 0.04 * (high - low) or (0.05 * abs(high) if not self.log else 0.05) or 1.0
        return max(low - margin, bounds[0] - 2), min(high + margin, bounds[1] + 2)

    def _shown(self, low: float, high: float) -> tuple[float, float]:
        return (float(10.0**low), float(10.0**high)) if self.log else (float(low), float(high))
