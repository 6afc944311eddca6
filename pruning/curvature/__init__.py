"""Second-order knowledge of the loss: gradients of single examples, Fisher and Gauss-Newton, the Hessian."""
