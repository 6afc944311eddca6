"""How far a training is, and all that the rest of it depends on: what a checkpoint holds."""

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from experiments.processes import all_reduce
from pruning.execution import Execution
from pruning.rewind import RewindPoint


@dataclass(frozen=True)
class Epoch:
    """What one epoch left: its number, learning rate at its end, mean training loss, validation, seconds."""

    number: int
    learning_rate: float
    loss: float
    validation_accuracy: float | None
    seconds: float


@dataclass
class Course:
    """Steps done, what the present epoch has summed so far, the epochs before, the best of them with its weights."""

    step: int
    loss: Tensor
    seen: int = 0
    seconds: float = 0.0
    epochs: list[Epoch] = field(default_factory=list)
    best: tuple[float, dict[str, Tensor]] | None = None

    def close(self, number: int, learning_rate: float, accuracy: float | None, model: nn.Module) -> Epoch:
        """End an epoch, with its validation accuracy if it was measured."""
        if accuracy is not None and (self.best is None or accuracy > self.best[0]):
            self.best = accuracy, {name: value.clone() for name, value in model.state_dict().items()}
        epoch = Epoch(number, learning_rate, float(all_reduce(self.loss)) / self.seen, accuracy, self.seconds)
        self.epochs.append(epoch)
        self.loss, self.seen, self.seconds = torch.zeros_like(self.loss), 0, 0.0
        return epoch


def saved(
    course: Course,
    model: nn.Module,
    optimizer: Optimizer,
    execution: Execution | None,
    accelerated: Accelerator,
) -> dict[str, Any]:
    """A training as plain data and tensors."""
    scaler = accelerated.scaler
    return {
        "point": RewindPoint.capture(model, optimizer, step=course.step).as_dict(),
        "masks": None if execution is None else execution.regime.state_dict(),
        "sparse": None if execution is None or execution.layers is None else execution.layers,
        "scaler": None if scaler is None else scaler.state_dict(),
        "loss": course.loss,
        "seen": course.seen,
        "seconds": course.seconds,
        "epochs": [asdict(epoch) for epoch in course.epochs],
        "best": course.best,
    }


def restored(
    tree: dict[str, Any],
    model: nn.Module,
    optimizer: Optimizer,
    execution: Execution | None,
    accelerated: Accelerator,
) -> Course:
    """`saved` undone: put back into model, optimizer, masks, scaler and the global random states."""
    point = RewindPoint(**tree["point"])
    if execution is not None:
        execution.regime.load_state_dict(tree["masks"])
        if tree["sparse"] is not None:
            execution.sparse(tree["sparse"])  # whatever would be chosen now: the rest is to have the same bits
    point.restore(model, optimizer, random=True)
    if accelerated.scaler is not None:
        accelerated.scaler.load_state_dict(tree["scaler"])
    device = accelerated.device
    best = tree["best"]
    return Course(
        step=point.step,
        loss=tree["loss"].to(device),
        seen=tree["seen"],
        seconds=tree["seconds"],
        epochs=[Epoch(**epoch) for epoch in tree["epochs"]],
        best=None if best is None else (best[0], {name: value.to(device) for name, value in best[1].items()}),
    )
