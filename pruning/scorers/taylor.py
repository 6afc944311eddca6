"""First-order Taylor expansion of the loss in the removal of a weight."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from pruning.errors import ScoreError
from pruning.evidence import Evidence, Scores, accumulated, effect, laid_out
from pruning.gradients import gradients, mean_gradient
from pruning.processes import sum_

_FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "abs": torch.abs,
    "squared": lambda product: product.double().square(),  # squares of small products are zero in float32
    "signed": torch.neg,  # removing w changes the loss by -g·w to first order: keep what would raise it
}


@laid_out
def taylor(
    evidence: Evidence,
    form: Literal["abs", "squared", "signed"] = "abs",
    absolute: Literal["after", "before"] = "after",
) -> Scores:
    """|g·w| with g = ∂L/∂w: how much the loss changes when w is removed, to first order. Molchanov et al. 2017, 2019.

    Args:
        form: `abs` |g·w|; `squared` (g·w)²; `signed` -g·w, which is high where removal would *raise* the loss.
        absolute: `after`: g is the gradient of the mean loss over all examples, and |g·w| is taken at the end, so the
            score does not depend on how the data are cut into batches. `before`: Σ over batches of |g_b·w|, with g_b
            of the batch's mean loss, so opposite signs do not cancel. For `signed`, the sum over batches.
    """
    if form not in _FORMS:
        raise ScoreError(f"taylor: form {form!r} is unknown: choose one of {', '.join(_FORMS)}")
    if absolute not in ("after", "before"):
        raise ScoreError(f"taylor: absolute {absolute!r} is unknown: choose after or before")
    transform = _FORMS[form]
    weights = {name: accumulated(weight) for name, weight in evidence.parameters.items()}
    if absolute == "after":
        return {name: transform(effect(g, weights[name])) for name, g in mean_gradient(evidence).items()}
    summed: Scores = {}
    for batch, _ in gradients(evidence):
        for name, gradient in batch.items():
            term = transform(effect(gradient, weights[name]))
            summed[name] = summed[name].add_(term) if name in summed else term
    sum_(evidence.model, summed.values())
    return summed
