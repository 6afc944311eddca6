"""Networks of another run, as models."""

from pathlib import Path
from typing import Any

from torch import nn

from experiments import records
from experiments.configuration.targets import instantiate
from experiments.store.retrieval import masks_of, network_of
from pruning.errors import ModelError


def model_of_run(folder: str, level: int | None = None, store: str | None = None) -> nn.Module:
    """The network that another run had at a level, with its weights.

    Its masks, if it was pruned, are its attribute `starting_masks`: a run begins under them, so that removed weights
    stay away, and densities are of the original network. Ask for less than is left; in rounds, with schedule.start.

    Args:
        folder: of that run, or of a sweep with one run.
        level: its row; None: the last.
        store: where its artefacts lie; None: where the run put them.

    Raises:
        ModelError: no such row. `RecordsError`, `ArtefactError`: rows or weights that cannot be read.
    """
    row, place = row_of_run(folder, level), None if store is None else Path(store)
    if row.get("adaptation_trained") is not None and row.get("macs") is None:
        raise ModelError(
            f"{folder}: its network has an adaptation beside its weights, which no run can begin with: name a "
            "level, or a run, whose adaptation merges"
        )
    model = network_of(row, instantiate("model", row["config"]["model"]), place)
    model.starting_masks = masks_of(row, place)  # type: ignore[assignment]  # a plain attribute, no module
    return model


def row_of_run(folder: str, level: int | None = None) -> dict[str, Any]:
    """The row of a run at a level, the last by default, without controls; see `model_of_run`."""
    frame = records.read(folder)
    rows = [row for row in records.as_dicts(frame) if not isinstance(row.get("control"), str)]
    if len({row["run"] for row in rows}) > 1:
        raise ModelError(f"{folder}: holds several runs: name the folder of one")
    found = [row for row in rows if level is None or row["level"] == level]
    if not found:
        raise ModelError(f"{folder}: has no level {level}: give one from 0 to {max(row['level'] for row in rows)}")
    return found[-1]
