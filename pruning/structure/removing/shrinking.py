"""The smaller module: its tensors sliced, and the integers that its modules remember adjusted."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from pruning.modes import kept_modes
from pruning.parameters import is_conv1d
from pruning.structure.coupling.cost_terms import Kept, left
from pruning.structure.coupling.structure import Structure
from pruning.structure.removing.attention import PrunedAttention


def kept_indices(structure: Structure, name: str, kept: Kept) -> Iterator[tuple[int, Tensor]]:
    """(dimension, the indices that stay) of the dimensions of a tensor that lose some."""
    for dim, units in enumerate(structure.axes.get(name, ())):
        if units is not None:
            stays = left(units, kept)
            if not stays.all():
                yield dim, torch.from_numpy(np.flatnonzero(stays))


def sliced(structure: Structure, kept: Kept, name: str, tensor: Tensor) -> Tensor:
    """What is left of a tensor named `name`, or of one of the same shape; a copy."""
    values = tensor.detach()
    for dim, indices in kept_indices(structure, name, kept):
        values = values.index_select(dim, indices.to(values.device))
    if values.layout is not torch.strided or values.data_ptr() == tensor.data_ptr():
        values = values.clone()
    return nn.Parameter(values, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else values


Places = dict[tuple[Any, ...], tuple[int, int]]
"""Where a size occurs in the work of a module: which of its calls, tensors, dimensions → size before and after."""


def adjust_(small: nn.Module, structure: Structure, kept: Kept) -> frozenset[tuple[type, str]]:
    """Set the sizes that modules keep as attributes, by their tensors and by the shapes that they worked with.

    Returns the (class, attribute) pairs that changed, but for modules whose sizes follow from their tensors.
    """
    with kept_modes(small):
        small.eval()  # reading a weight under spectral_norm changes its vectors in training
        return _adjusted_(small, structure, kept)


def _adjusted_(small: nn.Module, structure: Structure, kept: Kept) -> frozenset[tuple[type, str]]:
    places = _places(structure, kept)
    _weigh_again_(small)
    others: dict[type[nn.Module], list[tuple[nn.Module, Places]]] = {}
    for name, module in reversed(list(small.named_modules())):  # those within first
        if not _adjust_known_(module):
            around = name
            while around and around not in places:  # a method of it may be called, not itself
                around = around.rpartition(".")[0]
            others.setdefault(type(module), []).append((module, places.get(around, {})))
    return frozenset(
        (kind, attribute)
        for kind, alike in others.items()
        for attribute in {attribute for module, _ in alike for attribute in vars(module)}
        if (kind, attribute) not in structure.constants and _adjust_attribute_(attribute, alike)
    )


def _weigh_again_(small: nn.Module) -> None:
    """Compute weights that hooks make, as torch.nn.utils.weight_norm does, from what is left of their parts."""
    with torch.no_grad():
        for module in small.modules():
            for hook in module._forward_pre_hooks.values():
                if isinstance(hook, SpectralNorm):
                    setattr(module, hook.name, hook.compute_weight(module, do_power_iteration=False))
                elif isinstance(hook, WeightNorm):
                    setattr(module, hook.name, hook.compute_weight(module))


def _places(structure: Structure, kept: Kept) -> dict[str, Places]:
    """Module name → its places: in the calls that it made itself, and in its own parameters."""
    found: dict[str, Places] = {}
    made: dict[str, int] = {}
    tape = structure.tape
    for call in tape.calls:
        if not tape.counts(call):
            continue
        number = made[call.module] = made.get(call.module, 0) + 1
        own = found.setdefault(call.module, {})
        for i, value in enumerate((*call.outputs, *(ref.value for ref in call.refs))):
            for dim, (size, axis) in enumerate(zip(tape.shapes[value], structure.labels[value], strict=True)):
                after = size if axis is None else int(left(structure.unit[axis.labels], kept).sum())
                own[number, call.operator, i, dim] = size, after
    for name in structure.parameters:
        module, _, own_name = name.rpartition(".")
        for dim, size in enumerate(tape.shapes[tape.tensors[name]]):
            units = structure.axes[name][dim]
            after = size if units is None else int(left(units, kept).sum())
            found.setdefault(module, {})[own_name, dim] = size, after
    return found


def _adjust_attribute_(attribute: str, alike: list[tuple[nn.Module, Places]]) -> bool:
    """Set an attribute of all modules of one class if it is the size at some place in each of them; whether it changed.

    In one module the number of heads may happen to be equal to a window's width; in all of them it hardly is.
    """
    values: list[tuple[nn.Module, Places, Any]] = [(m, places, vars(m).get(attribute)) for m, places in alike]
    if not all(is_whole(value) for _, _, value in values):
        return False
    different = False
    for length in {len(value) if isinstance(value, tuple | list) else None for _, _, value in values}:
        if length is None:
            own = [v for v in values if isinstance(v[2], int)]
            changed: list[Any] = _after([(places, value) for _, places, value in own])
        else:
            own = [v for v in values if isinstance(v[2], tuple | list) and len(v[2]) == length]
            parts = [_after([(places, value[i]) for _, places, value in own]) for i in range(length)]
            changed = [type(value)(part) for (_, _, value), part in zip(own, zip(*parts, strict=True), strict=True)]
        for (module, _, value), new in zip(own, changed, strict=True):
            if new != value:
                setattr(module, attribute, new)
                different = True
    return different


def is_whole(value: Any) -> bool:
    """Whether this may be sizes: an integer, or several."""
    if type(value) in (tuple, list):
        return bool(value) and all(type(part) is int for part in value)
    return type(value) is int


def _after(values: list[tuple[Places, int]]) -> list[int]:
    """The sizes afterwards of values that are at the same places; as they are if that is not clear, or 1."""
    common: set[tuple[Any, ...]] | None = None
    for places, value in values:
        if value != 1 and places:
            here = {place for place, (size, _) in places.items() if size == value}
            common = here if common is None else common & here
    found = []
    for places, value in values:
        fewer = {places[place][1] for place in common or () if place in places} - {value}
        found.append(fewer.pop() if len(fewer) == 1 and value != 1 else value)
    return found


def _adjust_known_(module: nn.Module) -> bool:
    """Set the sizes of torch's own modules, and of those derived from them; False for others."""
    if isinstance(module, nn.MultiheadAttention) and type(module) not in (nn.MultiheadAttention, PrunedAttention):
        return False  # it has a forward pass of its own
    if isinstance(module, nn.GroupNorm | nn.LayerNorm | nn.RMSNorm) and not list(module.parameters()):
        return False  # its sizes follow from no tensor
    for kinds, adjust in _KNOWN:
        if isinstance(module, kinds):
            adjust(module)
            return True
    if is_conv1d(module):
        module.nx, module.nf = module.weight.shape  # type: ignore[assignment,misc]  # to torch, a tensor or module
        return True
    return False


def _adjust_linear_(module: nn.Linear) -> None:
    module.out_features, module.in_features = module.weight.shape


def _adjust_norm_(module: _NormBase) -> None:
    counted = module.weight if module.weight is not None else module.running_mean
    if counted is not None:
        module.num_features = counted.numel()


def _adjust_layer_norm_(module: nn.LayerNorm | nn.RMSNorm) -> None:
    module.normalized_shape = tuple(module.weight.shape)


def _adjust_group_norm_(module: nn.GroupNorm) -> None:
    alone = module.num_groups == module.num_channels
    module.num_channels = module.weight.numel()
    module.num_groups = module.num_channels if alone else module.num_groups


def _adjust_embedding_(module: nn.Embedding) -> None:
    module.embedding_dim = module.weight.shape[1]


def _adjust_prelu_(module: nn.PReLU) -> None:
    module.num_parameters = module.weight.numel()


def _adjust_recurrent_(module: nn.RNNBase) -> None:
    own = dict(module.named_parameters(recurse=False))
    rows, columns = own["weight_hh_l0"].shape
    gates = {"LSTM": 4, "GRU": 3}.get(module.mode, 1)
    module.hidden_size, module.input_size = rows // gates, own["weight_ih_l0"].shape[1]
    module.proj_size = columns if module.proj_size else 0
    module.flatten_parameters()


def _adjust_convolution_(module: _ConvNd) -> None:
    first, second = module.weight.shape[:2]
    depthwise = module.groups == module.in_channels > 1  # of one input channel any convolution has as many groups
    if isinstance(module, _ConvTransposeNd):
        module.groups = first if depthwise else module.groups
        module.in_channels, module.out_channels = first, second * module.groups
    else:
        module.groups = first * module.groups // module.out_channels if depthwise else module.groups
        module.out_channels, module.in_channels = first, second * module.groups


def _without_nesting_(module: nn.TransformerEncoder) -> None:
    """Turn off nested tensors of padded examples, which torch's own attention alone can take."""
    if any(isinstance(part, PrunedAttention) for part in module.modules()):
        module.use_nested_tensor = module.enable_nested_tensor = False


_KNOWN: tuple[tuple[Any, Any], ...] = (
    (nn.Linear, _adjust_linear_),
    (_ConvNd, _adjust_convolution_),
    (_NormBase, _adjust_norm_),
    ((nn.LayerNorm, nn.RMSNorm), _adjust_layer_norm_),
    (nn.GroupNorm, _adjust_group_norm_),
    (nn.Embedding, _adjust_embedding_),
    (nn.PReLU, _adjust_prelu_),
    (nn.RNNBase, _adjust_recurrent_),
    (nn.MultiheadAttention, PrunedAttention.take_over_),
    (nn.TransformerEncoder, _without_nesting_),
)
"""Modules by class, and how their sizes follow from their tensors."""
