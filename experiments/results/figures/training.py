"""Loss along training: the dense network's, and what every pruning did to it."""

import math
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.results.exclusions import without_diverged
from experiments.results.figures.style import NO_LABEL, STYLE, WIDTH, label_edges, legend_below, log_ticks, panel_title
from experiments.results.statistics import start_of
from pruning.errors import RecordsError


def losses(points: pd.DataFrame, frame: pd.DataFrame) -> pd.DataFrame:
    """The mean training loss of every epoch: columns `dense`, `method`, `requested_density`, `begin`, `epoch`, `loss`,
    `n`.

    `dense` is the set-up of the dense networks (`labels.setups`); their own rows have it as their method. `epoch`
    counts from the initialisation and is where an epoch ended, `begin` where this training began; means are over seeds.
    `frame` holds the rows of the dense networks (level 0). Networks without training have no rows. Raises
    `RecordsError` where rows have no losses.
    """
    if "losses" not in frame or "losses" not in points:
        raise RecordsError("no row has losses: they were written by an older version, repeat the sweep")
    start = start_of(frame)
    points = points.assign(setup=points["dense"].map(dict(zip(start["dense"], start["setup"], strict=True))))
    start = without_diverged(start)
    rows = []
    whole = pd.concat([start, points])
    for (setup, method, requested), once in whole.groupby(["setup", "method", "requested_density"], sort=False):
        found: dict[float, list[float]] = {}
        begin = float((once["total_epochs"] - once["epochs"]).mean())
        for curve in once["losses"]:
            for epoch, loss in curve if isinstance(curve, list) else []:
                found.setdefault(epoch, []).append(math.nan if loss is None else loss)
        rows += [
            {
                "dense": setup,
                "method": method,
                "requested_density": requested,
                "begin": begin,
                "epoch": at,
                "loss": float(np.mean(of)),
                "n": len(of),
            }
            for at, of in sorted(found.items())
        ]
    return pd.DataFrame(rows, columns=["dense", "method", "requested_density", "begin", "epoch", "loss", "n"])


def training(losses: pd.DataFrame) -> Figure:
    """A panel a method: the dense network's loss in black, a line for every density, and a tick where it was pruned.

    `losses` is what the function of that name returns. A line begins with its first epoch; the dotted line is
    where it was pruned. Loss is on a log axis, unless some is not above 0.
    """
    starts = dict(zip(losses["method"], losses["dense"], strict=True))
    methods = [name for name, start in starts.items() if name != start]
    if not methods:
        raise RecordsError("no network was trained after its pruning: there is no loss to draw")
    densities = sorted(set(losses.loc[losses["method"].isin(methods), "requested_density"]), reverse=True)
    colours = matplotlib.colormaps["viridis"](np.linspace(0.0, 0.85, len(densities)))
    columns = min(2, len(methods))
    down = math.ceil(len(methods) / columns)
    with style.context(["default", STYLE]):
        figure = Figure(figsize=(WIDTH, 1), layout="constrained")
        panels = figure.subplots(down, columns, squeeze=False, sharex=True, sharey=True).ravel()
        for panel, method in zip(panels, methods, strict=False):
            before = losses[losses["method"] == starts[method]]
            panel.plot(before["epoch"], before["loss"], color="black", label="dense")
            for colour, density in zip(colours, densities, strict=True):
                of = losses[(losses["method"] == method) & (losses["requested_density"] == density)]
                alone = "o" if len(of) == 1 else None
                panel.plot(of["epoch"], of["loss"], color=colour, marker=alone, label=f"{100 * density:.3g} % kept")
            for at in losses.loc[losses["method"] == method, "begin"].unique():
                _mark(panel, at)
            panel_title(panel, str(method), columns)
        if (losses["loss"].dropna() > 0).all():  # a loss of one's own may be below 0
            log_ticks(panels[0])  # the panels share scale, limits and ticks
        label_edges(list(panels), len(methods), columns, "Epochs since the initialisation", "Training loss")
        legend_below(figure, [panels[0]], "Mean over seeds; dotted: a pruning")
        figure.set_figheight(figure.get_figheight() + (down - 1) * 2.1)
    return figure


def _mark(panel: Axes, at: float) -> None:
    """A dotted line from the lower to the upper edge. (`axvline` would find the limits of all panels each time.)"""
    look: dict[str, Any] = {"color": "#777777", "linestyle": ":", "linewidth": 1, "zorder": 1, "label": NO_LABEL}
    panel.plot([at, at], [0, 1], transform=panel.get_xaxis_transform(), **look)
