"""The baseline that every scorer must beat."""

import torch

from pruning.evidence import Evidence, Scores, laid_out
from pruning.seeding import generator


@laid_out
def random(evidence: Evidence, seed: int = 0) -> Scores:
    """u ~ U(0, 1), float32, a function of `seed` and the tensors' order and shapes alone. Needs no data.

    Drawn on the CPU, so that every device sees the same scores; torch's global random state is not touched. With the
    same seed the scores of later rounds are the same, so masks are nested.
    """
    # of the seed itself, a model built after torch.manual_seed(seed) has the same draws for weights: no chance at all
    draws = generator(f"random scores {seed}")
    return {
        name: torch.rand(weight.shape, generator=draws, dtype=torch.float32, device="cpu").to(weight.device)
        for name, weight in evidence.parameters.items()
    }
