"""Whether scores can be ranked: NaN and infinities cannot."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from pruning.errors import ScoreError
from pruning.selection.arrays import finite
from pruning.selection.pieces import Run, runs


def check_finite(name: str, scores: Tensor) -> None:
    """Raise `ScoreError` naming the tensor if a score is NaN or infinite: neither can be ranked."""
    check_all_finite({name: scores})


def check_all_finite(scores: Mapping[str, Tensor], within: Mapping[str, Tensor] | None = None) -> None:
    """`check_finite` of every tensor, small ones together. What `within` (bool, of the same shapes) leaves out is free.

    The curvature of removed weights, for one, may be 0/0.
    """
    alive = None if within is None else [within[name] for name in scores]
    if not all_finite(runs(list(scores.values()), alive, dead=0.0)):
        refuse(scores, within)


def all_finite(found: Iterable[Run]) -> bool:
    """Whether no value that is read is NaN or infinite."""
    return all(finite(piece) for run in found for piece in run)


def refuse(scores: Mapping[str, Tensor], within: Mapping[str, Tensor] | None = None) -> None:
    """Raise `ScoreError` naming the first tensor whose scores are not all finite."""
    for name, score in scores.items():
        bad = ~torch.isfinite(score)
        if within is not None:
            bad &= within[name]
        if bad.any():
            raise ScoreError(
                f"{name}: {int(bad.sum())} of {score.numel()} scores are NaN or infinite: check the scorer, its data, "
                "and that the network has not diverged"
            )
