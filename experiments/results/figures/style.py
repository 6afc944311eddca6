"""Style of all figures: colours, sizes, and how they are saved with their numbers.

Figures are values: they are built without pyplot or any global state.
"""

import math
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, NullLocator

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito 2008, safe for the colour-blind; without its yellow (faint on white) and black (the dense network)."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")  # seven: no two of 168 methods share colour, line and marker
LINES = ("-", "--", "-.", ":")
DENSE_LINES = ("--", ":", "-.", (0, (6, 1, 1, 1, 1, 1)))

STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.title_fontsize": 8,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.5,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "text.usetex": False,
    "text.parse_math": False,  # a "$" in a label is a "$"
    "pdf.fonttype": 42,  # TrueType: journals refuse Type 3
}
DPI = 200
WIDTH = 6.5  # inches, the text width of most papers
NO_LABEL = "_nolegend_"  # matplotlib's own word for it
LEGEND_CHARACTERS = 104  # of the legend's font, over that width


def save(figure: Figure, path: str | Path, table: pd.DataFrame) -> list[Path]:
    """Write `path`.pdf, `path`.png and, of the numbers that are drawn, `path`.csv; return these paths.

    The same figure and table give the same bytes on every run: no dates are written. Tuples (the seeds) become words
    between spaces, so that a cell stays one cell. Raises `OSError` where nothing can be written.
    """
    path = Path(path)
    pdf, png, csv = (path.with_name(f"{path.name}.{suffix}") for suffix in ("pdf", "png", "csv"))
    with style.context(["default", STYLE]), _laid_out(figure):
        # Not by savefig: it draws a figure once more, for its layout, whether that is done or not.
        FigureCanvasAgg(figure).print_png(png, metadata={"Software": None})  # type: ignore[no-untyped-call]  # matplotlib's
        undated = {"CreationDate": None, "Creator": None, "Producer": None}
        FigureCanvasPdf(figure).print_pdf(pdf, metadata=undated)  # type: ignore[no-untyped-call]  # matplotlib's
    flat = table.apply(lambda column: column.map(_flat) if column.dtype == object else column)
    flat.to_csv(csv, index=False, lineterminator="\n", encoding="utf-8")
    return [pdf, png, csv]


def _flat(cell: Any) -> Any:
    return " ".join(map(str, cell)) if isinstance(cell, tuple) else cell


@contextmanager
def _laid_out(figure: Figure) -> Iterator[None]:
    """The figure at the resolution of the .png, its axes placed once for both files; afterwards it is as before."""
    engine, dpi, canvas = figure.get_layout_engine(), figure.dpi, figure.canvas
    FigureCanvasAgg(figure)
    figure.set_dpi(DPI)
    try:
        if engine is not None:
            engine.execute(figure)
            figure.set_layout_engine("none")
        yield
    finally:
        figure.set_layout_engine(engine)
        figure.set_dpi(dpi)
        figure.set_canvas(canvas)


def legend_below(figure: Figure, axes: list[Axes], title: str) -> None:
    """Below the axes, in as many columns as the longest label leaves room for; the figure grows, the axes stay."""
    lines = [line for line in axes[0].get_lines() if line.get_linestyle() != "None" and line.get_label() != NO_LABEL]
    labels = ["\n".join(textwrap.wrap(str(line.get_label()), LEGEND_CHARACTERS - 8)) for line in lines]
    longest = max(len(part) for label in labels for part in label.split("\n"))
    columns = max(1, min(len(labels), LEGEND_CHARACTERS // (longest + 8)))
    columns = math.ceil(len(labels) / math.ceil(len(labels) / columns))  # as full as each other
    names = [str(place) for place in range(len(lines))]
    legend = figure.legend(lines, names, loc="outside lower center", ncols=columns, title=title, frameon=False)
    for text, label in zip(legend.get_texts(), labels, strict=True):
        text.set_text(label)  # only now: matplotlib would leave out what begins with "_"
    rows = math.ceil(len(labels) / columns) + sum(label.count("\n") for label in labels)
    figure.set_figheight(0.9 + 2.3 * len(axes) + 0.17 * (rows + 1))


def label_edges(panels: Sequence[Axes], count: int, columns: int, x: str, y: str) -> None:
    """Label the axes at the left and lower edges of `count` panels in a grid, and hide the panels after them."""
    for panel in panels[count:]:
        panel.set_axis_off()
    for place, panel in enumerate(panels[:count]):
        if place % columns == 0:
            panel.set_ylabel(y)
        if place + columns >= count:
            panel.set_xlabel(x)
            panel.tick_params(labelbottom=True)


def panel_title(panel: Axes, title: str, columns: int) -> None:
    """The title of one of several panels side by side, in as many lines as it takes.

    It stands on the panel, which has nothing above it; without a place, matplotlib would look for one at every drawing.
    """
    panel.set_title(textwrap.fill(title, 84 // columns), y=1.0)


def log_ticks(panel: Axes) -> None:
    """A log y axis with numbers as they are said: 0.01, 1, 1,000."""
    panel.set_yscale("log")
    panel.yaxis.set_major_formatter(lambda at, _: _said(at))
    low, high = panel.get_ylim()
    if high / low > 30:  # otherwise a decade has too few numbers
        panel.yaxis.set_minor_formatter(NullFormatter())
    elif sum(low <= step * 10.0**power <= high for step in (1, 2, 5) for power in _powers(low, high)) > 1:
        panel.yaxis.set_minor_formatter(lambda at, _: f"{at:g}" if f"{at:e}"[0] in "125" else "")
    else:  # and less than a decade has none
        panel.yaxis.set_major_locator(MaxNLocator(5))
        panel.yaxis.set_major_formatter(lambda at, _: f"{at:g}")
        panel.yaxis.set_minor_locator(NullLocator())


def abbreviated_ticks(axis: Axis) -> None:
    """Ticks of a log axis of counts at 1, 2 and 5 of every decade: 500, 1k, 20k, 5M."""
    axis.set_major_locator(LogLocator(10, subs=(1.0, 2.0, 5.0), numticks=20))
    axis.set_minor_locator(LogLocator(10, subs=tuple(range(1, 10)), numticks=100))
    axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(lambda at, _: abbreviated(at))


def abbreviated(count: float) -> str:
    """A count with the unit that keeps it short: 20k, 1.5M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:g}{unit}"
    return f"{count:g}"


def _said(at: float) -> str:
    if at >= 1e9:
        return f"{at:.0e}".replace("e+", "e")
    return f"{at:,.0f}" if at >= 1 else f"{at:g}"


def _powers(low: float, high: float) -> range:
    return range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
