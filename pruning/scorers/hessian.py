"""Second-order Taylor expansion of the loss in the removal of a weight, with the diagonal of the Hessian: OBD."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from pruning.curvature.cotangents import Curvature, check_curved, cotangents
from pruning.curvature.examples import mean_squares
from pruning.curvature.hessian import hutchinson
from pruning.errors import ScoreError
from pruning.evidence import Evidence, Scores, accumulated, laid_out

Diagonal = Curvature | Literal["hutchinson"]

_NEGATIVE: dict[str, Callable[[Tensor], Tensor]] = {
    "clamp": lambda h: h.clamp(min=0),
    "abs": torch.abs,
    "keep": lambda h: h,
}


@laid_out
def obd(
    evidence: Evidence,
    curvature: Diagonal = "gauss_newton",
    negative: Literal["clamp", "abs", "keep"] = "clamp",
    tolerance: float = 0.1,
    probes: int = 100,
    samples: int | None = None,
    seed: int = 0,
) -> Scores:
    """½·h_kk·w_k², the rise of the loss at a minimum when w_k is removed. Le Cun et al. 1990 (OBD), equation 5.

    Args:
        curvature: where the diagonal h comes from. `gauss_newton`: exact, one backward pass an output; never negative.
            `hutchinson`: of the Hessian itself, estimated (see `tolerance`, `probes`). `empirical_fisher`: mean squares
            of the examples' gradients. `true_fisher`: the same with labels from the network (see `samples`).
        negative: what to do where the Hessian's diagonal is negative: `clamp` to 0 (removal costs nothing), `abs`, or
            `keep` it, so that such weights go first.
        tolerance, probes: of `hutchinson`: relative standard error to reach, and probes at most.
        samples: of `true_fisher`: labels drawn an example; None takes the expectation over all classes.
        seed: of probes and samples.

    Raises:
        ScoreError: an unknown choice; else see `pruning.curvature`.
    """
    if negative not in _NEGATIVE:
        raise ScoreError(f"obd: negative={negative!r} is unknown: choose one of {', '.join(_NEGATIVE)}")
    diagonal = _diagonal(evidence, curvature, tolerance, probes, samples, seed)
    check_curved(diagonal.values())
    return {
        name: _NEGATIVE[negative](h).mul_(accumulated(evidence.parameters[name]).square()).mul_(0.5)
        for name, h in diagonal.items()
    }


def _diagonal(
    evidence: Evidence, curvature: Diagonal, tolerance: float, probes: int, samples: int | None, seed: int
) -> Scores:
    if curvature == "hutchinson":
        return hutchinson(evidence, tolerance, least=min(10, probes), most=probes, seed=seed).diagonal
    return mean_squares(evidence, cotangents(curvature, samples, seed))
