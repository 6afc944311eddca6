"""Whether sparse layers may hand on their outputs features first, which saves copies: found by trying it."""

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from pruning.evidence import untouched
from pruning.execution.modules import _Sparse
from pruning.inputs import Inputs, arguments_for, outputs_in
from pruning.parameters import unwrapped


def lay_features_first(model: nn.Module, inputs: Inputs) -> bool:
    """Let sparse layers hand on outputs of small batches features first if the model runs so, and whether it does.

    It does not where a `view` of an output needs it row by row, nor where it draws other noise so, as dropout does,
    whose noise follows the layout. Nothing of the model changes but this.
    """
    layers = [module for module in unwrapped(model).modules() if isinstance(module, _Sparse)]
    if any(isinstance(module, _DropoutNd) for module in unwrapped(model).modules()):
        return False
    expected = _outputs(model, inputs)
    for layer in layers:
        layer.row_major = False
    try:
        found = _outputs(model, inputs)
        alike = all(torch.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in zip(expected, found, strict=True))
    except RuntimeError:  # torch's word for a view that cannot be
        alike = False
    for layer in layers:
        layer.row_major = not alike
    return alike


def _outputs(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """In training mode, with noise of a fixed seed."""
    args, kwargs = arguments_for(model, inputs)
    with untouched(model), torch.no_grad():
        model.train()
        torch.manual_seed(0)
        return [output.float() for output in outputs_in(model(*args, **kwargs))]
