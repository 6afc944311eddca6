"""How far training moved a weight."""

from pruning.errors import ScoreError
from pruning.evidence import Evidence, Scores, accumulated, laid_out


@laid_out
def change(evidence: Evidence) -> Scores:
    """|w - w₀|, w₀ the weight at initialisation. Zhou et al. 2019 ("movement" there); LT-SFT, Ansell et al. 2022.

    Raises:
        ScoreError: the evidence has no initial weights, or none of the weights has moved.
    """
    if evidence.initial is None:
        raise ScoreError("change: needs the weights at initialisation: give Evidence initial={name: tensor}")
    for name, p in evidence.parameters.items():
        if name not in evidence.initial or evidence.initial[name].shape != p.shape:
            raise ScoreError(f"{name}: change: initial= has no tensor of shape {list(p.shape)} for it: give one")
    scores = {
        name: (accumulated(p) - accumulated(evidence.initial[name]).to(p.device)).abs()
        for name, p in evidence.parameters.items()
    }
    if not any(bool(score.any()) for score in scores.values()):
        raise ScoreError("change: no weight has moved since initialisation: give a network that is trained")
    return scores
