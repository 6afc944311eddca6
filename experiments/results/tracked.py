"""Results of a run for its tracker: its curve, and the files of its masks."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.records import values
from experiments.store.retrieval import mask_file
from pruning.errors import RecordsError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger("experiments")


def results(rows: Sequence[Mapping[str, Any]], store: Path) -> tuple[dict[str, "Figure"], dict[str, Path]]:
    """The figure of the headline metric, and for every pruned level where its masks lie; by their names.

    Where no figure can be made, as of a run that diverged, there are still masks.
    """
    import pandas as pd  # noqa: PLC0415  # these take a second, and most runs have no tracker

    from experiments.results import figures, statistics  # noqa: PLC0415  # as pandas: slow, and for trackers alone

    frame = pd.DataFrame(rows)
    drawn = {}
    try:
        value = values.resolve(frame)
        drawn[value.stem] = figures.accuracy(statistics.summarise(frame, value), statistics.dense(frame, value))
    except RecordsError as error:
        log.info("no figure of this run: %s", error)
    files = {_name(row): mask_file(row, store) for row in rows if row["level"] > 0}
    return drawn, {name: path for name, path in files.items() if path is not None}


def _name(row: Mapping[str, Any]) -> str:
    control = f"-{row['control']}" if row["control"] else ""
    return f"level{row['level']}{control}"
