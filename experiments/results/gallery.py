"""All figures of a folder of runs, each as .png and .pdf beside its numbers as .csv; and what could not be drawn."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from experiments.records.values import Value, resolve
from experiments.results import figures, statistics
from experiments.results.adapted import adaptations, is_adapted
from experiments.results.comparison import Comparison
from experiments.results.figures.adaptation import adaptation
from experiments.results.figures.difference import difference
from experiments.results.figures.layers import layer_densities, layers
from experiments.results.figures.overlap import overlap
from experiments.results.figures.training import losses, training
from experiments.results.figures.weights import histograms, weights
from experiments.results.intervals import Interval
from experiments.results.overlap import overlaps
from experiments.store.retrieval import kept_weights, masks_of
from pruning.errors import ArtefactError, RecordsError

Drawn = tuple[Figure, pd.DataFrame]


@dataclass(frozen=True)
class FigureOptions:
    """Options of a gallery.

    Attributes:
        value: what is on the y axis, also as the name of a column; None: the headline metric of the rows.
        interval: one of `intervals.INTERVALS`.
        compared: comparisons whose differences are drawn, a figure each.
        axes: x axes of the curves; None: all that the rows have.
        store: where masks and weights lie; None: where the runs put them.
    """

    value: Value | str | None = None
    interval: str = "t"
    compared: Sequence[Comparison] = ()
    axes: Sequence[figures.X] | None = None
    store: Path | None = None


def gallery(frame: pd.DataFrame, options: FigureOptions, output: Path) -> tuple[list[Path], list[str]]:
    """Draw all figures of `frame` into the folder `output`; return paths, and a line per figure that cannot be drawn.

    Curves are called after the metric, as accuracy_…, and after the column where that is not of the test part. Raises
    `RecordsError` where not even a curve can be drawn, `OSError` where it cannot be written.
    """
    value = resolve(frame, options.value)
    final = statistics.points(frame, value)
    summary = statistics.summarise_points(final, frame, value, options.interval)
    dense = statistics.dense(frame, value, options.interval)
    output.mkdir(parents=True, exist_ok=True)
    written, skipped = [], []
    one = is_adapted(final) and final["requested_density"].nunique() == 1  # of which there are no curves over it
    for x in options.axes or ([] if one else available_axes(summary)):
        figure = figures.accuracy(summary, dense, x, value, options.interval)
        numbers = with_dense(summary, dense, statistics.start_shares(frame))
        written += figures.save(figure, output / f"{value.stem}_{x}", numbers)
    others: dict[str, Callable[[], Drawn]] = {}
    for place, comparison in enumerate(options.compared, start=1):
        name = f"{value.stem}_difference" + (f"_{place}" if len(options.compared) > 1 else "")
        others[name] = partial(_difference, comparison, options)
    others |= {
        "layers": partial(_layers, final),
        "overlap": partial(_overlap, final, options),
        "weights": partial(_weights, final, frame, options),
        "training": partial(_training, final, frame),
    }
    if is_adapted(final):
        others["adaptation"] = partial(_adaptation, final, value, options.interval)
    for name, draw in others.items():
        try:
            figure, numbers = draw()
        except (RecordsError, ArtefactError) as error:
            skipped.append(f"{name}: {error}")
        else:
            written += figures.save(figure, output / name, numbers)
    return written, skipped


def available_axes(summary: pd.DataFrame) -> list[figures.X]:
    """The x axes that a summary can be drawn over: what was measured, and costs where they differ along a curve."""
    found: list[figures.X] = ["compression", "sparsity"]
    if summary["macs"].notna().all():
        found.append("macs")
    if summary["latency_ms"].notna().any():
        found.append("latency")
    if summary["total_epochs"].notna().all() and (summary.groupby("method")["total_epochs"].nunique() > 1).any():
        found.append("cost")
    return found


def with_dense(
    summary: pd.DataFrame, dense: Mapping[str, Interval], shares: Mapping[str, Mapping[str, float]]
) -> pd.DataFrame:
    """The summary with the dense networks as its first rows; `shares` are those of `statistics.start_shares`."""
    rows = []
    for name, interval in dense.items():
        density = shares[name]["density"]
        size = {**shares[name], "sparsity": 1 - density, "compression": 1 / density if density else math.inf}
        rows.append({"method": name, "requested_density": 1.0, **size, **vars(interval)})
    return pd.DataFrame([*rows, *summary.to_dict("records")], columns=summary.columns)


def _difference(comparison: Comparison, options: FigureOptions) -> Drawn:
    found = comparison.differences
    figure = difference(found, comparison.baseline, comparison.value, options.interval)
    if len(options.compared) > 1:
        figure.axes[0].set_title(comparison.setup)
    return figure, found


def _adaptation(final: pd.DataFrame, value: Value, interval: str) -> Drawn:
    table = adaptations(final, value, interval)
    return adaptation(table, value, interval), table


def _layers(final: pd.DataFrame) -> Drawn:
    found = layer_densities(final)
    return layers(found), found


def _overlap(final: pd.DataFrame, options: FigureOptions) -> Drawn:
    found = overlaps(final, partial(masks_of, store=options.store))
    if found.empty or math.isnan(found["jaccard"].max()):
        raise RecordsError("no two masks of one density: run more scorers or seeds")
    return overlap(found), found


def _weights(final: pd.DataFrame, frame: pd.DataFrame, options: FigureOptions) -> Drawn:
    found = histograms(final, frame, partial(kept_weights, store=options.store))
    return weights(found), found


def _training(final: pd.DataFrame, frame: pd.DataFrame) -> Drawn:
    found = losses(final, frame)
    return training(found), found
