"""The diagonal of the Fisher information as a score of its own."""

from typing import Literal

from pruning.curvature.cotangents import empirical, true_fisher
from pruning.curvature.examples import mean_squares
from pruning.errors import ScoreError
from pruning.evidence import Evidence, Scores


def fisher(
    evidence: Evidence, labels: Literal["empirical", "true"] = "empirical", samples: int | None = None, seed: int = 0
) -> Scores:
    """(1/N) Σ_n (∂L_n/∂w)²: how much the output distribution depends on w. Sung et al. 2021 (FISH), equation 3.

    The mean over examples of squares, however they are cut into batches; never the square of a batch's mean gradient.

    Args:
        labels: `empirical`: those of the data. `true`: the network's own, as the Fisher information is defined.
        samples: of `true`: labels drawn an example; None takes the expectation over all classes.
        seed: of the samples.

    Raises:
        ScoreError: an unknown choice; else see `pruning.curvature.examples.mean_squares`.
    """
    if labels == "empirical":
        return mean_squares(evidence, empirical)
    if labels == "true":
        return mean_squares(evidence, true_fisher(samples, seed))
    raise ScoreError(f"fisher: labels={labels!r} is unknown: choose empirical or true")
