"""LoRA and its kin: low-rank updates of linear layers, from peft."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor, nn

from experiments.adaptation.four_bits import BY, quantised
from experiments.adaptation.method import Attached, Method
from experiments.adaptation.peft_layers import Tuned, any_of, exact, imported, linear_layers, made
from pruning import Masks
from pruning.adaptation import largest
from pruning.adaptation.budget import lora_count
from pruning.errors import AdaptationError, ConfigurationError

ZEROS = ("keep", "fill")


@dataclass(frozen=True, kw_only=True)
class LowRank(Method):
    """h + (alpha / rank) B A x in every linear layer that may be adapted (LoRA, Hu et al. 2022).

    The rank is the largest within the budget.

    Attributes:
        alpha: scale, as a multiple of the rank.
        rslora: alpha / √rank instead of alpha / rank (Kalajdzievski 2023).
        dora: magnitude and direction of W + B A apart (Liu et al. 2024).
        ranks: ranks of layers by globs of their paths, in the place of the budget's, which counts them.
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
        if not 0 <= self.dropout < 1:
            raise ConfigurationError(f"adaptation.dropout={self.dropout}: give a share in [0, 1)")
        if any(not isinstance(rank, int) or isinstance(rank, bool) or rank < 1 for rank in (self.ranks or {}).values()):
            raise ConfigurationError(f"adaptation.ranks={dict(self.ranks or {})}: give whole numbers, at least 1")
        if self.dora and self.four_bits:
            raise ConfigurationError("adaptation.dora: needs norms of weights that four bits hold: unset one of them")

    def attach(self, model: nn.Module, masks: Masks | None, support: Masks | None = None) -> Attached:
        """Put A and B beside every linear layer that may be adapted."""
        peft = imported()
        dense, adapted = self.whole(model), self.adapted(model)
        within, layers = self.size(adapted), linear_layers(model, adapted)
        for glob in self.ranks or {}:
            if not any(fnmatchcase(path, glob) for path in layers):
                raise AdaptationError(f"adaptation.ranks: {glob} matches no linear layer; they are {', '.join(layers)}")
        most = max(min(weight.shape) for weight in layers.values())
        rank = largest(within, "rank 1", lambda r: (self._count(layers, r), None), most)
        patterns = {exact(path): found for path, found in self._ranks(layers, rank).items() if found != rank}
        config = peft.LoraConfig(
            r=rank,
            lora_alpha=self.alpha * rank,
            use_rslora=self.rslora,
            use_dora=self.dora,
            rank_pattern=patterns,
            alpha_pattern={path: self.alpha * found for path, found in patterns.items()},
            lora_dropout=self.dropout,
            target_modules=any_of(layers),
        )
        required = {parameter: parameter.requires_grad for parameter in model.parameters()}
        whole = quantised(model, [f"{path}.weight" for path in layers], self.by) if self.four_bits else {}
        tuner = made(peft.tuners.lora.LoraModel, model, config, self.seed)
        return Tuned(model, masks, dense, tuner, required, whole, self.zeros == "keep")

    def _ranks(self, layers: Mapping[str, Tensor], rank: int) -> dict[str, int]:
        """The rank of every layer: that of the first glob in `ranks` that its path matches, or `rank`."""
        given = dict(self.ranks or {})
        return {
            path: next((found for glob, found in given.items() if fnmatchcase(path, glob)), rank) for path in layers
        }

    def _count(self, layers: Mapping[str, Tensor], rank: int) -> int:
        ranks = self._ranks(layers, rank)
        magnitudes = sum(weight.shape[0] for weight in layers.values()) if self.dora else 0
        return sum(lora_count({path: weight}, ranks[path]) for path, weight in layers.items()) + magnitudes
