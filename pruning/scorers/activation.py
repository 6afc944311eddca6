"""Weights times what enters them."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.modules.conv import _ConvTransposeNd

from pruning.curvature.linear_maps import linear_modules, sums_of_powers, uses
from pruning.errors import ScoreError
from pruning.evidence import Evidence, Scores, accumulated, untouched


def wanda(evidence: Evidence, norm: Literal[1, 2] = 2) -> Scores:
    """|w_ij|·‖x_j‖, x_j the j-th input at all examples and positions. Sun et al. 2023 (Wanda), equation 1.

    To be compared within each output row (`PerRow`), as in the paper. One forward pass of all batches, no gradient. Of
    a convolution the inputs of a row are its patches; the norms of several uses of a tied weight add up in their power.

    Args:
        norm: 2, as in the paper; 1 is the sum of |x|, so weight × activation.

    Raises:
        ScoreError: no data, or a prunable weight that is not used by a Linear or a convolution.
    """
    if norm not in (1, 2):
        raise ScoreError(f"wanda: norm={norm!r}: choose 1 or 2")
    if evidence.loss is None:
        raise ScoreError("wanda: needs a forward pass: give Evidence a loss, which runs the model on a batch")
    known = linear_modules(evidence.model, evidence.parameters)
    modules = {module: name for module, name in known.items() if not isinstance(module, _ConvTransposeNd)}
    powers: dict[str, Tensor] = {}
    seen = False
    for batch in evidence.batches:
        seen = True
        with untouched(evidence.model), torch.no_grad(), uses(modules) as calls:
            evidence.loss(evidence.model, batch)
        for call in calls:
            name = modules[call.module]
            found = sums_of_powers(call.module, accumulated(call.unchanged()), norm).double()
            powers[name] = powers[name] + found if name in powers else found
    if not seen:
        raise ScoreError("wanda: needs data: batches is empty, or could be iterated only once (give a list)")
    scores = {}
    for name, parameter in evidence.parameters.items():
        if name not in powers:
            raise ScoreError(f"{name}: wanda needs a weight that a Linear or a convolution uses: exclude it")
        groups, columns = powers[name].shape
        size = powers[name].pow(1 / norm).to(accumulated(parameter).dtype)
        scores[name] = (accumulated(parameter).abs().reshape(groups, -1, columns) * size[:, None]).view(parameter.shape)
    return scores
