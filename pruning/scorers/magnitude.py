"""Scores of the weights alone."""

import torch
from torch import Tensor

from pruning.evidence import Evidence, Scores, accumulated, laid_out


@laid_out
def magnitude(evidence: Evidence) -> Scores:
    """|w|: large weights matter most. Needs no data. Han et al. 2015, section 3."""
    return {name: accumulated(weight).abs() for name, weight in evidence.parameters.items()}


@laid_out
def lamp(evidence: Evidence) -> Scores:
    """w² / Σ of the w² of all weights of the same tensor that are not smaller. Lee et al. 2021 (LAMP), equation 4.

    In (0, 1] for weights other than 0; the largest of every tensor scores 1, so global selection empties none. Of
    equal weights the later position counts as smaller, as `prune` would remove it first. Needs no data. float64: the
    ratios of one tensor span the squares of its range.
    """
    return {name: _lamp(accumulated(weight)) for name, weight in evidence.parameters.items()}


def _lamp(weight: Tensor) -> Tensor:
    squares = weight.reshape(-1).double().square()  # float32 sums of millions of squares lose the small ones
    ordered, order = squares.sort(descending=True, stable=True)
    at_least_as_large = ordered.cumsum(0)
    ratios = torch.where(ordered == 0, 0.0, ordered / at_least_as_large)  # an all-zero tensor scores 0, not 0/0
    return torch.empty_like(ratios).scatter_(0, order, ratios).view(weight.shape)
