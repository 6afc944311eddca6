"""Gradient flow at initialisation."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from pruning.curvature.hessian import hessian_product
from pruning.errors import ScoreError
from pruning.evidence import Evidence, Scores, accumulated, laid_out


@laid_out
def grasp(evidence: Evidence, temperature: float = 1.0) -> Scores:
    """w·(Hg), with g and H of the mean loss over all batches. Wang et al. 2020 (GraSP), equation 8.

    Removing w changes ‖g‖² by about -2·w·(Hg): what would raise the gradient flow most goes first. The paper removes
    the largest S = -w·(Hg); here, as everywhere, higher = keep, so the sign is the other one.

    Args:
        temperature: divides the model's outputs before the loss, above 0; the authors' code uses 200. Needs outputs
            that are one tensor.
    """
    if not temperature > 0:
        raise ScoreError(f"grasp: temperature={temperature}: give one above 0")
    with _divided(evidence.model, temperature):
        products = hessian_product(evidence)
    return {name: product.mul_(accumulated(evidence.parameters[name])) for name, product in products.items()}


@contextmanager
def _divided(model: nn.Module, temperature: float) -> Iterator[None]:
    if temperature == 1.0:
        yield
        return

    def hook(module: nn.Module, inputs: Any, outputs: Any) -> Any:
        if not isinstance(outputs, Tensor):
            raise ScoreError(
                f"grasp: temperature={temperature} cannot divide a {type(outputs).__name__}: give 1, or wrap the model "
                "in one that returns a tensor"
            )
        return outputs / temperature

    handle = model.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
