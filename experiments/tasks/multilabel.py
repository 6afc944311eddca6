"""Any number of labels an example."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from experiments.data.examples import Batch, Data
from experiments.records.metrics import Metric, share
from experiments.tasks.task import Task, targets_of, widened
from pruning.errors import ConfigurationError, DataError
from pruning.evidence import output_tensor

if TYPE_CHECKING:
    import torchmetrics


@dataclass(kw_only=True)
class Multilabel(Task):
    """Binary cross-entropy of labels, 0 or 1 [n, labels] in the column `targets`, by logits of the same shape.

    Attributes:
        labels: how many there are.
        positive_weights: weight in the loss of the positive examples of each label; None: 1 each.
    """

    labels: int
    positive_weights: Sequence[float] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        weights = self.positive_weights
        if self.labels < 1 or (weights is not None and (len(weights) != self.labels or min(weights) <= 0)):
            raise ConfigurationError(
                f"task.labels={self.labels}, task.positive_weights={weights}: give at least 1 label, and as many "
                "weights above 0"
            )

    def described(self) -> tuple[Metric, ...]:
        """F1 over all labels and examples together (micro), averaged over labels (macro), and exact matches."""
        return (share("f1"), share("f1_macro"), share("exact_match"))

    def loss(self, outputs: Any, batch: Batch, training: bool = False) -> Tensor:
        """The sum over examples and labels."""
        logits = widened(output_tensor(outputs))
        weights = self.positive_weights
        positive = None if weights is None else torch.as_tensor(weights, dtype=logits.dtype, device=logits.device)
        targets = batch[self.targets].to(logits.dtype)
        return F.binary_cross_entropy_with_logits(logits, targets, pos_weight=positive, reduction="sum")

    def count(self, batch: Batch) -> float:
        """Examples times labels."""
        targets: Tensor = batch[self.targets]
        return targets.numel()

    def measures(self) -> dict[str, torchmetrics.Metric]:
        """Measures of torchmetrics, at a probability of one half."""
        from torchmetrics.classification import MultilabelExactMatch, MultilabelF1Score  # noqa: PLC0415  # seconds

        return {
            "f1": MultilabelF1Score(self.labels, average="micro", validate_args=False),
            "f1_macro": MultilabelF1Score(self.labels, average="macro", validate_args=False),
            "exact_match": MultilabelExactMatch(self.labels, validate_args=False),
        }

    def predictions(self, outputs: Any, batch: Batch) -> tuple[Tensor, ...]:
        """1 where the logit is above 0, and targets, both int64 [n, labels]."""
        return (output_tensor(outputs) > 0).long(), batch[self.targets].long()

    def measured(self, outputs: Any, batch: Batch) -> tuple[Tensor, ...]:
        """Probabilities, and targets, int64, both [n, labels]."""
        return widened(output_tensor(outputs)).sigmoid(), batch[self.targets].long()

    def check(self, data: Data, batch: Batch) -> None:
        """Zeros and ones, in all examples that are in memory."""
        targets = targets_of("multilabel", self, data, batch)
        if targets.dim() != 2 or targets.shape[1] != self.labels or not bool(((targets == 0) | (targets == 1)).all()):
            raise DataError(
                f"task=multilabel: {self.targets} are {targets.dtype} {list(targets.shape)}: give zeros and ones, [n, "
                f"{self.labels}]"
            )
