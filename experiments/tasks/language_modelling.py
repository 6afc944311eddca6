"""The next token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from experiments.data.examples import Batch, Data
from experiments.tasks.tokens import IGNORED, TokenPrediction
from pruning.errors import DataError
from pruning.evidence import output_tensor


@dataclass(kw_only=True)
class LanguageModelling(TokenPrediction):
    """Cross-entropy of each token given those before it, by logits [n, tokens, vocabulary].

    The column `tokens` holds int64 [n, tokens]. A column `targets` of the same shape says which of them
    are predicted, with -100 where none is; without it, an `attention_mask`, 0 where there is padding; without both, all
    are.
    """

    def count(self, batch: Batch) -> Tensor:
        """The number of tokens that are predicted: the first of a sequence is not."""
        return (self.labels(batch)[:, 1:] != IGNORED).sum()

    def predictions(self, outputs: Any, batch: Batch) -> tuple[Tensor, ...]:
        """Logits [n · (tokens - 1), vocabulary], and what follows each, int64, -100 where it does not count."""
        return output_tensor(outputs)[:, :-1].flatten(0, 1), self.labels(batch)[:, 1:].flatten()

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
        self.check_tokens("language_modelling", batch)
        if batch[self.tokens].shape[1] < 2:
            raise DataError("task=language_modelling: sequences of one token have none that follows: give longer ones")
