"""Depth: whole residual blocks as units. Without its parameters a block gives back what it was given."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from pruning.errors import GranularityError
from pruning.granularity import Pooled, Units


@dataclass(frozen=True)
class Depth:
    """One unit a block, with all its parameters: the granularity of depth pruning.

    For any scorer; `block_influence` gives scores of whole blocks.

    Attributes:
        model: the one that is scored, whose parameters have the names of the scores.
        blocks: names of modules, as `find_blocks` gives them.
        pooling: how a block's score is made of those of all its weights: their "mean" or "sum".
        minimum: how many blocks stay at least.
    """

    model: nn.Module
    blocks: tuple[str, ...]
    pooling: Literal["mean", "sum"] = "mean"
    minimum: int = 0

    def __post_init__(self) -> None:
        if not self.blocks:
            raise GranularityError("no blocks: this model has no residual block whose shortcut is the identity")
        if self.pooling not in ("mean", "sum"):
            raise GranularityError(f"pooling {self.pooling!r} is unknown: choose mean or sum")
        for block in self.blocks:
            if block not in dict(self.model.named_modules()):
                raise GranularityError(f"{block}: is no module of the model: give names from find_blocks")

    def gather(self, scores: Mapping[str, Tensor], within: Mapping[str, Tensor] | None) -> Pooled:
        """A single group of units; see `Granularity`."""
        device = next(iter(scores.values())).device
        pooled = torch.zeros(len(self.blocks), dtype=torch.float64, device=device)
        alive = torch.zeros(len(self.blocks), dtype=torch.bool, device=device)
        for i, block in enumerate(self.blocks):
            scored = [name for name in self._parameters(block) if name in scores]
            if not scored:
                raise GranularityError(f"{block}: none of its parameters was scored: include them, or leave it out")
            count = 0
            for name in scored:
                lives = torch.ones_like(scores[name], dtype=torch.bool) if within is None else within[name]
                pooled[i] += scores[name].detach().double()[lives].sum()
                count += int(lives.sum())
            alive[i] = count > 0
            if self.pooling == "mean":
                pooled[i] /= max(1, count)
        units = Units(pooled, alive, pooled.shape, self.minimum)

        def expand(chosen: Mapping[str, Tensor]) -> dict[str, Tensor]:
            masks = {name: torch.ones(s.shape, dtype=torch.bool, device=device) for name, s in scores.items()}
            shapes = {name: p.shape for name, p in self.model.named_parameters()}
            for block, kept in zip(self.blocks, chosen["blocks"].tolist(), strict=True):
                for name in self._parameters(block):
                    masks[name] = torch.full(shapes[name], kept, dtype=torch.bool, device=device)
            return masks

        return Pooled({"blocks": units}, expand)

    def _parameters(self, block: str) -> list[str]:
        return [f"{block}.{name}" for name, _ in self.model.get_submodule(block).named_parameters()]
