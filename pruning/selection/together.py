"""Units of many tensors that compete with each other."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pruning.errors import AllocationError
from pruning.selection import arrays
from pruning.selection.finite import all_finite, refuse
from pruning.selection.histogram import Threshold
from pruning.selection.pieces import Run, count, cut, elements, runs
from pruning.selection.threshold import kth_largest


def kept_count(density: float, total: int) -> int:
    """round_half_even(density · total): the one place where a share becomes a count."""
    return round(density * total)


def top(scores: Sequence[Tensor], keep: int, alive: Sequence[Tensor] | None = None) -> list[Tensor]:
    """Masks (bool, of the scores' shapes) of the `keep` largest of all `scores` together.

    Args:
        scores: finite tensors of any shape; half precision is compared as float32, float64 and integers as float64.
        keep: how many stay, from 0 to the number of candidates.
        alive: bool tensors of the scores' shapes; only `True` positions are candidates.

    Returns:
        New memory; masks of small neighbours are parts of one piece of it, of at most 2^17 bytes (2^24 off the CPU).

    Raises:
        AllocationError: `keep` exceeds the number of candidates.
    """
    candidates = elements(scores) if alive is None else count(alive)
    if not 0 <= keep <= candidates:
        raise AllocationError(f"cannot keep {keep} of {candidates} live units: ask for a lower density")
    if keep == candidates and alive is not None:
        return [mask.clone() for mask in alive]
    if keep in (0, candidates):
        return _all(scores, keep > 0)
    found = runs(scores, alive)
    return _masks(found, kth_largest(found, keep, candidates))


def top_share(scores: Mapping[str, Tensor], density: float) -> dict[str, Tensor]:
    """`check_all_finite`, then `top` of that share of all scores; small tensors are gathered once for both."""
    tensors = list(scores.values())
    found = runs(tensors)
    if not all_finite(found):
        refuse(scores)
    total = sum(run.size for run in found)
    keep = kept_count(density, total)
    masks = _all(tensors, keep > 0) if keep in (0, total) else _masks(found, kth_largest(found, keep, total))
    return dict(zip(scores, masks, strict=True))


def _all(scores: Sequence[Tensor], value: bool) -> list[Tensor]:
    return [torch.full(score.shape, value, dtype=torch.bool, device=score.device) for score in scores]


def _masks(found: Sequence[Run], threshold: Threshold) -> list[Tensor]:
    """Of what lies above the threshold, and of the first positions that equal it."""
    value, ties = threshold
    masks: list[Tensor] = []
    for run in found:
        mask, start = arrays.empty(run.size, run.scores[0]), 0
        for piece in run:
            part = mask[start : start + piece.shape[0]]
            start += piece.shape[0]
            if ties is None:
                arrays.at_least(piece, value, part)
                continue
            arrays.above(piece, value, part)
            if ties:
                equal = piece == value
                here = arrays.true(equal)
                if here > ties:
                    equal &= equal.cumsum(0) <= ties
                part |= equal
                ties = max(0, ties - here)
        masks += cut(mask, run.scores)
    return masks
