"""The base of distillation losses, and what an example counts in them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from experiments.data.examples import Batch, chunks, rows_of
from experiments.distillation.passes import Pass
from experiments.tasks import Classification, Task


@dataclass(frozen=True, kw_only=True)
class DistillationLoss(ABC):
    """How far a student is from its teacher. A subclass says what it compares, and how far that is."""

    @abstractmethod
    def __call__(self, student: Pass, teacher: Pass, task: Task, batch: Batch) -> Tensor:
        """The SUM over all that counts in `batch`, a tensor of one element: its mean is by `task.count`."""

    def check(self, student: Pass) -> None:  # noqa: B027  # most have nothing to check
        """Raise `ModelError` for what a pass of the student in train mode shows that it cannot compare."""

    def modules(self, student: nn.Module) -> tuple[str, ...]:
        """Names of the modules, of student and teacher, whose outputs are compared."""
        return ()

    @property
    def attends(self) -> bool:
        """Whether attention is compared."""
        return False

    @property
    def outputs_alone(self) -> bool:
        """Whether the tensor of the teacher's outputs is all it needs of it: then they may be computed once."""
        return False


def example_counts(task: Task, batch: Batch) -> Tensor:
    """What each example counts in the task's mean loss, float32 [n] on the CPU; the sum is `task.count(batch)`."""
    count = rows_of(batch)
    plain = isinstance(task, Classification) and type(task).count is Classification.count and task.weights is None
    if plain or type(task).count is Task.count:
        return torch.ones(count)
    return torch.tensor([float(task.count(one)) for one in chunks(batch, count)])


def example_mean(values: Tensor, batch: Batch) -> Tensor:
    """The mean of `values` [n, …] of each example, [n]; where its second dimension is that of `attention_mask`, without
    padded positions.
    """
    mask = padding(values, batch)
    if mask is None:
        return values.flatten(1).mean(1)
    return (values.flatten(2).mean(2) * mask).sum(1) / mask.sum(1).clamp_min(1)


def padding(values: Tensor, batch: Batch) -> Tensor | None:
    """1 for each position of `values` [n, positions, …] that is no padding, 0 for others; None where none is."""
    mask = batch.get("attention_mask")
    if not isinstance(mask, Tensor) or values.dim() < 3 or values.shape[:2] != mask.shape:
        return None
    return (mask != 0).to(values.dtype)
