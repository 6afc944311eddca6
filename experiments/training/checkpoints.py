"""Checkpoints of a training, from which a killed one resumes and comes to the same result."""

import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pruning import snapshot
from pruning.errors import ArtefactError

log = logging.getLogger("experiments")


@dataclass(frozen=True)
class Checkpoints:
    """Path and intervals of the checkpoints of a training.

    Attributes:
        path: one file, replaced whole each time.
        seconds: seconds between two checkpoints; None: no limit of time.
        steps: optimizer steps between two checkpoints; None: no limit of steps.
    """

    path: Path
    seconds: float | None = 60.0
    steps: int | None = None

    def due(self, step: int, last: float) -> bool:
        """Whether to save after `step` steps; the last checkpoint is of time `last` by `time.monotonic`."""
        if self.steps is not None and step % self.steps == 0:
            return True
        return self.seconds is not None and time.monotonic() - last >= self.seconds

    def write(self, tree: dict[str, Any], device: torch.device) -> None:
        """Replace the file; a reader, or a process that is killed, never meets half of it.

        A full disk, or an optimizer whose state is no plain data, is logged: the training can go on without.
        """
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        try:
            snapshot.save(temporary, tree | {"environment": _environment(device)})
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(self.path)
        except (OSError, ArtefactError) as error:
            temporary.unlink(missing_ok=True)
            log.warning("no checkpoint, the training goes on: %s", error)

    def read(self, device: torch.device) -> dict[str, Any] | None:
        """The last checkpoint; None where there is none, it is damaged, or resuming would give other numbers."""
        if not self.path.exists():
            return None
        try:
            tree = snapshot.load(self.path)
        except ArtefactError as error:
            log.warning("%s; this training starts from its beginning", error)
            return None
        if not isinstance(tree, dict) or tree.pop("environment", None) != _environment(device):
            log.warning(
                "%s: other torch, device or number of threads; this training starts from its beginning", self.path
            )
            return None
        return tree


def _environment(device: torch.device) -> dict[str, Any]:
    """Conditions on which the rounding of sums depends, besides the numbers themselves."""
    threads = torch.get_num_threads() if device.type == "cpu" else None
    return {"torch": str(torch.__version__), "device": device.type, "threads": threads}
