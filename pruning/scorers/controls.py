"""Controls: what a scorer's choice of weights is worth beyond how many it leaves in each layer."""

from collections.abc import Callable

import torch

from pruning.errors import ScoreError
from pruning.evidence import Evidence, Scores, laid_out


@laid_out
def layer_shuffled(evidence: Evidence, scorer: Callable[[Evidence], Scores], seed: int = 0) -> Scores:
    """`scorer`'s scores, permuted within each tensor: its layer-wise densities, at random places.

    Su et al. 2020 and Frankle et al. 2021 ("missing the mark"): methods at initialisation hardly notice. Live weights
    change places among themselves. The densities are the scorer's own in one round; in later rounds it scores the
    network that the shuffling has left, so they are what it makes of that.

    Raises:
        ScoreError: `scorer` is no function.
    """
    _check(scorer)
    generator = torch.Generator("cpu").manual_seed(seed)
    shuffled = {}
    for name, score in scorer(evidence).items():
        flat = score.reshape(-1).clone()
        live = (
            torch.arange(flat.numel()) if evidence.masks is None else evidence.masks[name].reshape(-1).nonzero()[:, 0]
        )
        order = live.cpu()[torch.randperm(len(live), generator=generator)].to(flat.device)
        flat[live.to(flat.device)] = score.reshape(-1)[order]
        shuffled[name] = flat.view(score.shape)
    return shuffled


@laid_out
def inverted(evidence: Evidence, scorer: Callable[[Evidence], Scores]) -> Scores:
    """-score: keeps what `scorer` would remove first. Frankle et al. 2021, section 5.

    Raises:
        ScoreError: `scorer` is no function.
    """
    _check(scorer)
    return {name: -score for name, score in scorer(evidence).items()}


@laid_out
def absolute(evidence: Evidence, scorer: Callable[[Evidence], Scores]) -> Scores:
    """|score|: what matters whichever way, where `scorer` ranks by sign what to remove. For supports to be trained.

    Raises:
        ScoreError: `scorer` is no function.
    """
    _check(scorer)
    return {name: score.abs() for name, score in scorer(evidence).items()}


def _check(scorer: object) -> None:
    if not callable(scorer):
        raise ScoreError(f"scorer={scorer!r} is no scorer: give the function that the control wraps")
