"""LoRA and its kin: low-rank updates of linear layers, from peft."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from experiments.adaptation.four_bits import BY, quantised
from experiments.adaptation.method import Attached, Method
from experiments.adaptation.peft_layers import Tuned, imported, made
from pruning import Masks
from pruning.adaptation import largest
from pruning.adaptation.budget import lora_count
from pruning.errors import ConfigurationError

ZEROS = ("keep", "fill")


@dataclass(frozen=True, kw_only=True)
class LowRank(Method):
    """h + (alpha / rank) B A x in every linear layer that may be adapted (LoRA, Hu et al. 2022).

    The rank is the largest within the budget.

    Attributes:
        alpha: scale, as a multiple of the rank.
        rslora: alpha / √rank instead of alpha / rank (Kalajdzievski 2023).
        dora: magnitude and direction of W + B A apart (Liu et al. 2024).
        ranks: ranks of layers by patterns of their names, in the place of the budget's; peft's rank_pattern.
        dropout: of what enters A.
        four_bits: hold the adapted weights in four bits (QLoRA, Dettmers et al. 2023); it is not merged then.
        by: whose four bits: `here`, or `bitsandbytes`.
        zeros: whether merging into a pruned network keeps its zeros (ΔW ⊙ mask), which is another network than the one
            that was trained, or fills them.
    """

    alpha: float = 2.0
    rslora: bool = False
    dora: bool = False
    ranks: Mapping[str, int] | None = None
    dropout: float = 0.0
    four_bits: bool = False
    by: str = "here"
    zeros: str = "keep"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.zeros not in ZEROS:
            raise ConfigurationError(f"adaptation.zeros={self.zeros}: choose {' or '.join(ZEROS)}")
        if self.by not in BY:
            raise ConfigurationError(f"adaptation.by={self.by}: choose {' or '.join(BY)}")
        if self.dora and self.four_bits:
            raise ConfigurationError("adaptation.dora: needs norms of weights that four bits hold: unset one of them")

    def attach(self, model: nn.Module, masks: Masks | None, support: Masks | None = None) -> Attached:
        """Put A and B beside every linear layer that may be adapted."""
        peft = imported()
        dense = self.beside(model)
        adapted = {name: p for name, p in self.adapted(model).items() if p.dim() == 2}
        rank = largest(self.size(adapted), "rank 1", lambda r: (self._count(adapted, r), None), _most(adapted))
        paths = [name.rpartition(".")[0] for name in adapted]
        config = peft.LoraConfig(
            r=rank,
            lora_alpha=self.alpha * rank,
            use_rslora=self.rslora,
            use_dora=self.dora,
            rank_pattern=dict(self.ranks or {}),
            lora_dropout=self.dropout,
            target_modules=paths,
        )
        whole = quantised(model, list(adapted), self.by) if self.four_bits else {}
        attached = Tuned(model, masks, dense, made(peft.tuners.lora.LoraModel, model, config, self.seed))
        attached.whole, attached.keep = whole, self.zeros == "keep"
        return attached

    def _count(self, adapted: Mapping[str, Tensor], rank: int) -> int:
        magnitudes = sum(p.shape[0] for p in adapted.values()) if self.dora else 0
        return lora_count(adapted, rank) + magnitudes


def _most(adapted: Mapping[str, Tensor]) -> int:
    """The largest rank that is one for every matrix."""
    return min((min(p.shape) for p in adapted.values()), default=1)
