"""A sparse and a low-rank update of the same layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from experiments.adaptation.method import Attached
from experiments.adaptation.peft_layers import Tuned, imported, made
from experiments.adaptation.sparse import Sparse, SparseUpdate
from pruning import Masks
from pruning.adaptation import Budget, largest
from pruning.adaptation.budget import lora_count
from pruning.errors import ConfigurationError
from pruning.evidence import Scores


@dataclass(frozen=True, kw_only=True)
class SparseLowRank(Sparse):
    """(W + m ⊙ D) x + (alpha / rank) B A x (RoSA, Nikdan et al. 2024): what LoRA leaves of the budget is sparse.

    Attributes:
        low_rank: share of the budget for LoRA, whose rank is the largest within it.
        alpha: scale of LoRA, as a multiple of the rank.
    """

    low_rank: float = 0.5
    alpha: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.low_rank < 1:
            raise ConfigurationError(f"adaptation.low_rank={self.low_rank}: give a share of the budget, in (0, 1)")

    def choose(self, scores: Scores, masks: Masks | None) -> Masks:
        """The highest-scored weights within what LoRA leaves."""
        left = self._count(scores) - lora_count(scores, self._rank(scores))
        return self.chosen(scores, masks, Budget(left))

    def attach(self, model: nn.Module, masks: Masks | None, support: Masks | None = None) -> Attached:
        """Put A and B beside every linear layer that may be adapted, and train `support`."""
        assert support is not None
        peft = imported()
        dense = self.beside(model)
        adapted = {name: p for name, p in self.adapted(model).items() if p.dim() == 2}
        rank = self._rank(self.adapted(model))
        paths = [name.rpartition(".")[0] for name in adapted]
        config = peft.LoraConfig(r=rank, lora_alpha=self.alpha * rank, target_modules=paths)
        low = Tuned(model, masks, {}, made(peft.tuners.lora.LoraModel, model, config, self.seed))
        return _Attached(model, masks, dense, support, low)

    def _count(self, parameters: Mapping[str, Tensor]) -> int:
        count = self.size(parameters).count
        if count is None:
            raise ConfigurationError("adaptation.budget: a sparse and a low-rank update share weights: give no bytes")
        return count

    def _rank(self, parameters: Mapping[str, Tensor]) -> int:
        within = Budget(max(1, int(self.low_rank * self._count(parameters))))
        most = min(min(p.shape) for p in parameters.values() if p.dim() == 2)
        return largest(within, "rank 1 of its share", lambda rank: (lora_count(parameters, rank), None), most)


class _Attached(SparseUpdate):
    """The sparse update, with A and B among what it trains as a whole."""

    def __init__(
        self, model: nn.Module, masks: Masks | None, dense: dict[str, nn.Parameter], support: Masks, low: Tuned
    ):
        super().__init__(model, masks, {**dense, **low.own()}, support)
        self.dense, self._low = dense, low

    def own(self) -> dict[str, nn.Parameter]:
        return {**super().own(), **self._low.own()}

    def follow(self, optimizer: Optimizer) -> None:
        self.tuning.follow(optimizer)

    def finish(self) -> nn.Module:
        super().finish()
        self._low.masks = self.masks
        model = self._low.finish()
        self.masks = self._low.masks
        return model

    @torch.no_grad()
    def save(self, path: object) -> None:
        Attached.save(self, path)  # type: ignore[arg-type]
