"""The next token."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from experiments.data.examples import Batch, Data
from experiments.records.metrics import Metric, share
from experiments.tasks.task import Task, widened
from pruning.errors import DataError
from pruning.evidence import output_tensor

if TYPE_CHECKING:
    import torchmetrics

IGNORED = -100
"""A label that does not count, as PyTorch and transformers have it."""

PERPLEXITY = Metric("perplexity", higher_is_better=False, log=True)


@dataclass(kw_only=True)
class LanguageModelling(Task):
    """Cross-entropy of each token given those before it, by logits [n, tokens, vocabulary].

    The column `tokens` holds int64 [n, tokens]. A column `targets` of the same shape says which of them
    are predicted, with -100 where none is; without it, an `attention_mask`, 0 where there is padding; without both, all
    are. Means are over tokens, so that neither padding nor the batch size changes them.

    Attributes:
        tokens: the column.
    """

    targets: str = "labels"
    tokens: str = "input_ids"
    evaluation_batch: int = 16

    def described(self) -> tuple[Metric, ...]:
        """Perplexity, the exponential of the mean loss, and how often the likeliest token is right."""
        return (PERPLEXITY, share("token_accuracy"))

    def loss(self, outputs: Any, batch: Batch, training: bool = False) -> Tensor:
        """The sum over the tokens that count."""
        logits, labels = self.predictions(outputs, batch)
        return F.cross_entropy(widened(logits), labels, ignore_index=IGNORED, reduction="sum")

    def count(self, batch: Batch) -> Tensor:
        """The number of tokens that are predicted: the first of a sequence is not."""
        return (self.labels(batch)[:, 1:] != IGNORED).sum()

    def measures(self) -> dict[str, torchmetrics.Metric]:
        """Measures of torchmetrics."""
        return {"token_accuracy": token_accuracy()}

    def predictions(self, outputs: Any, batch: Batch) -> tuple[Tensor, ...]:
        """Logits [n · (tokens - 1), vocabulary], and what follows each, int64, -100 where it does not count."""
        return output_tensor(outputs)[:, :-1].flatten(0, 1), self.labels(batch)[:, 1:].flatten()

    def derived(self, loss: float) -> dict[str, float]:
        """exp(loss), infinite beyond what rows hold."""
        return {"perplexity": perplexity(loss)}

    def labels(self, batch: Batch) -> Tensor:
        """Token at each position that counts, -100 elsewhere: int64 [n, tokens]."""
        if self.targets in batch:
            labels: Tensor = batch[self.targets]
            return labels
        tokens: Tensor = batch[self.tokens]
        mask = batch.get("attention_mask")
        if mask is None:
            return tokens
        first = torch.cat([mask[:, :1] == 0, mask[:, :-1] == 0], 1)  # has only padding before it
        return tokens.masked_fill((mask == 0) | first, IGNORED)

    def check(self, data: Data, batch: Batch) -> None:
        """Token ids, and labels of the same shape."""
        check_tokens("language_modelling", batch, self.tokens, self.labels)
        if batch[self.tokens].shape[1] < 2:
            raise DataError("task=language_modelling: sequences of one token have none that follows: give longer ones")


def perplexity(loss: float) -> float:
    """exp(loss) of a mean loss a token; infinite above 1e99, and NaN of NaN."""
    return math.inf if loss > 99 * math.log(10) else math.exp(loss)


def check_tokens(task: str, batch: Batch, column: str, labels: Any) -> None:
    """Raise `DataError` where `column` of a batch is no int64 [n, tokens], or its labels have another shape."""
    tokens = batch.get(column)
    if not isinstance(tokens, Tensor):
        raise DataError(f"task={task}: no column {column} in the data; they have {', '.join(batch)}: set task.tokens")
    if tokens.dtype != torch.int64 or tokens.dim() != 2:
        raise DataError(
            f"task={task}: {column} are {tokens.dtype} {list(tokens.shape)}: give token ids, int64 [n, tokens]"
        )
    if labels(batch).shape != tokens.shape:
        raise DataError(f"task={task}: labels have shape {list(labels(batch).shape)}, tokens {list(tokens.shape)}")


def token_accuracy() -> torchmetrics.Metric:
    """A fresh measure of the share of labels, -100 aside, that have the largest logit."""
    from torchmetrics import MeanMetric  # noqa: PLC0415  # takes seconds

    class TokenAccuracy(MeanMetric):
        def update(self, logits: Tensor, labels: Tensor) -> None:  # type: ignore[override]  # of what `predictions` gives
            counted = labels != IGNORED
            super().update((logits[counted].argmax(-1) == labels[counted]).double())

    return TokenAccuracy().set_dtype(torch.float64)
