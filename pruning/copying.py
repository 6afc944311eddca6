"""Copies of networks: with the same values, without values, or with tensors of another shape."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pruning.errors import StructureError, first_line
from pruning.inputs import tensors_in
from pruning.modes import kept_modes


def on_meta(model: nn.Module, shape: Callable[[str, Tensor], Sequence[int]] | None = None) -> nn.Module:
    """A copy of `model` whose tensors have no values; `shape` may give others than they have."""

    def empty(name: str, tensor: Tensor) -> Tensor:
        if tensor.layout is not torch.strided:
            made = tensor.detach().to("meta")
        elif shape is None:
            made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
        else:
            made = torch.empty(tuple(shape(name, tensor)), dtype=tensor.dtype, device="meta")
        return nn.Parameter(made, requires_grad=False) if isinstance(tensor, nn.Parameter) else made

    return copied(model, empty)


def cloned(model: nn.Module) -> nn.Module:
    """A copy of `model` with the same values, that nothing of its graphs or caches follows."""

    def twin(_: str, tensor: Tensor) -> Tensor:
        made = tensor.detach().clone()
        return nn.Parameter(made, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else made

    return copied(model, twin)


def copied(model: nn.Module, tensor: Callable[[str, Tensor], Tensor]) -> nn.Module:
    """A copy of `model` with what `tensor` gives for each of its parameters and buffers, whose copies are not made.

    What modules cache between calls goes, where they drop it when they change to training mode.
    """
    memo: dict[int, Any] = {id(old): tensor(name, old) for name, old in model.named_parameters()}
    memo |= {id(old): tensor(name, old) for name, old in model.named_buffers()}
    internal = vars(nn.Module()).keys()
    for module in model.modules():  # what a forward pass with gradients left behind
        others = [value for name, value in vars(module).items() if name not in internal]
        memo |= {id(old): old.detach() for old in tensors_in(others) if old.grad_fn is not None}
    try:
        small = copy.deepcopy(model, memo)
    except Exception as error:
        raise StructureError(
            f"{type(model).__name__}: cannot be copied ({type(error).__name__}: {first_line(error)}): take what has "
            "no copy, as locks, files and scripted modules, out of it"
        ) from error
    with kept_modes(small):
        small.train(True)
    return small
