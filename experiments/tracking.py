"""Where rows are also sent. A tracker that fails is dropped with a warning; the rows on disk are kept anyway."""

import logging
from collections.abc import Mapping
from typing import Any, Protocol

log = logging.getLogger("experiments")


class Tracker(Protocol):
    """What a run tells its tracker."""

    def start(self, run: str, config: Mapping[str, Any]) -> None: ...

    def row(self, row: Mapping[str, Any]) -> None: ...

    def finish(self) -> None: ...


class Nothing:
    """No tracker."""

    def start(self, run: str, config: Mapping[str, Any]) -> None:
        """Nothing."""

    def row(self, row: Mapping[str, Any]) -> None:
        """Nothing."""

    def finish(self) -> None:
        """Nothing."""


class Wandb:
    """Weights & Biases: one wandb run a run, its rows as steps. Offline unless `mode` says otherwise."""

    def __init__(self, project: str = "sparse-subnetworks", mode: str = "offline", folder: str | None = None):
        self._options = {"project": project, "mode": mode, "dir": folder}
        self._run: Any = None

    def start(self, run: str, config: Mapping[str, Any]) -> None:
        """Open the wandb run."""
        import wandb  # noqa: PLC0415  # slow to import, and only needed here

        self._run = wandb.init(name=run, config=dict(config), reinit="finish_previous", **self._options)

    def row(self, row: Mapping[str, Any]) -> None:
        """Log the row's numbers."""
        numbers = {key: value for key, value in row.items() if isinstance(value, int | float)}
        self._run.log(numbers, step=row["level"])

    def finish(self) -> None:
        """Close it."""
        self._run.finish()


class Guarded:
    """A tracker that cannot harm the run: after its first failure it is not asked again."""

    def __init__(self, tracker: Tracker):
        self._tracker: Tracker = tracker

    def start(self, run: str, config: Mapping[str, Any]) -> None:
        """Open it."""
        self._try("start", run, config)

    def row(self, row: Mapping[str, Any]) -> None:
        """Send a row."""
        self._try("row", row)

    def finish(self) -> None:
        """Close it."""
        self._try("finish")

    def _try(self, what: str, *arguments: Any) -> None:
        try:
            getattr(self._tracker, what)(*arguments)
        except Exception as error:  # whatever a network client may raise: a result is never lost for a tracker
            log.warning("tracker %s dropped: %s: %s", type(self._tracker).__name__, type(error).__name__, error)
            self._tracker = Nothing()
