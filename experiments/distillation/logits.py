"""Distillation of outputs: Hinton et al. 2015, "Distilling the knowledge in a neural network"."""

from __future__ import annotations

from dataclasses import dataclass
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from experiments.data.examples import Batch
from experiments.distillation.loss import DistillationLoss
from experiments.distillation.passes import Pass
from experiments.tasks import Classification, Multilabel, Regression, Task
from experiments.tasks.task import widened
from experiments.tasks.tokens import IGNORED, TokenPrediction
from pruning.errors import ConfigurationError, ModelError
from pruning.evidence import output_tensor


@dataclass(frozen=True, kw_only=True)
class Logits(DistillationLoss):
    """T²·KL(teacher ‖ student) of the distributions that outputs stand for, softened by T; see `divergence`.

    Attributes:
        temperature: T, above 0. T² keeps the size of gradients: they become those of squared differences of logits,
            centred and divided by the number of classes, as T grows.
    """

    temperature: float = 4.0

    def __post_init__(self) -> None:
        if isinstance(self.temperature, bool) or not self.temperature > 0:
            raise ConfigurationError(f"distillation.temperature={self.temperature}: give a number above 0")

    def __call__(self, student: Pass, teacher: Pass, task: Task, batch: Batch) -> Tensor:
        """The sum over examples, or tokens, that count, each as often as in the task's loss."""
        own, given = output_tensor(student.outputs), output_tensor(teacher.outputs)
        if own.shape != given.shape:
            raise ModelError(
                f"distillation.teacher: gives outputs {list(given.shape[1:])} an example, the student "
                f"{list(own.shape[1:])}: choose a teacher of the same task"
            )
        return divergence(task, own, given, batch, self.temperature)

    @property
    def outputs_alone(self) -> bool:
        """Logits are all that is compared."""
        return True


@singledispatch
def divergence(task: Task, student: Tensor, teacher: Tensor, batch: Batch, temperature: float) -> Tensor:
    """The sum over all that counts of T²·KL(teacher ‖ student), in nats, given outputs of both for `batch`.

    A task that is none of ours, nor a subclass, has a method `divergence` with the same arguments.
    """
    own: Any = getattr(task, "divergence", None)
    if own is None:
        raise ConfigurationError(
            f"distillation=logits: task={type(task).__name__} does not say how far its outputs are from a teacher's: "
            "define divergence(self, student, teacher, batch, temperature), or choose distillation=hidden"
        )
    found: Tensor = own(student, teacher, batch, temperature)
    return found


@divergence.register
def _(task: Classification, student: Tensor, teacher: Tensor, batch: Batch, temperature: float) -> Tensor:
    """Of the classes of each example, times the weight of its own class."""
    each = _categorical(student, teacher, temperature)
    if task.weights is None:
        return each.sum()
    weights = torch.as_tensor(task.weights, dtype=each.dtype, device=each.device)
    return (each * weights[batch[task.targets]]).sum()


@divergence.register
def _(task: TokenPrediction, student: Tensor, teacher: Tensor, batch: Batch, temperature: float) -> Tensor:
    """Of the tokens at each position that counts."""
    own, labels = task.predictions(student, batch)
    given, _ = task.predictions(teacher, batch)
    counted = labels != IGNORED
    return _categorical(own[counted], given[counted], temperature).sum()


@divergence.register
def _(task: Multilabel, student: Tensor, teacher: Tensor, batch: Batch, temperature: float) -> Tensor:
    """Of each label, which is there or not. `positive_weights` are in the teacher's probabilities already."""
    own, given = widened(student) / temperature, widened(teacher) / temperature
    likely = given.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(given, likely, reduction="sum")
    return temperature**2 * (F.binary_cross_entropy_with_logits(own, likely, reduction="sum") - entropy)


@divergence.register
def _(task: Regression, student: Tensor, teacher: Tensor, batch: Batch, temperature: float) -> Tensor:
    """Numbers have no temperature: the task's own loss, with the teacher's outputs as targets."""
    if temperature != 1:
        raise ConfigurationError(
            f"distillation.temperature={temperature}: outputs of task=regression are no logits: set it to 1"
        )
    return task.loss(student, batch | {task.targets: teacher}, training=True)


def _categorical(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T²·KL(teacher ‖ student) of logits [n, classes], [n]."""
    own = F.log_softmax(widened(student) / temperature, dim=-1)
    given = F.log_softmax(widened(teacher) / temperature, dim=-1)
    return temperature**2 * F.kl_div(own, given, reduction="none", log_target=True).sum(-1)
