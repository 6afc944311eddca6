"""How far training moved a weight."""

from pruning.errors import ScoreError
from pruning.evidence import Evidence, Scores, accumulated


def change(evidence: Evidence) -> Scores:
    """|w - w₀|, w₀ the weight at initialisation. Zhou et al. 2019 ("movement" there); LT-SFT, Ansell et al. 2022.

    Raises:
        ScoreError: the evidence has no initial weights.
    """
    if evidence.initial is None:
        raise ScoreError("change: needs the weights at initialisation: give Evidence initial={name: tensor}")
    return {
        name: (accumulated(p) - accumulated(evidence.initial[name]).to(p.device)).abs()
        for name, p in evidence.parameters.items()
    }
