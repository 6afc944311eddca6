"""A sparse update: the weights of a support alone, which any scorer chooses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from experiments.adaptation.method import Attached, Method
from pruning import Evidence, Masks
from pruning.adaptation import Budget, Delta, Tuning, choose_support
from pruning.adaptation.support import Policy
from pruning.allocation import Allocation
from pruning.errors import AdaptationError, ConfigurationError, ScoreError
from pruning.evidence import Scores
from pruning.granularity import Granularity, Weights

SCORED = ("base", "tuned")


@dataclass(frozen=True, kw_only=True)
class Sparse(Method):
    """Trains the highest-scored weights; see `pruning.adaptation.Tuning`.

    Attributes:
        scorer: of what is trained, in the place of the run's, which prunes.
        granularity, allocation: of the support.
        policy: which weights of a pruned network may be trained; see `pruning.adaptation.choose_support`. Of a dense
            one it is free.
        scored: the network that is scored: the `base` that is adapted, or what full fine-tuning makes of it (`tuned`),
            as LT-SFT does with the scorer `change` (Ansell et al. 2022).
        tuned: learning rates of that fine-tuning.
    """

    scorer: Callable[[Evidence], Scores]
    granularity: Granularity | None = None
    allocation: Allocation | None = None
    policy: Policy = "survivors"
    scored: str = "base"
    tuned: list[float] = field(default_factory=lambda: [1e-4, 3e-4])

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.policy not in get_args(Policy):
            raise ConfigurationError(f"adaptation.policy={self.policy}: choose {' or '.join(get_args(Policy))}")
        whole = not hasattr(self.granularity or Weights(), "gather") or isinstance(self.allocation, partial | dict)
        if whole:
            raise ConfigurationError(
                "adaptation.granularity: a support has no whole channels: choose weights, vectors or blocks, and an "
                "allocation that shares a density out"
            )
        if self.scored not in SCORED:
            raise ConfigurationError(f"adaptation.scored={self.scored}: choose {' or '.join(SCORED)}")

    def choose(self, scores: Scores, masks: Masks | None) -> Masks:
        """The highest-scored weights within the budget and the policy."""
        return self.chosen(scores, masks, self.size(scores))

    def chosen(self, scores: Scores, masks: Masks | None, size: Budget) -> Masks:
        """The highest-scored weights within `size`. Raises `ScoreError` for scores of both signs."""
        check_signs(scores)
        policy = "free" if masks is None else self.policy
        return choose_support(scores, size, self.granularity, self.allocation, masks, policy)

    def check_room(self, adapted: Mapping[str, Tensor], prunable: Mapping[str, Tensor], density: float) -> None:
        """Raise `AdaptationError` where a network that is pruned to `density` leaves less than the budget, wherever its
        survivors are.
        """
        total, count = sum(p.numel() for p in prunable.values()), self.size(adapted).count
        here = sum(p.numel() for name, p in adapted.items() if name in prunable)
        beside, kept = sum(p.numel() for p in adapted.values()) - here, round(density * total)
        room = {"survivors": beside + min(here, kept), "regrow": min(here, total - kept), "free": here + beside}
        if count is not None and count > room[self.policy]:
            raise AdaptationError(
                f"adaptation.policy={self.policy}: leaves at most {room[self.policy]:,} weights at density "
                f"{density:g}, fewer than the {count:,} of the budget: lower the budget"
            )

    def attach(self, model: nn.Module, masks: Masks | None, support: Masks | None = None) -> Attached:
        """Train `support` alone."""
        assert support is not None
        return SparseUpdate(model, masks, self.whole(model), support)


class SparseUpdate(Attached):
    """A support in training."""

    def __init__(self, model: nn.Module, masks: Masks | None, dense: dict[str, nn.Parameter], support: Masks):
        super().__init__(model, masks, dense)
        self.tuning = Tuning(model, support, list(dense) or None)

    def own(self) -> dict[str, nn.Parameter]:
        return self.tuning.values

    def follow(self, optimizer: Optimizer) -> None:
        super().follow(optimizer)
        self.tuning.follow(optimizer)

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        super().load_state_dict(state)
        self.tuning.write_()

    def save(self, path: Path) -> None:
        Delta(self.tuning.delta().changes).save(path)

    def finish(self) -> nn.Module:
        self.filled = 0 if self.masks is None else regrown(self.masks, self.tuning.support)
        if self.masks is not None:
            support = self.tuning.support
            self.masks = Masks({n: m | support[n].to(m.device) if n in support else m for n, m in self.masks.items()})
        self.tuning.release()
        return super().finish()


def check_signs(scores: Scores) -> None:
    """Raise `ScoreError` for scores of both signs: the lowest are as important as the highest."""
    found = list(scores.values())
    if any(bool((s < 0).any()) for s in found) and any(bool((s > 0).any()) for s in found):
        raise ScoreError(
            "adaptation.scorer: its scores have both signs, which rank what to remove, not what to train: take "
            "their sizes, with scorer@adaptation.scorer=absolute adaptation.scorer.scorer._target_=…"
        )


def regrown(masks: Masks, support: Mapping[str, Tensor]) -> int:
    """How many weights of a support `masks` had removed."""
    both = ((support[name], ~mask.to(support[name].device)) for name, mask in masks.items() if name in support)
    return sum(int((trained & removed).sum()) for trained, removed in both)
