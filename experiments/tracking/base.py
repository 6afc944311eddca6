"""Trackers of rows. A tracker that fails or hangs is dropped with a warning; the rows on disk stay."""

import logging
import os
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from pruning.errors import PruningError

if TYPE_CHECKING:  # drawing takes a second to import, and most runs have no tracker
    from matplotlib.figure import Figure

log = logging.getLogger("experiments")

PATIENCE, FAREWELL = 60.0, 600.0
"""Seconds that a tracker may take for one call before it is dropped; and for the last, which sends what is left."""


class Tracker(Protocol):
    """A destination of rows, figures and masks, called by a run."""

    def start(self, run: str, config: Mapping[str, Any]) -> None:
        """A run begins, or is repeated."""

    def row(self, row: Mapping[str, Any]) -> None:
        """A level of it, as in rows.jsonl."""

    def results(self, figures: Mapping[str, "Figure"], masks: Mapping[str, Path]) -> None:
        """Its figures, and the files of its masks, by their names."""

    def finish(self, done: bool) -> None:
        """The run ended: `done`, or by an error."""


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


class Guarded:
    """A tracker that cannot harm the run: one that fails, or takes longer than `patience`, is not asked again."""

    def __init__(self, tracker: Tracker, patience: float = PATIENCE, farewell: float = FAREWELL):
        self._tracker: Tracker = tracker
        self._patience, self._farewell = patience, farewell

    @property
    def active(self) -> bool:
        """Whether there is a tracker that has not been dropped."""
        return not isinstance(self._tracker, Nothing)

    def start(self, run: str, config: Mapping[str, Any]) -> None:
        """Open it."""
        self._try("start", lambda tracker: tracker.start(run, config))

    def row(self, row: Mapping[str, Any]) -> None:
        """Send a row."""
        self._try("row", lambda tracker: tracker.row(row))

    def results(self, make: Callable[[], tuple[Mapping[str, "Figure"], Mapping[str, Path]]]) -> None:
        """Send the figures and masks that `make` returns; it is called only while a tracker is active."""
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
