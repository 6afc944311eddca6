"""Scores in, masks out: the pure function in which scorer, granularity and allocation meet."""

from collections.abc import Collection, Mapping
from operator import attrgetter

import torch
from torch import Tensor, nn

from pruning.allocation import Allocation, Global, check_density
from pruning.errors import AllocationError, MaskError, ScoreError
from pruning.granularity import Granularity, Weights
from pruning.masks import Masks
from pruning.selection import check_all_finite, top_share

_FLOATS = {torch.float32, torch.float64, torch.float16, torch.bfloat16}


def prune(
    scores: Mapping[str, Tensor],
    density: float | None,
    granularity: Granularity | None = None,
    allocation: Allocation | None = None,
    within: Mapping[str, Tensor] | None = None,
) -> Masks:
    """Masks that keep the highest-scored units.

    Args:
        scores: parameter name → tensor of the parameter's shape, any real dtype; higher = keep. What scorers return
            knows which dimensions are outputs (`pruning.layouts.LaidOut`); in a plain dict the first one is.
        density: share of units kept, in (0, 1], cumulative (of all units, not of those still alive). None only where
            the allocation has a density of its own (`NofM`, `Rates`).
        granularity: what is removed together; `Weights()` if None.
        allocation: which units compete, and how many of each group stay; `Global()` if None.
        within: earlier masks; only what they keep competes, so the result is a subset of them. What they hold beside
            the scored tensors (biases, of coupled channels) stays as it is.

    Returns:
        Exactly `round_half_even(density · units)` kept units in every competing group. Ties: the earlier position.

    Raises:
        ScoreError: a score, or the pooled score of a unit, is NaN or infinite.
        MaskError: `within` does not fit the scores.
        AllocationError, GranularityError: the density cannot be met, or a tensor has no such units.
    """
    if density is not None:
        density = check_density(density)
    if not isinstance(scores, Mapping):
        raise ScoreError(f"scores are name → tensor, this is {type(scores).__name__}: give what a scorer returns")
    if not scores:
        raise AllocationError("no scores to prune by: an empty group has no units to keep")
    _check_scores(scores)
    granularity = Weights() if granularity is None else granularity
    allocation = Global() if allocation is None else allocation
    if within is None and density is not None and granularity == Weights() and allocation == Global():
        # the same as below, without an object for each tensor: networks may have ten thousand
        return Masks(top_share(scores, density))
    if within is not None:
        _check_within(scores, within)
    check_all_finite(scores, within)
    pooled = granularity.gather(scores, within)
    # finite scores may overflow when pooled
    check_all_finite({name: u.scores for name, u in pooled.units.items() if u.scores is not scores.get(name)})
    chosen: dict[str, Tensor] = {}
    for group in allocation.groups(pooled.units, density):
        chosen.update(group.select(pooled.units))
    masks = pooled.expand(chosen)
    if within is not None:
        masks = dict(within) | {name: mask & within[name] if name in within else mask for name, mask in masks.items()}
    return Masks(masks)


def _check_scores(scores: Mapping[str, Tensor]) -> None:
    if _are_plain(scores.values()):
        return
    for name, score in scores.items():
        _check_score(name, score)
        if score.numel() == 0:
            raise AllocationError(f"{name}: an empty tensor has no units to keep: exclude it")


def _are_plain(scores: Collection[Tensor]) -> bool:
    """Whether none can be refused by `_check_score`, or for being empty: asked of all, as asking each takes longer."""
    return (
        set(map(type, scores)) <= {Tensor, nn.Parameter}
        and set(map(attrgetter("dtype"), scores)) <= _FLOATS
        and set(map(attrgetter("layout"), scores)) == {torch.strided}
        and set(map(attrgetter("is_meta"), scores)) == {False}
        and 0 not in map(Tensor.numel, scores)
    )


def _check_score(name: str, score: Tensor) -> None:
    if not isinstance(score, Tensor):
        raise ScoreError(f"{name}: a score is a tensor, this is {type(score).__name__}: return torch tensors")
    if score.is_meta:
        raise ScoreError(f"{name}: the score is on the meta device, without values: load the weights, and score again")
    if score.is_complex() or score.layout is not torch.strided:
        kind = score.dtype if score.is_complex() else score.layout
        raise ScoreError(f"{name}: {kind} scores have no order: return dense real numbers")
    if score.dtype in (torch.int64, torch.uint64) and score.numel():
        low, high = torch.aminmax(score.view(torch.int64))  # beyond 2^63, uint64 reads as negative
        lowest = -(2**53) if score.dtype == torch.int64 else 0
        if not (lowest <= low and high <= 2**53):
            raise ScoreError(f"{name}: integer scores beyond 2^53 cannot be distinguished: scale them down")


def _check_within(scores: Mapping[str, Tensor], within: Mapping[str, Tensor]) -> None:
    for name in scores:
        if name not in within:
            raise MaskError(f"{name}: scored, but not in within=: give masks of all scored parameters")
    for name, score in scores.items():
        if within[name].dtype != torch.bool or within[name].shape != score.shape:
            raise MaskError(
                f"{name}: within= has {list(within[name].shape)} {within[name].dtype}, the scores have shape "
                f"{list(score.shape)}: give bool masks of the scores' shapes"
            )
