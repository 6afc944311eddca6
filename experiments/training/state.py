"""State of a training: all that its remaining steps depend on, as a checkpoint holds it."""

from __future__ import annotations

import logging
import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from experiments.runtime.processes import all_reduce
from pruning.execution import Execution
from pruning.rewind import RewindPoint

if TYPE_CHECKING:
    from accelerate import Accelerator

    from experiments.adaptation import Attached

log = logging.getLogger("experiments")


class Stateful(Protocol):
    """A model, or what is trained of it."""

    def state_dict(self) -> dict[str, Tensor]:
        """All that its training changes."""
        ...


@dataclass(frozen=True)
class Epoch:
    """Record of one epoch.

    Attributes:
        number: in the order of the data.
        learning_rate: at its end.
        loss: mean over all that counts.
        validation: the headline metric there, if the best epoch is to be kept.
        seconds: duration of its steps.
    """

    number: int
    learning_rate: float
    loss: float
    validation: float | None
    seconds: float


@dataclass
class TrainingState:
    """Progress of a training.

    Attributes:
        step: optimizer steps done.
        loss, seen, seconds: of the present epoch: the sum of its losses, how much has counted, the time of its steps.
        epochs: those before.
        best: the best validation metric so far, and the weights that had it.
        diverged: the first step whose loss was not finite, found when it was done on a CPU, else by its epoch's end.
        first_loss: the mean loss of the first step in which something counted, in all processes; None before it.
    """

    step: int
    loss: Tensor
    seen: float | Tensor = 0
    seconds: float = 0.0
    epochs: list[Epoch] = field(default_factory=list)
    best: tuple[float, dict[str, Tensor]] | None = None
    diverged: int | None = None
    first_loss: float | None = None

    def add(self, loss: Tensor, count: float | Tensor) -> None:
        """Add a step, given the sum of its losses."""
        if self.first_loss is None and count:
            self.first_loss = float(all_reduce(loss)) / float(count)
        self.loss += loss
        self.seen += count
        self.step += 1
        if loss.is_cpu and not math.isfinite(loss.item()):
            self._not_finite()

    def close(
        self, number: int, learning_rate: float, validation: float | None, better: bool, trained: Stateful
    ) -> Epoch:
        """End an epoch, with its validation metric if it was measured, and whether higher is `better`."""
        seen = float(self.seen)
        mean = float(all_reduce(self.loss)) / seen if seen else math.nan
        # Outputs that are NaN have an accuracy too
        if math.isfinite(mean) and _is_better(validation, None if self.best is None else self.best[0], better):
            assert validation is not None
            self.best = validation, {name: value.clone() for name, value in trained.state_dict().items()}
        epoch = Epoch(number, learning_rate, mean, validation, self.seconds)
        if not math.isfinite(mean):
            self._not_finite()
            if all(math.isfinite(other.loss) for other in self.epochs):  # once is enough
                log.warning(
                    "the loss is not finite at step %d, learning rate %g: lower optimizer.lr, or set training.clip",
                    *(self.diverged, learning_rate),
                )
        self.epochs.append(epoch)
        self.loss, self.seen, self.seconds = torch.zeros_like(self.loss), 0, 0.0
        return epoch

    @property
    def lost(self) -> int | None:
        """The first step whose loss was not finite, if the last epoch's was not either and no better one is kept."""
        kept = self.best is not None or not self.epochs or math.isfinite(self.epochs[-1].loss)
        return None if kept else self.diverged

    def _not_finite(self) -> None:
        if self.diverged is None:
            self.diverged = self.step


def _is_better(value: float | None, best: float | None, higher: bool) -> bool:
    """Whether a metric is better than the best so far; one that is NaN or infinite is not."""
    if value is None or not math.isfinite(value):
        return False
    return best is None or (value > best if higher else value < best)


def to_tree(
    state: TrainingState,
    model: nn.Module,
    optimizer: Optimizer,
    execution: Execution | None,
    accelerated: Accelerator,
    adapted: Attached | None = None,
) -> dict[str, Any]:
    """Pack the state of a training into plain data and tensors."""
    scaler = accelerated.scaler
    return {
        "point": RewindPoint.capture(model, optimizer, step=state.step).as_dict(),
        "adapted": None if adapted is None else adapted.state_dict(),
        "masks": None if execution is None else execution.regime.state_dict(),
        "sparse": None if execution is None or execution.layers is None else execution.layers,
        "scaler": None if scaler is None else scaler.state_dict(),
        "loss": state.loss,
        "seen": state.seen,
        "seconds": state.seconds,
        "epochs": [asdict(epoch) for epoch in state.epochs],
        "best": state.best,
        "diverged": state.diverged,
        "first_loss": state.first_loss,
    }


def from_tree(
    tree: dict[str, Any],
    model: nn.Module,
    optimizer: Optimizer,
    execution: Execution | None,
    accelerated: Accelerator,
    adapted: Attached | None = None,
) -> TrainingState:
    """Restore what `to_tree` packed: into model, optimizer, masks, scaler and the global random states."""
    point = RewindPoint(**tree["point"])
    if execution is not None:
        execution.regime.load_state_dict(tree["masks"])
        if tree["sparse"] is not None:
            execution.sparse(tree["sparse"])  # whatever would be chosen now: the rest is to have the same bits
    point.restore(model, optimizer, random=True)
    if adapted is not None:
        adapted.load_state_dict(tree["adapted"])
    if accelerated.scaler is not None:
        accelerated.scaler.load_state_dict(tree["scaler"])
    device = accelerated.device
    best = tree["best"]
    return TrainingState(
        step=point.step,
        loss=tree["loss"].to(device),
        seen=tree["seen"],
        seconds=tree["seconds"],
        epochs=[Epoch(**epoch) for epoch in tree["epochs"]],
        best=None if best is None else (best[0], {name: value.to(device) for name, value in best[1].items()}),
        diverged=tree["diverged"],
        first_loss=tree["first_loss"],
    )
