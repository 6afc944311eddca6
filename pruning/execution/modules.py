"""Layers whose only weights are the kept ones. A module becomes one, and a dense one again, in place.

The module stays the object that it was, with its hooks and its place in the network; its class changes, and in its
parameters the vector `values` stands where `weight` stood. Its `state_dict` keeps the name and shape of the dense
weight, and reading `weight` gives that tensor, so that code that works on it without calling the module stays right.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pruning.execution.product import Pattern, block_columns, product

_DTYPES = (torch.float32, torch.float64)


class Sparse(nn.Module):
    """What sparse layers share: the kept values, their places, and the dense weight as seen from outside."""

    dense_class: ClassVar[type[nn.Module]]
    values: nn.Parameter
    pattern: Pattern
    dense_shape: torch.Size
    dense_weight: nn.Parameter
    row_major: bool

    def matrix(self, input: Tensor) -> Tensor:
        """What the layer multiplies: [rows, inputs] or [images, inputs, positions]."""
        raise NotImplementedError

    def columns(self, input: Tensor) -> int:
        """How many columns each product with `input` has (see `Pattern.few`); 0 where there is none."""
        if not _kernels(input, self.values):
            return 0
        matrix = self.matrix(input)
        return block_columns(len(matrix), matrix.shape[2] if matrix.dim() == 3 else 0)

    @property
    def weight(self) -> Tensor:
        """The dense weight, built at every reading; gradients reach `values` through it."""
        flat = self.values.new_zeros(self.dense_shape.numel())
        return flat.index_put((self.pattern.flat().to(self.values.device),), self.values).view(self.dense_shape)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        own, weight = self._parameters, self.weight
        shown = {("weight" if n == "values" else n): (weight if n == "values" else p) for n, p in own.items()}
        self._parameters = shown  # type: ignore[assignment]  # what is saved need not be a Parameter
        try:
            super()._save_to_state_dict(destination, prefix, keep_vars)
        finally:
            self._parameters = own

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        key = f"{prefix}weight"
        own = self._parameters
        self._parameters = {name: parameter for name, parameter in own.items() if name != "values"}
        others = {name: value for name, value in state_dict.items() if name != key}
        arguments = (others, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        try:
            super()._load_from_state_dict(*arguments)
        finally:
            self._parameters = own
        if key not in state_dict:
            missing_keys.append(key)
        elif state_dict[key].shape != self.dense_shape:
            shapes = f"{list(state_dict[key].shape)} in the state, {list(self.dense_shape)} here"
            error_msgs.append(f"size mismatch for {key}: {shapes}")
        else:
            with torch.no_grad():
                self.values.copy_(state_dict[key].reshape(-1)[self.pattern.flat().to(state_dict[key].device)])


class SparseLinear(Sparse, nn.Linear):  # type: ignore[override]  # `weight` is read-only here
    """A Linear of which only the kept weights exist."""

    dense_class = nn.Linear

    def forward(self, input: Tensor) -> Tensor:
        """Compute what the dense layer does: [..., inputs] to [..., outputs]."""
        values = self.values
        if not _kernels(input, values) or input.shape[-1:] != (self.in_features,):
            return F.linear(input, self.weight, self.bias)
        if input.dim() == 2:
            return product(input, values, self.bias, self.pattern, features_first=not self.row_major)
        outputs = product(self.matrix(input), values, self.bias, self.pattern, features_first=False)
        return outputs.view(*input.shape[:-1], self.out_features)

    def matrix(self, input: Tensor) -> Tensor:
        """`input` as [rows, inputs]."""
        return input.reshape(-1, self.in_features)


class SparsePointwise(Sparse, nn.Conv2d):  # type: ignore[override]  # `weight` is read-only here
    """A 1x1 convolution, without padding and groups, of which only the kept weights exist."""

    dense_class = nn.Conv2d

    def forward(self, input: Tensor) -> Tensor:
        """Compute what the dense layer does: [batch, inputs, height, width], or without batch."""
        fits = _kernels(input, self.values) and input.dim() in (3, 4) and input.shape[-3] == self.in_channels
        if not fits:
            return F.conv2d(input, self.weight, self.bias, self.stride)
        matrix = self.matrix(input)
        found = product(matrix, self.values, self.bias, self.pattern, features_first=False)
        height, width = (-(-size // step) for size, step in zip(input.shape[-2:], self.stride, strict=True))
        if matrix.dim() == 2:
            outputs = found.view(-1, height, width, self.out_channels).movedim(-1, 1)
        else:
            outputs = found.view(-1, self.out_channels, height, width)
        return outputs if input.dim() == 4 else outputs[0]

    def matrix(self, input: Tensor) -> Tensor:
        """`input` as [images, inputs, positions], or as [rows, inputs] where its channels lie last."""
        down, right = self.stride
        images = (input if input.dim() == 4 else input[None])[:, :, ::down, ::right]
        if input.is_contiguous(memory_format=torch.channels_last) and not input.is_contiguous():
            return images.movedim(1, -1).flatten(0, 2)
        return images.flatten(2)


def convertible(module: nn.Module) -> bool:
    """Whether `module` can run sparsely: exactly a Linear, or a 1x1 Conv2d without padding and groups.

    Subclasses are not, as they may do anything; nor other devices than the CPU and other dtypes than float32, float64.
    """
    if type(module) is nn.Conv2d:
        pointwise = (
            module.kernel_size == (1, 1) and module.groups == 1 and module.padding in ((0, 0), 0, "valid", "same")
        )
        if not pointwise or (module.padding == "same" and module.stride != (1, 1)):
            return False
    elif type(module) is not nn.Linear:
        return False
    weight = module._parameters.get("weight")
    return weight is not None and weight.device.type == "cpu" and weight.dtype in _DTYPES


def sparsify_(module: nn.Module, values: nn.Parameter, pattern: Pattern, row_major: bool = True) -> None:
    """Make `module`, which is `convertible`, a sparse one with these values.

    Without `row_major`, outputs of small batches of rows lie in memory features first. That saves copies from layer to
    layer, but a `view` of them may be impossible, and dropout, which draws its noise in the order of memory, drops
    other units.

    The dense Parameter is put aside, for others to find it again when the layer is dense; its memory is for the caller
    to free.
    """
    own = module._parameters
    weight = own["weight"]
    assert weight is not None
    module.__dict__["pattern"] = pattern
    module.__dict__["dense_shape"] = weight.shape
    module.__dict__["dense_weight"] = weight
    module.__dict__["row_major"] = row_major
    module._parameters = {("values" if name == "weight" else name): value for name, value in own.items()}
    module._parameters["values"] = values
    module.__class__ = SparseLinear if type(module) is nn.Linear else SparsePointwise


def densify_(module: Sparse) -> None:
    """Make `module`, which is sparse, the dense one that it was, with the Parameter that was put aside."""
    own = module._parameters
    module.__class__ = module.dense_class  # type: ignore[assignment]  # it is a sparse one no longer
    module._parameters = {("weight" if name == "values" else name): value for name, value in own.items()}
    module._parameters["weight"] = module.__dict__.pop("dense_weight")
    del module.__dict__["pattern"], module.__dict__["dense_shape"], module.__dict__["row_major"]


def _kernels(inputs: Tensor, values: Tensor) -> bool:
    """Whether the products exist for these: not for nested tensors, half precision, autocast, or a batch of nothing."""
    if inputs.is_nested or inputs.dtype != values.dtype or values.dtype not in _DTYPES:
        return False
    kind = inputs.device.type
    return kind == "cpu" and inputs.numel() > 0 and not torch.is_autocast_enabled(kind)
