"""Sparsity and compression as axes: ticks at the operating points, rounded to the digits that matter."""

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FixedFormatter, FixedLocator, NullFormatter

TIMES = "\N{MULTIPLICATION SIGN}"
AXIS_CHARACTERS = 72  # of the ticks' font, from the first operating point to the last


def percent(density: float) -> str:
    """The sparsity of a density in (0, 1], to two digits of what is *kept*, so that 99.9 % and 99.99 % differ."""
    kept = 100 * density
    digits = max(0, 1 - math.floor(math.log10(kept))) if kept > 0 else 0
    text = f"{100 - kept:.{digits}f}"
    return (text.rstrip("0").rstrip(".") if "." in text else text) + " %"


def ratio(compression: float, times: str = TIMES) -> str:
    """A compression ratio of at least 1 to three digits, or to the unit: "1.56×", "20×", "1,578×"."""
    return (f"{compression:.3g}" if compression < 999.5 else f"{compression:,.0f}") + times


def compression_axis(axes: list[Axes], summary: pd.DataFrame) -> None:
    """A log axis with a tick at every operating point that has room, and the sparsity of each on the upper edge."""
    finite = summary[np.isfinite(summary["compression"])]
    realised = finite["compression"].to_numpy(dtype=float)
    with np.errstate(divide="ignore"):
        requested = 1 / finite["requested_density"].to_numpy(dtype=float)
    points = np.log(_points(requested, realised, 0.02 * realised))
    ticks = np.exp(apart(points, [max(ratio(point), _percent(point), key=len) for point in np.exp(points)]))
    axes[-1].set_xscale("log")  # the panels share scale, limits and ticks
    _ticks(axes[-1].xaxis, ticks, [ratio(tick) for tick in ticks], np.exp(points))
    if len(points):
        margin = 0.045 * (points[-1] - points[0]) or 1.0
        axes[-1].set_xlim(math.exp(points[0] - margin), math.exp(points[-1] + margin))
    axes[-1].set_xlabel("Compression ratio (prunable weights / kept weights)")
    upper = axes[0].secondary_xaxis("top", functions=(lambda at: at, lambda at: at))
    _ticks(upper.xaxis, ticks, [_percent(tick) for tick in ticks], np.exp(points))
    upper.set_xlabel("Sparsity of the prunable weights")


def sparsity_axis(axes: list[Axes], summary: pd.DataFrame) -> None:
    """A linear axis in percent, with a tick at every operating point that has room, sparse ones first.

    Linear is what a reader expects of percent; what happens close to 100 % is for the other figure's log axis.
    """
    realised = 100 * summary["sparsity"].to_numpy(dtype=float)
    points = _points(100 * (1 - summary["requested_density"].to_numpy(dtype=float)), realised, 0.5)
    label = {point: percent(1 - point / 100).removesuffix(" %") for point in points}
    ticks = apart(points, list(label.values()))
    _ticks(axes[-1].xaxis, ticks, [label[tick] for tick in ticks], points)
    margin = 0.045 * (points[-1] - points[0]) or 1.0
    axes[-1].set_xlim(points[0] - margin, points[-1] + margin)
    axes[-1].set_xlabel("Sparsity of the prunable weights (%)")


def _points(requested: np.ndarray, realised: np.ndarray, within: np.ndarray | float) -> np.ndarray:
    """The operating points, sorted: the round numbers that were asked for, unless units are coarse and missed them."""
    near = bool((np.abs(requested - realised) <= within).all())
    return np.unique((requested if near else realised).round(9))


def _percent(compression: float) -> str:
    return percent(1 / compression)


def apart(points: np.ndarray, labels: list[str], characters: float = AXIS_CHARACTERS) -> np.ndarray:
    """As many of the sorted points as have room for their labels, taken from the last one down.

    `characters` is the room between the first point and the last.
    """
    kept: list[int] = []
    for place in reversed(range(len(points))):
        if kept:
            room = (points[kept[-1]] - points[place]) / (points[-1] - points[0]) * characters
            if room < (len(labels[kept[-1]]) + len(labels[place])) / 2 + 1.5:
                continue
        kept.append(place)
    return points[kept[::-1]]


def _ticks(axis: Axis, ticks: np.ndarray, labels: list[str], points: np.ndarray) -> None:
    """Labelled ticks, and a small one at every operating point."""
    axis.set_major_locator(FixedLocator(list(ticks)))
    axis.set_major_formatter(FixedFormatter(labels))
    axis.set_minor_locator(FixedLocator(list(points)))
    axis.set_minor_formatter(NullFormatter())
