"""Weights times what enters them."""

from typing import Literal

from torch import Tensor

from pruning.curvature.calls import Use, follow_inputs
from pruning.curvature.linear_maps import column_sums
from pruning.errors import ScoreError
from pruning.evidence import Evidence, Scores, accumulated, laid_out
from pruning.processes import sum_


@laid_out
def wanda(evidence: Evidence, norm: Literal[1, 2] = 2) -> Scores:
    """|w_ij|·‖x_j‖, x_j the j-th input at all examples and positions. Sun et al. 2023 (Wanda), equation 1.

    To be compared within each output row (`PerRow`), as in the paper. One forward pass of all batches, no gradient. Of
    a convolution the inputs of a row are its patches; the norms of several uses of a tied weight add up in their power.

    Args:
        norm: 2, as in the paper; 1 is the sum of |x|, so weight × activation.

    Raises:
        ScoreError: no data, or a prunable weight that something else than Linears and convolutions uses.
    """
    if norm not in (1, 2):
        raise ScoreError(f"wanda: norm={norm!r}: choose 1 or 2")
    powers: dict[str, Tensor] = {}

    def add(name: str, use: Use) -> None:
        inputs = accumulated(use.inputs)
        found = column_sums(use.module, inputs.abs() if norm == 1 else inputs.square()).double()
        powers[name] = powers[name] + found if name in powers else found

    follow_inputs(evidence, add)
    sum_(evidence.model, [powers[name] for name in evidence.parameters])
    scores = {}
    for name, parameter in evidence.parameters.items():
        groups, columns = powers[name].shape
        layout = evidence.layouts[name]
        rows = layout.rows(accumulated(parameter).abs()).reshape(groups, -1, columns)
        size = powers[name].pow(1 / norm).to(rows.dtype)
        scores[name] = layout.restored(rows.mul_(size[:, None]), parameter.shape)
    return scores
