"""Second-order cost of a removal with the whole inverse Hessian: the other weights move to make up for it."""

import torch

from pruning.curvature.approximations import Approximation, layer_hessian, require
from pruning.evidence import Evidence, Scores


def obs(evidence: Evidence, hessian: Approximation = layer_hessian) -> Scores:
    """w_q²/(2[H⁻¹]_qq), the rise of the loss when w_q goes and all others follow. Hassibi & Stork 1993 (OBS), eq. 5.

    H is restricted to live weights (`evidence.masks`). Remove by it, then let `pruning.recovery.compensate` move the
    others; with one weight a round that is the paper's procedure.

    Args:
        hessian: how H is approximated: `full_hessian`, `layer_hessian` (as in SparseGPT) or `block_hessian` (as in
            WoodFisher) of `pruning.curvature`, with options bound by `functools.partial`.

    Raises:
        ScoreError: see the approximation.

    Warns:
        DampingWarning: H was singular, so its damping grew.
    """
    alive = evidence.masks or {n: torch.ones_like(p, dtype=torch.bool) for n, p in evidence.parameters.items()}
    scores: Scores = {}
    for quadratic in require(hessian(evidence), evidence):
        scores |= quadratic.costs(evidence.parameters, alive)
    return {name: scores[name] for name in evidence.parameters}
