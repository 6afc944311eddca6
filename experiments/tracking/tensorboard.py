"""TensorBoard."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.runtime.extras import require
from experiments.tracking.base import numbers

if TYPE_CHECKING:  # drawing takes a second to import
    from matplotlib.figure import Figure


class TensorBoard:
    """TensorBoard: a folder of events for every run, its levels as steps."""

    def __init__(self, folder: str):
        require("tensorboard")
        self._folder = folder
        self._writer: Any = None

    def start(self, run: str, config: Mapping[str, Any]) -> None:
        """Open the events of the run, in a folder of its name."""
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415  # an extra

        self._writer = SummaryWriter(str(Path(self._folder) / run))
        self._writer.add_text("config", "\n".join(f"    {key}: {value}" for key, value in config.items()))

    def row(self, row: Mapping[str, Any]) -> None:
        """A scalar for every number of the row."""
        for name, value in numbers(row).items():
            self._writer.add_scalar(name, value, row["level"])
        self._writer.flush()

    def results(self, figures: Mapping[str, "Figure"], masks: Mapping[str, Path]) -> None:
        """The figures, and where the masks lie."""
        for name, figure in figures.items():
            self._writer.add_figure(name, figure, close=False)
        self._writer.add_text("masks", "\n".join(f"    {name}: {path}" for name, path in masks.items()))

    def finish(self, done: bool) -> None:
        """Close it."""
        self._writer.close()
