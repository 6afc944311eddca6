"""A sparse and a low-rank update of the same layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from experiments.adaptation.method import Attached
from experiments.adaptation.peft_layers import Tuned, any_of, imported, linear_layers, made
from experiments.adaptation.sparse import Sparse, SparseUpdate
from pruning import Masks
from pruning.adaptation import Budget, Delta, largest
from pruning.adaptation.budget import lora_count
from pruning.errors import AdaptationError, ConfigurationError
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
        dense, adapted = self.whole(model), self.adapted(model)
        layers, rank = linear_layers(model, adapted), self._rank(adapted)
        config = peft.LoraConfig(r=rank, lora_alpha=self.alpha * rank, target_modules=any_of(layers))
        required = {parameter: parameter.requires_grad for parameter in model.parameters()}
        low = Tuned(model, masks, {}, made(peft.tuners.lora.LoraModel, model, config, self.seed), required)
        return _Attached(model, masks, dense, support, low)

    def _count(self, parameters: Mapping[str, Tensor]) -> int:
        count = self.size(parameters).count
        if count is None:
            raise ConfigurationError("adaptation.budget: a sparse and a low-rank update share weights: give no bytes")
        return count

    def _rank(self, parameters: Mapping[str, Tensor]) -> int:
        matrices = [tuple(parameter.shape) for parameter in parameters.values() if parameter.dim() == 2]
        if not matrices:
            raise AdaptationError("adaptation=sparse_lora: no matrix may be adapted: give adaptation.include, exclude")
        within = Budget(max(1, int(self.low_rank * self._count(parameters))))
        most = max(min(shape) for shape in matrices)
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

    def save(self, path: Path) -> None:
        """The delta, with A and B as what is replaced as a whole."""
        dense = {name: parameter.detach().clone() for name, parameter in self._low.own().items()}
        Delta(self.tuning.delta().changes, dense).save(path)

    def finish(self) -> nn.Module:
        super().finish()
        self._low.masks = self.masks
        model = self._low.finish()
        self.masks = self._low.masks
        return model
