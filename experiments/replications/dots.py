"""Errors of few seeds in groups, nothing averaged away: a dot a seed, the mean, and its t-interval."""

from collections.abc import Mapping, Sequence

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from experiments.results.figures import COLOURS, MARKERS, STYLE
from experiments.results.intervals import mean_interval

TICKS = (1, 2, 5, 10, 20, 50, 100)


@style.context(["default", STYLE])
def draw(groups: Mapping[str, Mapping[str, Sequence[float]]], line: Sequence[float], name: str, xlabel: str) -> Figure:
    """Test errors in percent on a log axis: group → series → one value a seed, and a line of that `name`."""
    figure = Figure(figsize=(6.5, 3.4), layout="constrained")
    panel = figure.subplots()
    panel.set_yscale("log")
    series = list(dict.fromkeys(key for group in groups.values() for key in group))
    for column, group in enumerate(groups.values()):
        for place, (key, values) in enumerate((key, group[key]) for key in series if key in group):
            at = column + 0.22 * (place - (len(group) - 1) / 2)
            _dots(panel, at, values, series.index(key), key if column == 0 else None)
    across = mean_interval(line)
    panel.axhspan(across.low, across.high, color="black", alpha=0.08, linewidth=0)
    panel.axhline(across.mean, color="black", linestyle="--", linewidth=1, label=name, zorder=1)
    shown = [value for group in groups.values() for values in group.values() for value in values]
    panel.set_ylim(0.75 * min(*shown, *line), min(1.3 * max(*shown, *line), 105))
    panel.yaxis.set_major_locator(FixedLocator(TICKS))
    panel.yaxis.set_minor_locator(NullLocator())
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.set_xticks(range(len(groups)), list(groups))
    panel.grid(visible=False, axis="x")
    panel.set_xlabel(xlabel)
    panel.set_ylabel("Test error (%), log scale")
    title = "A dot a seed; mean and 95 % t-interval, cut by the axes"
    figure.legend(loc="outside lower center", ncols=len(series) + 1, title=title, frameon=False)
    return figure


def _dots(panel: Axes, at: float, values: Sequence[float], place: int, label: str | None) -> None:
    colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
    interval = mean_interval(values)
    panel.vlines(at, max(interval.low, 1e-3), interval.high, color=colour, linewidth=0.8, alpha=0.6, zorder=2)
    panel.hlines(interval.mean, at - 0.07, at + 0.07, color=colour, zorder=2)
    panel.plot([at] * len(values), values, marker, color=colour, markeredgecolor="white", label=label, zorder=3)
