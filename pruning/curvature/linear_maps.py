"""Layers that are linear in their weight, as one matrix product: what curvature and activation scorers build on.

Every use of such a layer is, per group, `outputs[:, l] = weight @ columns[:, l]` at positions l: tokens, pixels. So the
gradient of one example is Σ_l rows[:, l] columns[:, l]ᵀ, with `rows` the gradient of the outputs.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvTransposeNd

from pruning.evidence import Evidence
from pruning.parameters import is_conv1d, storage, unwrapped

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_KINDS = (nn.Linear, *_CONVOLUTIONS, *_TRANSPOSED)


def linear_modules(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> dict[nn.Module, str]:
    """The modules of `model` that `columns` and `factors` know, and which of `parameters` each multiplies by."""
    names = {storage(parameter): name for name, parameter in parameters.items()}
    found = {}
    for module in unwrapped(model).modules():
        weight = module._parameters.get("weight")
        if _is_linear_map(module) and isinstance(weight, nn.Parameter) and storage(weight) in names:
            name = names[storage(weight)]
            if weight.shape == parameters[name].shape:  # a transposed view over the same storage is not
                found[module] = name
    return found


def _is_linear_map(module: nn.Module) -> bool:
    """Linear, convolutions and the Conv1D of transformers. Subclasses may do something else: see `computes_as_kind`."""
    if is_conv1d(module):
        return type(module).__module__ == "transformers.pytorch_utils"
    return isinstance(module, _KINDS)


def computes_as_kind(module: nn.Module, inputs: Tensor, outputs: Tensor) -> bool:
    """Whether `outputs` are what torch's own layer of this kind makes of `inputs`; asked of subclasses alone."""
    forward: Any = next((kind.forward for kind in _KINDS if isinstance(module, kind)), type(module).forward)
    if type(module).forward is forward:
        return True
    with torch.no_grad():
        expected = forward(module, inputs)
    tolerance = 1e-5 if torch.finfo(outputs.dtype).bits >= 32 else 0.02
    return expected.shape == outputs.shape and torch.allclose(expected.to(outputs), outputs, tolerance, tolerance)


def modules_with_columns(evidence: Evidence) -> dict[nn.Module, str]:
    """Those of `linear_modules` that `columns` knows: no transposed convolutions."""
    known = linear_modules(evidence.model, evidence.parameters)
    return {module: name for module, name in known.items() if not isinstance(module, _ConvTransposeNd)}


def columns(module: nn.Module, inputs: Tensor) -> Tensor:
    """What the weight of a Linear or a convolution multiplies: [examples, groups, inputs of a row, positions].

    The order of the inputs of a row is that of its layout's `rows(weight)`.
    """
    inputs = batched(module, inputs)
    if _takes_last(module):
        return inputs.reshape(len(inputs), 1, -1, inputs.shape[-1]).transpose(2, 3)
    assert isinstance(module, _CONVOLUTIONS)
    padded = _padded(module, inputs)
    return _windows(padded, module).reshape(len(inputs), module.groups, -1, _positions(padded, module))


def batched(module: nn.Module, inputs: Tensor) -> Tensor:
    """The inputs of a layer with a dimension for examples, which they may lack."""
    least = 2 if _takes_last(module) else len(module.kernel_size) + 2  # type: ignore[arg-type]  # a convolution
    return inputs[None] if inputs.dim() < least else inputs


def column_sums(module: nn.Module, inputs: Tensor) -> Tensor:
    """Σ over examples and positions of `columns(module, inputs)`, [groups, inputs of a row], without making them."""
    if _takes_last(module):
        return inputs.reshape(-1, inputs.shape[-1]).sum(0, keepdim=True)
    assert isinstance(module, _CONVOLUTIONS)
    inputs = batched(module, inputs)
    dimensions = len(module.kernel_size)
    windows = _windows(_padded(module, inputs), module)
    return windows.sum((0, *range(-dimensions, 0))).reshape(module.groups, -1)


def factors(module: nn.Module, inputs: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """(rows, columns) with per-example gradient `rows @ columnsᵀ` per group; `gradient` is that of the outputs.

    A transposed convolution is the adjoint of a convolution: inputs and outputs change places. So do they in the weight
    of a Conv1D.
    """
    if _takes_last(module):
        rows = gradient.reshape(len(gradient), 1, -1, gradient.shape[-1]).transpose(2, 3)
        return (columns(module, inputs), rows) if is_conv1d(module) else (rows, columns(module, inputs))
    assert isinstance(module, nn.modules.conv._ConvNd)
    if not isinstance(module, _ConvTransposeNd):
        return gradient.reshape(len(gradient), module.groups, gradient.shape[1] // module.groups, -1), columns(
            module, inputs
        )
    spatial = inputs.shape[2:]
    sides = [int(p) for p in reversed(module.padding)]  # type: ignore[call-overload]  # torch types them as objects
    padded = F.pad(gradient, [side for size in sides for side in (size, size)])
    windows = _windows(padded, module)
    for axis, size in enumerate(spatial, start=windows.dim() - len(spatial)):
        windows = windows.narrow(axis, 0, size)  # output_padding may leave room for one more
    rows = inputs.reshape(len(inputs), module.groups, inputs.shape[1] // module.groups, -1)
    return rows, windows.reshape(len(inputs), module.groups, -1, rows.shape[-1])


def _takes_last(module: nn.Module) -> bool:
    """Whether the weight multiplies the last dimension of the inputs."""
    return isinstance(module, nn.Linear) or is_conv1d(module)


def _padded(module: nn.modules.conv._ConvNd, inputs: Tensor) -> Tensor:
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    return F.pad(inputs, module._reversed_padding_repeated_twice, mode)


def _windows(padded: Tensor, module: nn.modules.conv._ConvNd) -> Tensor:
    """[examples, channels, *kernel, *positions]: what the kernel sees where."""
    dimensions = len(module.kernel_size)
    for axis, (size, step, gap) in enumerate(
        zip(module.kernel_size, module.stride, module.dilation, strict=True), start=2
    ):
        padded = padded.unfold(axis, gap * (size - 1) + 1, step)[..., ::gap]
    kernel = range(2 + dimensions, 2 + 2 * dimensions)
    return padded.permute(0, 1, *kernel, *range(2, 2 + dimensions))


def _positions(padded: Tensor, module: nn.modules.conv._ConvNd) -> int:
    sizes = zip(padded.shape[2:], module.kernel_size, module.stride, module.dilation, strict=True)
    return int(torch.tensor([(length - gap * (size - 1) - 1) // step + 1 for length, size, step, gap in sizes]).prod())
