"""What a run shows beside its rows: its curve, and the files of its masks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from experiments import figures, statistics
from experiments.stored import mask_file


def results(rows: Sequence[Mapping[str, Any]], store: Path) -> tuple[dict[str, Figure], dict[str, Path]]:
    """The figure of accuracy over compression, and for every pruned level where its masks lie; by their names."""
    frame = pd.DataFrame(rows)
    figure = figures.accuracy(statistics.summarise(frame), statistics.dense(frame))
    files = {_name(row): mask_file(row, store) for row in rows if row["level"] > 0}
    return {"accuracy": figure}, {name: path for name, path in files.items() if path is not None}


def _name(row: Mapping[str, Any]) -> str:
    control = f"-{row['control']}" if row["control"] else ""
    return f"level{row['level']}{control}"
