"""The rest of a text: one right answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from experiments.data.examples import Batch, Data
from experiments.records.metrics import Metric, share
from experiments.tasks.language_modelling import LanguageModelling
from experiments.tasks.tokens import IGNORED
from pruning.errors import DataError
from pruning.evidence import output_tensor

if TYPE_CHECKING:
    import torchmetrics


@dataclass(kw_only=True)
class Completion(LanguageModelling):
    """Cross-entropy of the tokens of an answer, and how often greedy decoding gives it whole.

    The column `targets`, int64 [n, tokens], has the answer's tokens at their own positions, its end among them, and
    -100 elsewhere. Decoding need not run: it is right exactly where each token of the answer is the likeliest after
    those before it.
    """

    def described(self) -> tuple[Metric, ...]:
        """Exact match, then those of tokens."""
        return (share("exact_match"), *super().described())

    def measures(self) -> dict[str, torchmetrics.Metric]:
        """Measures of torchmetrics."""
        return super().measures() | {"exact_match": _exact_match()}

    def predictions(self, outputs: Any, batch: Batch) -> tuple[Tensor, ...]:
        """Logits [n, tokens - 1, vocabulary], and what follows each, int64 [n, tokens - 1], -100 where it does not
        count.
        """
        return output_tensor(outputs)[:, :-1], self.labels(batch)[:, 1:]

    def check(self, data: Data, batch: Batch) -> None:
        """Labels, int64 [n, tokens], at least one an example and none at the first token."""
        labels = batch.get(self.targets)
        if not isinstance(labels, Tensor) or labels.dtype != torch.int64 or labels.dim() != 2:
            raise DataError(f"task=completion: no column {self.targets}, int64 [n, tokens]: give the answers' tokens")
        if bool((labels[:, 0] != IGNORED).any()):
            raise DataError(f"task=completion: {self.targets} has a first token, before which there is none: give -100")
        if not bool((labels[:, 1:] != IGNORED).any(1).all()):
            raise DataError(f"task=completion: {self.targets} of an example are all -100: give every example an answer")


def _exact_match() -> torchmetrics.Metric:
    """A fresh measure of the share of examples of which every label, -100 aside, has the largest logit."""
    from torchmetrics import MeanMetric  # noqa: PLC0415  # takes seconds

    class ExactMatch(MeanMetric):
        def update(self, logits: Tensor, labels: Tensor) -> None:  # type: ignore[override]  # of what `predictions` gives
            right = (logits.argmax(-1) == labels) | (labels == IGNORED)
            super().update(right.all(1).double())

    return ExactMatch().set_dtype(torch.float64)
