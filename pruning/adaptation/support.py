"""Which weights are trained: the highest-scored ones, wherever a pruned network lets them be."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from pruning.adaptation.budget import Budget, largest, sparse_bytes
from pruning.allocation import Allocation
from pruning.errors import AdaptationError
from pruning.granularity import Granularity
from pruning.masks import Masks
from pruning.pipeline import prune

Policy = Literal["free", "survivors", "regrow"]


def choose_support(
    scores: Mapping[str, Tensor],
    size: Budget | float,
    granularity: Granularity | None = None,
    allocation: Allocation | None = None,
    pruned: Mapping[str, Tensor] | None = None,
    policy: Policy = "free",
) -> Masks:
    """Masks, True = trained, of the highest-scored units.

    Args:
        scores: as for `pruning.prune`; higher = trained. Scorers with a sign rank what to remove: take their sizes,
            with `pruning.scorers.absolute`.
        size: a budget, which is not exceeded, or a share of all scored weights, in (0, 1], as `prune` takes it.
        granularity, allocation: as for `pruning.prune`.
        pruned: masks of a pruned network.
        policy: `free`: any weight. `survivors`: those that `pruned` keeps, so that every zero survives. `regrow`: those
            that it removed.

    Raises:
        AdaptationError: no scores, a policy without `pruned`, or with masks that lack a scored tensor, or one that
            leaves fewer weights than the budget has; a budget below one unit.
        Others: see `pruning.prune`.
    """
    total = sum(score.numel() for score in scores.values())
    within = _within(scores, pruned, policy)
    if not isinstance(size, Budget):
        _check_room(size * total, total, within, policy)
        return prune(scores, size, granularity, allocation, within)

    def chosen(count: int) -> Masks:
        return prune(scores, count / total, granularity, allocation, within)

    def allowed(masks: Masks) -> bool:
        count = sum(int(mask.sum()) for mask in masks.values())
        return size.allows(count, sparse_bytes(count, total))

    most = largest(size, "a support of 1 weight", lambda count: (count, sparse_bytes(count, total)), total)
    _check_room(most, total, within, policy)
    found, low = chosen(most), 0  # of 0 none are trained, which is allowed
    if not allowed(found):  # whole units, or as many of every row, can be more than were asked for
        while most - low > 1:
            middle = (low + most) // 2
            low, most = (middle, most) if allowed(chosen(middle)) else (low, middle)
        found = chosen(low) if low else Masks({})
    if not any(bool(mask.any()) for mask in found.values()):
        raise AdaptationError(
            f"budget: {size} is less than one unit of the granularity takes, or than one of every row or tensor of the "
            "allocation: raise it, or choose others"
        )
    return found


def _within(scores: Mapping[str, Tensor], pruned: Mapping[str, Tensor] | None, policy: str) -> dict[str, Tensor] | None:
    """Masks of what may be trained; None: all of it. Raises `AdaptationError` for what does not fit."""
    if not scores:
        raise AdaptationError("scores: there are none: nothing could be trained")
    if policy not in ("free", "survivors", "regrow"):
        raise AdaptationError(f"policy={policy!r}: choose free, survivors or regrow")
    if policy == "free":
        return None
    if pruned is None:
        raise AdaptationError(f"policy={policy}: is about a pruned network: give pruned=, or policy=free")
    for name in scores:
        if name not in pruned or pruned[name].dtype != torch.bool:
            what = "has no mask in pruned=" if name not in pruned else f"has a mask of {pruned[name].dtype}"
            raise AdaptationError(f"{name}: {what}: give a bool mask of every scored tensor")
    return {name: pruned[name] if policy == "survivors" else ~pruned[name] for name in scores}


def _check_room(count: float, total: int, within: Mapping[str, Tensor] | None, policy: str) -> None:
    room = total if within is None else sum(int(mask.sum()) for mask in within.values())
    if count > room + 0.5:
        raise AdaptationError(
            f"policy={policy}: leaves {room:,} weights, fewer than the {count:,.0f} to be trained: lower the budget"
        )
