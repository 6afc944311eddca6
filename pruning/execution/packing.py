"""Dense Linear layers with weights as oneDNN's kernels like them best: packed once, and not at every call."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PackedLinear(nn.Linear):
    """A Linear that multiplies with a packed copy of its weight wherever no gradients are asked for.

    The weight stays a parameter, and a new copy is made when it has changed; so the layer takes twice the memory.
    """

    packed: tuple[tuple[int, int], Tensor] | None  # with the weight's state when it was made

    def forward(self, input: Tensor) -> Tensor:
        """Compute what the ordinary layer does: [..., inputs] to [..., outputs]."""
        weight, bias = self.weight, self.bias
        if not _applies(input, weight, bias):
            return F.linear(input, weight, bias)
        state = weight._version, weight.data_ptr()
        if self.packed is None or self.packed[0] != state:
            self.packed = state, torch.ops.mkldnn._reorder_linear_weight(weight.detach())
        outputs: Tensor = torch.ops.mkldnn._linear_pointwise(input, self.packed[1], bias, "none", [], "")
        return outputs

    def __getstate__(self) -> dict[str, Any]:
        """State without the packed copy, which torch can neither copy nor pickle."""
        return vars(self) | {"packed": None}


def packable(module: nn.Module) -> bool:
    """Whether `module` is exactly a Linear, in float32 on a CPU for which torch has oneDNN."""
    if type(module) is not nn.Linear:
        return False
    weight = module._parameters.get("weight")
    fits = weight is not None and weight.dtype == torch.float32 and weight.device.type == "cpu"
    return fits and bool(torch._C._has_mkldnn) and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def pack_(module: nn.Module) -> None:
    """Let `module`, which is `packable`, be a `PackedLinear`, in place."""
    module.__dict__["packed"] = None
    module.__class__ = PackedLinear


def _applies(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether the kernel does as `F.linear` would: it has no gradients, knows float32 alone, and ignores autocast."""
    tensors = [inputs, weight] if bias is None else [inputs, weight, bias]
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return False
    if inputs.is_nested or weight.is_inference() or inputs.shape[-1:] != weight.shape[1:]:  # those have no version
        return False
    plain = all(tensor.dtype == torch.float32 and tensor.device.type == "cpu" for tensor in tensors)
    return plain and not torch.is_autocast_enabled("cpu")
