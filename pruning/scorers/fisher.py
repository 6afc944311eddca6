"""The diagonal of the Fisher information as a score of its own."""

from typing import Literal

from pruning.curvature.cotangents import cotangents
from pruning.curvature.examples import mean_squares
from pruning.evidence import Evidence, Scores, laid_out


@laid_out
def fisher(
    evidence: Evidence,
    curvature: Literal["empirical_fisher", "true_fisher"] = "empirical_fisher",
    samples: int | None = None,
    seed: int = 0,
) -> Scores:
    """(1/N) Σ_n (∂L_n/∂w)²: how much the output distribution depends on w. Sung et al. 2021 (FISH), equation 3.

    The mean over examples of squares, however they are cut into batches; never the square of a batch's mean gradient.
    With `Evidence.count` an example counts c_n: (1/Σ c_n) Σ_n c_n·(∂L_n/∂w)², where L_n is the mean loss within it.

    Args:
        curvature: `empirical_fisher`: with the labels of the data. `true_fisher`: with the network's own, as the Fisher
            information is defined.
        samples: of `true_fisher`: labels drawn an example; None takes the expectation over all classes.
        seed: of the samples.

    Raises:
        ScoreError: an unknown choice; else see `pruning.curvature.examples.mean_squares`.
    """
    return mean_squares(evidence, cotangents(curvature, samples, seed))
