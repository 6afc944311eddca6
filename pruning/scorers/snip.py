"""Connection sensitivity at initialisation."""

import torch

from pruning.evidence import Evidence, Scores, accumulated, effect, laid_out
from pruning.gradients import mean_gradient


@laid_out
def snip(evidence: Evidence) -> Scores:
    """|∂L/∂c| / Σ |∂L/∂c| with a gate c = 1 on every weight, so |g·w| / Σ |g·w|. Lee et al. 2019 (SNIP), equation 5.

    The gradient is that of the mean loss over all batches, the sum runs over all prunable weights; scores sum to 1.
    Meant for a network at initialisation, in train mode as in the paper; the score uses the mode that the model is in.
    """
    sensitivity = {
        name: effect(gradient, accumulated(evidence.parameters[name])).abs_()
        for name, gradient in mean_gradient(evidence).items()
    }
    total = float(sum(s.sum(dtype=torch.float64) for s in sensitivity.values()))
    return {name: s / total if total else s for name, s in sensitivity.items()}
