"""The gradient alone."""

from pruning.evidence import Evidence, Scores, laid_out
from pruning.gradients import mean_gradient


@laid_out
def gradient(evidence: Evidence) -> Scores:
    """|∂L/∂w| of the mean loss over all examples: what training would move most. Also RigL's criterion of growth.

    Weights that are removed have a gradient too. Evci et al. 2020 (RigL), section 3.
    """
    return {name: g.abs() for name, g in mean_gradient(evidence).items()}
