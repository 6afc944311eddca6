"""Long work shows how far it is: a bar where a person watches, plain log lines otherwise."""

import logging
import sys
import time
from datetime import timedelta
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

log = logging.getLogger("experiments")
_SECONDS_BETWEEN_LINES = 20.0


class Progress(Protocol):
    """A display of how far a training is; the training loop calls it."""

    def epoch(self, done: int, total: int, loss: float) -> None: ...


class Bar:
    """A rich bar for one training, on standard error; gone when the training ends."""

    def __init__(self, title: str):
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("epoch {task.completed}/{task.total}, loss {task.fields[loss]:.4f}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._bars.add_task(title, total=None, loss=float("nan"))

    def epoch(self, done: int, total: int, loss: float) -> None:
        if done == 1:
            self._bars.start()
        self._bars.update(self._task, completed=done, total=total, loss=loss)
        if done == total:
            self._bars.stop()


class Lines:
    """A log line now and then, never more than one in 20 seconds, so that a log file stays readable."""

    def __init__(self, title: str):
        self._title = title
        self._last = time.monotonic()
        self._before: tuple[int, float] | None = None

    def epoch(self, done: int, total: int, loss: float) -> None:
        now = time.monotonic()
        if self._before is None:  # a resumed training did not run its first epochs here
            self._before = done, now
        if now - self._last >= _SECONDS_BETWEEN_LINES:
            self._last = now
            log.info("%s: epoch %d of %d, loss %.4f%s", self._title, done, total, loss, self._left(done, total, now))

    def _left(self, done: int, total: int, now: float) -> str:
        assert self._before is not None
        epochs, since = done - self._before[0], now - self._before[1]
        return f", {timedelta(seconds=round((total - done) * since / epochs))} left" if epochs else ""


def progress(title: str, alone: bool) -> Progress:
    """A bar if this process is `alone` in writing to a terminal, lines otherwise."""
    return Bar(title) if alone and sys.stderr.isatty() else Lines(title)
