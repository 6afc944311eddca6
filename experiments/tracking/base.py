"""Where rows are also sent. A tracker that fails or hangs is dropped with a warning; the rows on disk stay."""

import logging
import os
import re
import sys
import threading
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from experiments.runtime.extras import require
from pruning.errors import PruningError

if TYPE_CHECKING:  # drawing takes a second to import, and most runs have no tracker
    from matplotlib.figure import Figure
    from PIL.Image import Image

log = logging.getLogger("experiments")

PATIENCE, FAREWELL = 60.0, 600.0
"""Seconds that a tracker may take for one call before it is dropped; and for the last, which sends what is left."""


class Tracker(Protocol):
    """What a run tells its tracker."""

    def start(self, run: str, config: Mapping[str, Any]) -> None:
        """A run begins, or is repeated."""

    def row(self, row: Mapping[str, Any]) -> None:
        """A level of it, as in rows.jsonl."""

    def results(self, figures: Mapping[str, "Figure"], masks: Mapping[str, Path]) -> None:
        """Its figures, and the files of its masks, by their names."""

    def finish(self, done: bool) -> None:
        """It is over; `done`, or by an error."""


class Nothing:
    """No tracker."""

    def start(self, run: str, config: Mapping[str, Any]) -> None:
        """Nothing."""

    def row(self, row: Mapping[str, Any]) -> None:
        """Nothing."""

    def results(self, figures: Mapping[str, "Figure"], masks: Mapping[str, Path]) -> None:
        """Nothing."""

    def finish(self, done: bool) -> None:
        """Nothing."""


class Wandb:
    """Weights & Biases: a wandb run for every run, its levels as steps, the sweep's name as group.

    `mode` is "online", "offline" or "auto": online where somebody is logged in.
    """

    def __init__(self, project: str = "sparse-subnetworks", mode: str = "auto", folder: str | None = None):
        require("wandb")
        self._project, self._mode, self._folder = project, mode, folder
        self._run: Any = None

    def start(self, run: str, config: Mapping[str, Any]) -> None:
        """Open the wandb run; a repeated run goes on in the one that it had."""
        import wandb  # noqa: PLC0415  # slow to import, and only needed here

        mode = self._mode
        if mode == "auto":
            mode = "online" if wandb.login(prompt=False, verify=False) else "offline"
        if self._folder is not None:
            Path(self._folder).mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=self._project,
            mode=mode,
            dir=self._folder,
            id=run,
            name=run,
            group=str(config.get("name")),
            tags=tags(config),
            config=dict(config),
            resume="allow",
            reinit="finish_previous",
        )

    def row(self, row: Mapping[str, Any]) -> None:
        """Log the row's numbers at its level; those of a control under its name."""
        self._run.log(numbers(row), step=row["level"])

    def results(self, figures: Mapping[str, "Figure"], masks: Mapping[str, Path]) -> None:
        """Images of the figures; one artifact with all masks."""
        import wandb  # noqa: PLC0415  # slow to import, and only needed here

        if figures:
            self._run.log({name: wandb.Image(_drawn(figure)) for name, figure in figures.items()})
        if masks:
            artifact = wandb.Artifact(f"masks-{self._run.id}", type="masks")
            for name, path in masks.items():
                artifact.add_file(str(path), name=f"{name}.safetensors")
            self._run.log_artifact(artifact)

    def finish(self, done: bool) -> None:
        """Close it, as failed if it is not `done`."""
        self._run.finish(exit_code=0 if done else 1)


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


class Guarded:
    """A tracker that cannot harm the run: one that fails, or takes longer than `patience`, is not asked again."""

    def __init__(self, tracker: Tracker, patience: float = PATIENCE, farewell: float = FAREWELL):
        self._tracker: Tracker = tracker
        self._patience, self._farewell = patience, farewell

    @property
    def active(self) -> bool:
        """Whether anybody listens."""
        return not isinstance(self._tracker, Nothing)

    def start(self, run: str, config: Mapping[str, Any]) -> None:
        """Open it."""
        self._try("start", lambda tracker: tracker.start(run, config))

    def row(self, row: Mapping[str, Any]) -> None:
        """Send a row."""
        self._try("row", lambda tracker: tracker.row(row))

    def results(self, make: Callable[[], tuple[Mapping[str, "Figure"], Mapping[str, Path]]]) -> None:
        """Send what `make` makes, which is not asked where nobody listens."""
        if self.active:
            try:
                figures, masks = make()
            except (PruningError, OSError) as error:
                log.warning("the tracker gets no figures and masks: %s", error)
                return
            self._try("results", lambda tracker: tracker.results(figures, masks))

    def finish(self, done: bool) -> None:
        """Close it."""
        self._try("finish", lambda tracker: tracker.finish(done), self._farewell)

    def _try(self, what: str, call: Callable[[Tracker], None], patience: float | None = None) -> None:
        if not self.active:
            return
        patience = patience or self._patience
        failed: list[Exception] = []

        def work() -> None:
            try:
                call(self._tracker)
            except Exception as error:  # whatever a network client may raise: a result is never lost for a tracker
                failed.append(error)

        # A thread that hangs does not keep the process: a pool's would.
        thread = threading.Thread(target=work, daemon=True, name=f"{_THREAD}{what}")
        thread.start()
        thread.join(patience)
        if not failed and not thread.is_alive():
            return
        reason = f"{type(failed[0]).__name__}: {failed[0]}" if failed else f"nothing for {patience:g} s"
        log.warning("tracker %s dropped at %s: %s", type(self._tracker).__name__, what, reason)
        dropped, self._tracker = self._tracker, Nothing()
        if failed and what not in ("start", "finish"):  # it answers: let it close what it has
            last = Guarded(dropped, self._patience, self._farewell)
            last.finish(False)


def leave(code: int) -> NoReturn:
    """End the process with exit code `code`, also where a tracker hangs, whose own farewell could hang for good."""
    if any(thread.name.startswith(_THREAD) for thread in threading.enumerate()):
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)
    sys.exit(code)


_THREAD = "tracker "


def numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a row by their keys; with "reinit/" before them where it is of that control."""
    prefix = f"{row['control']}/" if row.get("control") else ""
    found = {key: value for key, value in row.items() if isinstance(value, int | float) and not isinstance(value, bool)}
    return {f"{prefix}{key}": value for key, value in found.items()}


def tags(config: Mapping[str, Any]) -> list[str]:
    """What a run is found by: scorer, model, granularity, data and when."""
    found = []
    for key in ("scorer", "model", "granularity"):
        target = str((config.get(key) or {}).get("_target_", ""))
        found.append(re.split(r"\.", target)[-1])
    found += [str((config.get("data") or {}).get("name", "")), str(config.get("when", ""))]
    return [tag[:64] for tag in dict.fromkeys(found) if tag]


def _drawn(figure: "Figure") -> "Image":
    from PIL.Image import open as open_image  # noqa: PLC0415  # slow to import, and only needed for figures

    drawn = BytesIO()
    figure.savefig(drawn, format="png", dpi=150)
    return open_image(drawn)
