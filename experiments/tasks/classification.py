"""One class an example."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from experiments.data.examples import Batch, Data, rows_of
from experiments.records.metrics import Metric, share
from experiments.tasks.task import Task, targets_of, widened
from pruning.errors import ConfigurationError, DataError, ModelError
from pruning.evidence import output_tensor

if TYPE_CHECKING:
    import torchmetrics

_NO_CLASS = -(2**31)


@dataclass(kw_only=True)
class Classification(Task):
    """Cross-entropy and accuracy of class indices, int64 [n] in the column `targets`, by logits [n, classes].

    Attributes:
        classes: how many there are, from 2.
        weights: of each class in the loss, which is then a weighted mean; None: 1 each. Accuracy is not weighted.
        label_smoothing: in [0, 1), in training alone. Szegedy et al. 2016, section 7.
        top: also accuracies of the target among the k largest logits, for each k above 1: "top5_accuracy".
    """

    classes: int
    weights: Sequence[float] | None = None
    label_smoothing: float = 0.0
    top: Sequence[int] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.classes < 2:
            raise ConfigurationError(f"task.classes={self.classes}: give at least 2")
        if not 0.0 <= self.label_smoothing < 1.0:
            raise ConfigurationError(f"task.label_smoothing={self.label_smoothing}: give one in [0, 1)")
        if any(not 1 < k <= self.classes for k in self.top):
            raise ConfigurationError(f"task.top={list(self.top)}: give numbers from 2 to {self.classes}")
        weights = self.weights
        if weights is not None and (len(weights) != self.classes or min(weights) < 0 or not sum(weights) > 0):
            raise ConfigurationError(
                f"task.weights={list(weights)}: give {self.classes} numbers, none below 0 and not all 0"
            )

    def described(self) -> tuple[Metric, ...]:
        """Accuracy, and those of `top`."""
        others = (share(f"top{k}_accuracy", chance=k / self.classes) for k in self.top)
        return (share("accuracy", chance=1 / self.classes), *others)

    def loss(self, outputs: Any, batch: Batch, training: bool = False) -> Tensor:
        """The sum of the cross-entropies, times the weights of the classes."""
        logits, targets = widened(output_tensor(outputs)), batch[self.targets]
        if logits.shape[1:] != (self.classes,):
            raise ModelError(f"gives {list(logits.shape[1:])} logits an example for {self.classes} classes")
        smoothing = self.label_smoothing if training else 0.0
        try:
            return F.cross_entropy(
                logits,
                targets,
                self._weights(logits),
                ignore_index=_NO_CLASS,  # its default, -100, would leave examples out without a word
                reduction="sum",
                label_smoothing=smoothing,
            )
        except IndexError as error:
            raise DataError(f"task=classification: {error} There are {self.classes} classes, from 0") from error

    def count(self, batch: Batch) -> float | Tensor:
        """The examples, or the sum of the weights of their classes."""
        if self.weights is None:
            return rows_of(batch)
        targets: Tensor = batch[self.targets]
        weights = torch.as_tensor(self.weights, dtype=torch.float64, device=targets.device)
        return weights[targets].sum()

    def measures(self) -> dict[str, torchmetrics.Metric]:
        """Measures of torchmetrics, over all examples together."""
        from torchmetrics.classification import MulticlassAccuracy  # noqa: PLC0415  # takes seconds

        found = {"accuracy": 1} | {f"top{k}_accuracy": k for k in self.top}
        return {
            name: MulticlassAccuracy(self.classes, top_k=k, average="micro", validate_args=False)
            for name, k in found.items()
        }

    def measured(self, outputs: Any, batch: Batch) -> tuple[Tensor, ...]:
        """Probabilities [n, classes], and targets."""
        return widened(output_tensor(outputs)).softmax(1), batch[self.targets]

    def answers(self, outputs: Any, batch: Batch) -> tuple[Tensor, Tensor, Tensor] | None:
        """The most probable classes, their probabilities, and targets."""
        confidences, answers = widened(output_tensor(outputs)).softmax(1).max(1)
        return answers, confidences, batch[self.targets]

    def check(self, data: Data, batch: Batch) -> None:
        """Class indices from 0, in all examples that are in memory."""
        targets = targets_of("classification", self, data, batch)
        if targets.dtype != torch.int64 or targets.dim() != 1:
            other = "regression" if targets.is_floating_point() and targets.dim() == 1 else "multilabel"
            also = f", or set task={other}" if targets.is_floating_point() or targets.dim() != 1 else ""
            raise DataError(
                f"task=classification: {self.targets} are {targets.dtype} {list(targets.shape)}, not class indices: "
                f"give int64 [n]{also}"
            )
        outside = (targets < 0) | (targets >= self.classes)
        if outside.any():
            first = int(outside.nonzero()[0])
            raise DataError(
                f"task=classification: {int(outside.sum())} of {len(targets)} examples are of no class from 0 to "
                f"{self.classes - 1}, as example {first}, which is of class {int(targets[first])}: set "
                "data.classes, or task.classes"
            )

    def _weights(self, like: Tensor) -> Any:
        return None if self.weights is None else torch.as_tensor(self.weights, dtype=like.dtype, device=like.device)
