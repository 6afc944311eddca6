"""What all figures share: colours, sizes, how they are saved with their numbers, and the names of what they show.

Figures are values: they are built without pyplot or any global state.
"""

from pathlib import Path

import pandas as pd
from matplotlib import style
from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito 2008, safe for the colour-blind; without its yellow (faint on white) and black (the dense network)."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
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
WIDTH = 6.5  # inches, the text width of most papers
LEGEND_CHARACTERS = 104  # of the legend's font, over that width


def save(figure: Figure, path: str | Path, table: pd.DataFrame) -> list[Path]:
    """Write `path`.pdf, `path`.png and, of the numbers that are drawn, `path`.csv; return these paths.

    The same figure and table give the same bytes on every run: no dates are written. Tuples (the seeds) become words
    between spaces, so that a cell stays one cell. Raises `OSError` where nothing can be written.
    """
    path = Path(path)
    pdf, png, csv = (path.with_name(f"{path.name}.{suffix}") for suffix in ("pdf", "png", "csv"))
    with style.context(["default", STYLE]):
        figure.savefig(pdf, format="pdf", metadata={"CreationDate": None, "Creator": None, "Producer": None})
        figure.savefig(png, format="png", dpi=200, metadata={"Software": None})
    flat = table.map(lambda cell: " ".join(map(str, cell)) if isinstance(cell, tuple) else cell)
    flat.to_csv(csv, index=False, lineterminator="\n", encoding="utf-8")
    return [pdf, png, csv]


def describe(value: str) -> tuple[str, float]:
    """The axis label of a column, and what its values are multiplied by: ("Test accuracy (%)", 100.0)."""
    words = value.replace("_", " ").strip()
    label = words[:1].upper() + words[1:]
    return (f"{label} (%)", 100.0) if words.endswith("accuracy") else (label, 1.0)
