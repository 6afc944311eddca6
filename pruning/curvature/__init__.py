"""Second-order knowledge of the loss: gradients of single examples, Fisher and Gauss-Newton, the Hessian."""

from pruning.curvature.approximations import block_hessian, full_hessian, layer_hessian

__all__ = ["block_hessian", "full_hessian", "layer_hessian"]
