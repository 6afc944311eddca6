"""Second-order cost of a removal with the whole inverse Hessian: the other weights move to make up for it."""

import torch

from pruning.curvature.approximations import Approximation, approximated, block_hessian, layer_hessian
from pruning.evidence import Evidence, Scores, laid_out


@laid_out
def obs(evidence: Evidence, hessian: Approximation = layer_hessian) -> Scores:
    """w_q²/(2[H⁻¹]_qq), the rise of what H is the Hessian of, when w_q goes and all others follow.

    Hassibi & Stork 1993 (OBS), equation 5. H is restricted to live weights (`evidence.masks`). Remove by it, then let
    `pruning.recovery.compensate` move the others; with one weight a round that is the paper's procedure.

    Args:
        hessian: a function of `pruning.curvature`, with options bound by `functools.partial`. `full_hessian`: of the
            loss. `layer_hessian`: of the squared change of the layer's own outputs (L-OBS, SparseGPT), whose scale
            differs from layer to layer: let tensors compete within themselves. `block_hessian`: see `woodfisher`.

    Raises:
        ScoreError: see the approximation.

    Warns:
        DampingWarning: H was singular, so its damping grew.
    """
    alive = evidence.masks or {n: torch.ones_like(p, dtype=torch.bool) for n, p in evidence.parameters.items()}
    scores: Scores = {}
    for quadratic in approximated(hessian, evidence):
        scores |= quadratic.costs(evidence.parameters, alive)
    return {name: scores[name] for name in evidence.parameters}


@laid_out
def woodfisher(evidence: Evidence, hessian: Approximation = block_hessian) -> Scores:
    """w_q²/(2[F⁻¹]_qq) as in OBS, with F the Fisher in blocks of consecutive weights. Singh & Alistarh 2020.

    Args:
        hessian: `pruning.curvature.block_hessian`, with its options bound by `functools.partial`.

    Raises, warns: as `obs`.
    """
    return obs(evidence, hessian)
