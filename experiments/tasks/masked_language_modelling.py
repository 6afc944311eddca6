"""Tokens that are hidden."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from experiments.data.examples import Batch, Data, rows_of
from experiments.tasks.tokens import IGNORED, TokenPrediction
from pruning.errors import ConfigurationError
from pruning.evidence import output_tensor
from pruning.inputs import Inputs

_NOISE = "masking noise"
"""A column that training adds, so that every epoch hides other tokens."""

_ODD = (-7046029254386353131, -4658895280553007687, -7723592293110705685)
"""Odd numbers of 64 bits: Steele et al. 2014, "Fast splittable pseudorandom number generators"."""


@dataclass(kw_only=True)
class MaskedLanguageModelling(TokenPrediction):
    """Cross-entropy of tokens that are hidden, by logits [n, tokens, vocabulary]. Devlin et al. 2019, section 3.1.

    A share of the tokens is chosen; of these 80 % become the mask token, 10 % a random one, 10 % stay. In training the
    choice is another one in every epoch; elsewhere it is a function of the sequence alone, however data are cut.

    Attributes:
        vocabulary: how many tokens there are.
        mask_token: the id of the mask token.
        share: of the tokens that are chosen, in (0, 1).
        special: ids that are never chosen, as those of padding, beginning and end.
    """

    vocabulary: int
    mask_token: int
    share: float = 0.15
    special: Sequence[int] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.share < 1.0 or not 0 <= self.mask_token < self.vocabulary:
            raise ConfigurationError(
                f"task.share={self.share}, task.mask_token={self.mask_token}: give a share in (0, 1), and a token "
                f"below {self.vocabulary}"
            )

    def inputs(self, batch: Batch) -> Inputs:
        """The batch with hidden tokens."""
        hidden, _ = self._hidden(batch)
        shown = {name: column for name, column in batch.items() if name != _NOISE}
        return super().inputs(shown | {self.tokens: hidden})

    def count(self, batch: Batch) -> Tensor:
        """The tokens that were chosen."""
        return (self.labels(batch) != IGNORED).sum()

    def predictions(self, outputs: Any, batch: Batch) -> tuple[Tensor, ...]:
        """Logits [n · tokens, vocabulary], and the token that was there, int64, -100 where none was chosen."""
        return output_tensor(outputs).flatten(0, 1), self.labels(batch).flatten()

    def labels(self, batch: Batch) -> Tensor:
        """Token that was there, at each position that was chosen, -100 elsewhere: int64 [n, tokens]."""
        return self._hidden(batch)[1]

    def augment(self, batch: Batch, generator: torch.Generator) -> Batch:
        """The batch with random numbers that hide other tokens in every epoch."""
        drawn = torch.randint(2**62, (rows_of(batch),), generator=generator)
        return batch | {_NOISE: drawn.to(batch[self.tokens].device)}

    def check(self, data: Data, batch: Batch) -> None:
        """Token ids."""
        self.check_tokens("masked_language_modelling", batch)

    def _hidden(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Tokens as the model sees them, and labels: -100 where none was chosen."""
        if self.targets in batch:  # somebody has hidden them already
            return batch[self.tokens], batch[self.targets]
        tokens: Tensor = batch[self.tokens]
        places = torch.arange(1, tokens.shape[1] + 1, device=tokens.device)
        real = batch["attention_mask"] != 0 if "attention_mask" in batch else torch.ones_like(tokens, dtype=torch.bool)
        sequence = (_mixed(tokens + places * _ODD[0]) * real).sum(1)  # wraps around; padding counts for nothing
        sequence = sequence + batch[_NOISE] if _NOISE in batch else sequence
        drawn = _mixed(sequence[:, None] + places * _ODD[1])
        uniform = (drawn >> 11 & (1 << 53) - 1).double() * 2.0**-53
        for token in self.special:
            real = real & (tokens != token)
        chosen = real & (uniform < self.share)
        kind = uniform / self.share  # uniform in [0, 1) where chosen
        other = (_mixed(drawn) >> 1 & (1 << 62) - 1) % self.vocabulary
        shown = torch.where(chosen & (kind < 0.8), torch.full_like(tokens, self.mask_token), tokens)
        shown = torch.where(chosen & (kind >= 0.9), other, shown)
        return shown, tokens.masked_fill(~chosen, IGNORED)


def _mixed(keys: Tensor) -> Tensor:
    """Scramble all 64 bits of int64 keys (the finaliser of SplitMix64)."""
    keys = (keys ^ (keys >> 30 & (1 << 34) - 1)) * _ODD[1]
    keys = (keys ^ (keys >> 27 & (1 << 37) - 1)) * _ODD[2]
    return keys ^ (keys >> 31 & (1 << 33) - 1)
