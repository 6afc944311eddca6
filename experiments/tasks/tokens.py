"""What tasks that predict tokens have in common: the cross-entropy of labels, perplexity and token accuracy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from experiments.data.examples import Batch
from experiments.records.metrics import Metric, share
from experiments.tasks.task import Task, widened
from pruning.errors import DataError

if TYPE_CHECKING:
    import torchmetrics

IGNORED = -100
"""A label that does not count, as PyTorch and transformers have it."""


@dataclass(kw_only=True)
class TokenPrediction(Task):
    """Base of tasks that predict tokens: a subclass defines `predictions`, `labels` and `count`.

    Means are over tokens, so that neither padding nor the batch size changes them.

    Attributes:
        tokens: the column of ids, int64 [n, tokens].
        targets: the column of labels, of the same shape, -100 where none is predicted; it need not be there.
    """

    targets: str = "labels"
    tokens: str = "input_ids"
    evaluation_batch: int = 16

    def labels(self, batch: Batch) -> Tensor:
        """Token at each position that counts, -100 elsewhere: int64 [n, tokens]."""
        raise NotImplementedError

    def described(self) -> tuple[Metric, ...]:
        """Perplexity, the exponential of the mean loss, and how often the likeliest token is right."""
        return (Metric("perplexity", higher_is_better=False, log=True), share("token_accuracy"))

    def loss(self, outputs: Any, batch: Batch, training: bool = False) -> Tensor:
        """The sum over the tokens that count."""
        logits, labels = self.predictions(outputs, batch)
        logits, labels = logits.reshape(-1, logits.shape[-1]), labels.reshape(-1)
        return F.cross_entropy(widened(logits), labels, ignore_index=IGNORED, reduction="sum")

    def measures(self) -> dict[str, torchmetrics.Metric]:
        """Measures of torchmetrics."""
        return {"token_accuracy": _token_accuracy()}

    def derived(self, loss: float) -> dict[str, float]:
        """exp(loss) of the mean loss of a token; infinite above 1e99, beyond what rows hold, and NaN of NaN."""
        return {"perplexity": math.inf if loss > 99 * math.log(10) else math.exp(loss)}

    def check_tokens(self, name: str, batch: Batch) -> None:
        """Raise `DataError` where the ids of a batch are not int64 [n, tokens], or its labels have another shape."""
        tokens = batch.get(self.tokens)
        if not isinstance(tokens, Tensor):
            have = ", ".join(batch)
            raise DataError(f"task={name}: no column {self.tokens} in the data; they have {have}: set task.tokens")
        if tokens.dtype != torch.int64 or tokens.dim() != 2:
            raise DataError(
                f"task={name}: {self.tokens} are {tokens.dtype} {list(tokens.shape)}: give token ids, int64 [n, tokens]"
            )
        labels = self.labels(batch)
        if labels.shape != tokens.shape:
            raise DataError(f"task={name}: labels have shape {list(labels.shape)}, tokens {list(tokens.shape)}")


def _token_accuracy() -> torchmetrics.Metric:
    """A fresh measure of the share of labels, -100 aside, that have the largest logit."""
    from torchmetrics import MeanMetric  # noqa: PLC0415  # takes seconds

    class TokenAccuracy(MeanMetric):
        def update(self, logits: Tensor, labels: Tensor) -> None:  # type: ignore[override]  # of what `predictions` gives
            counted = labels != IGNORED
            super().update((logits[counted].argmax(-1) == labels[counted]).double())

    return TokenAccuracy().set_dtype(torch.float64)
