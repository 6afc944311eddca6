"""Scores of the weights alone."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from pruning.evidence import Evidence, Scores, accumulated, laid_out
from pruning.selection.ordering import descending_magnitudes


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
    names, weights = evidence.parameters.keys(), evidence.parameters.values()
    if torch.get_num_threads() == 1:
        return dict(zip(names, map(_lamp, weights), strict=True))
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:  # each sorts one tensor, which takes one thread
        return dict(zip(names, threads.map(_lamp, weights), strict=True))


def _lamp(weight: Tensor) -> Tensor:
    flat = accumulated(weight).reshape(-1)
    scores = _doubles(flat)
    total = scores.new_zeros(1)
    for magnitudes, positions in descending_magnitudes(flat):
        squares = magnitudes.double().square_()  # float32 sums of millions of squares lose the small ones
        at_least_as_large = squares.clone()
        at_least_as_large[:1] += total + (squares[:1] == 0)  # from here on all are 0, and score 0, not 0/0
        total = at_least_as_large.cumsum_(0)[-1:]
        scores.scatter_(0, positions, squares.div_(at_least_as_large))
    return scores.view(weight.shape)


def _doubles(like: Tensor) -> Tensor:
    """Memory for as many float64. NumPy's comes in large pages, whose first use takes a quarter of torch's time."""
    return torch.from_numpy(np.empty(like.shape)) if like.is_cpu else torch.empty_like(like, dtype=torch.float64)
