"""Which weights are trained: the highest-scored ones, wherever a pruned network lets them be."""

from collections.abc import Mapping
from typing import Literal

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
        size: a budget, or a share of all scored weights, in (0, 1].
        granularity, allocation: as for `pruning.prune`.
        pruned: masks of a pruned network.
        policy: `free`: any weight. `survivors`: those that `pruned` keeps, so that every zero survives. `regrow`: those
            that it removed.

    Raises:
        AdaptationError: a policy without `pruned`, or one that leaves fewer weights than the budget has.
        Others: see `pruning.prune`.
    """
    total = sum(score.numel() for score in scores.values())
    if policy not in ("free", "survivors", "regrow"):
        raise AdaptationError(f"policy={policy!r}: choose free, survivors or regrow")
    if policy != "free" and pruned is None:
        raise AdaptationError(f"policy={policy}: is about a pruned network: give pruned=, or policy=free")
    within = None
    if policy != "free":
        assert pruned is not None
        within = {name: pruned[name] if policy == "survivors" else ~pruned[name] for name in scores}
    if isinstance(size, Budget):
        places = "a support of 1 weight"
        size = largest(size, places, lambda count: (count, sparse_bytes(count, total)), total) / total
    room = total if within is None else sum(int(mask.sum()) for mask in within.values())
    if size * total > room + 0.5:
        raise AdaptationError(
            f"policy={policy}: leaves {room:,} weights, fewer than the {size * total:,.0f} to be trained: lower the "
            "budget"
        )
    return prune(scores, size, granularity, allocation, within)
