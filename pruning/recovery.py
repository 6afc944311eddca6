"""Steps after a removal that need no training."""

from collections.abc import Mapping

import torch
from torch import Tensor

from pruning.curvature.approximations import Approximation, approximated, layer_hessian
from pruning.errors import MaskError
from pruning.evidence import Evidence
from pruning.masks import Masks


@torch.no_grad()
def compensate(evidence: Evidence, masks: Mapping[str, Tensor], hessian: Approximation = layer_hessian) -> None:
    """Remove what `masks` removes and move what they keep, in the model, so that the loss rises least.

    In closed form and for all removed weights R at once: w_A ← w_A + H_AA⁻¹ H_AR w_R, with A what is kept; for one
    weight that is the update of Hassibi & Stork 1993, equation 5. May follow any scorer's masks. Nothing but prunable
    weights changes.

    Args:
        evidence: the model *before* the removal, with the data and loss that `hessian` needs.
        masks: name → bool tensor for every prunable tensor, True = kept.
        hessian: as in `pruning.scorers.obs`.

    Raises:
        MaskError: the masks do not fit.
        ScoreError: see the approximation.

    Warns:
        DampingWarning: H was singular, so its damping grew.
    """
    kept = Masks(masks)
    for name in kept.keys() ^ evidence.parameters.keys():
        raise MaskError(f"{name}: in only one of the masks and the prunable parameters: give masks for exactly those")
    kept.check(evidence.model)
    quadratics = approximated(hessian, evidence)
    moved = [
        quadratic.moved(evidence.parameters, kept) for quadratic in quadratics
    ]  # all of them, or an error and none
    for weights in moved:
        for name, weight in weights.items():
            evidence.parameters[name].copy_(weight)
    kept.apply_(evidence.model)
