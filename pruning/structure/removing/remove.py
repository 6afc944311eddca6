"""Masks become a smaller network: an ordinary module that gives the same outputs."""

from collections.abc import Mapping

import numpy as np
from torch import Tensor, nn
from torch.optim import Optimizer

from pruning.attachment import optimizers_in
from pruning.copying import copied
from pruning.errors import StructureError, first_line
from pruning.masks import Masks
from pruning.parameters import first_names, unwrapped
from pruning.structure.coupling.cost_terms import Kept
from pruning.structure.coupling.structure import Structure
from pruning.structure.removing.blocks import removed_blocks, skip_
from pruning.structure.removing.configurations import odd_names, settle_
from pruning.structure.removing.deleting import Left
from pruning.structure.removing.shrinking import adjust_, sliced
from pruning.structure.removing.verifying import TOLERANCE, first_difference, judged


def remove(
    model: nn.Module, masks: Mapping[str, Tensor], structure: Structure, *, verified: bool = True, lossy: bool = False
) -> nn.Module:
    """A new module of the same class without the units that `masks` remove; `model` stays as it is.

    Masks of single weights that are left stay zeros in it. Tied weights stay tied. A residual block of which the masks
    leave nothing (see `Depth`) becomes a `Skip`; in a model of transformers it is deleted from its list and the others
    are renumbered, where that is possible.

    The `config` of a model of transformers, or of one inside, gets the new sizes. Where none describes what is left, as
    where widths differ by layer, `save_pretrained` of the new module raises `StructureError`, and names `save`.

    A part of a larger model, as the backbone of a detector whose own code cannot be traced, is removed from alone, with
    the inputs that it gets there: `model.backbone = remove(model.backbone, masks, trace(model.backbone, images))`. What
    it returns keeps its shape, so that the rest fits.

    Args:
        model: the traced one, or one of the same class and shapes.
        masks: a unit goes if they remove all of its slices, in weights, biases and norms: those of
            `Channels(structure)` do. Units of which anything is left stay. The directions of a weight norm
            (`Structure.unmasked`) go with their units, and are left to them until then: none may be zero.
        verified: compare it with the masked network on the example inputs.
        lossy: accept any difference, for a structure that was traced so; see `verify` for its size.

    Raises:
        StructureError: the masks do not fit, or the smaller network differs from the masked one by more than 1e-5
            relative, in float64 where float32 fails; it names the module where they part.
    """
    model = unwrapped(model)
    masks = _by_first_name(model, masks)
    _check_masks(model, masks, structure)
    blocks = removed_blocks(model, masks, structure.inputs)
    kept = kept_units(masks, structure, blocks)

    def replacement(name: str, tensor: Tensor) -> Tensor:
        mask = masks.get(name)
        gone = None if mask is None else ~mask.to(tensor.device)
        values = tensor if gone is None else nn.Parameter(tensor.detach().masked_fill(gone, 0))
        small = sliced(structure, kept, name, values)
        return small.requires_grad_(tensor.requires_grad) if isinstance(tensor, nn.Parameter) else small

    small = copied(model, replacement)
    skip_(small, blocks)
    adjust_(small, structure, kept)
    left: Left = {}
    if blocks or not kept.all():
        left = settle_(small, odd_names(model), inputs=structure.inputs)
    if verified:
        _check(model, masks, small, structure, kept, lossy, left)
    return small


def remove_(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    structure: Structure,
    *,
    optimizer: Optimizer | None = None,
    verified: bool = True,
    lossy: bool = False,
) -> None:
    """Remove units in place: parameters stay the same objects, so `optimizer`, whose state is sliced too, goes on.

    Everything else is as in `remove`. Detach masks first, and attach again those that leave part of a unit. Where
    blocks are deleted from their list, the parameters of later ones have other names than in `masks`.
    """
    model = unwrapped(model)
    masks = _by_first_name(model, masks)
    _check_masks(model, masks, structure)
    blocks = removed_blocks(model, masks, structure.inputs)
    kept = kept_units(masks, structure, blocks)
    if verified:  # before anything is changed
        remove(model, masks, structure, verified=True, lossy=lossy)
    odd = odd_names(model)
    Masks(masks).apply_(model)
    skip_(model, blocks)
    optimizers = () if optimizer is None else optimizers_in(optimizer)
    for one in optimizers:
        _forget_(one, model)
    for name, parameter in model.named_parameters():
        shape = parameter.shape
        gradient = parameter.grad
        parameter.grad = None
        parameter.data = sliced(structure, kept, name, parameter).data
        if gradient is not None:
            parameter.grad = sliced(structure, kept, name, gradient)
        for one in optimizers:
            state = one.state.get(parameter, {})
            for key, value in state.items():
                if isinstance(value, Tensor) and value.shape == shape:
                    state[key] = sliced(structure, kept, name, value).data
    smaller = {id(buffer): sliced(structure, kept, name, buffer) for name, buffer in model.named_buffers()}
    for owner in model.modules():
        owner._buffers.update({key: smaller[id(b)] for key, b in owner._buffers.items() if b is not None})
    adjust_(model, structure, kept)
    if blocks or not kept.all():
        settle_(model, odd, inputs=structure.inputs)


def kept_units(masks: Mapping[str, Tensor], structure: Structure, blocks: tuple[str, ...] = ()) -> Kept:
    """[units]: False where the masks remove all slices of a unit.

    A family that would be empty keeps its first unit, with zeros in it, as a layer cannot be empty; families in
    `blocks`, which go as a whole, keep all.
    """
    kept = np.zeros(structure.size, bool)
    for name in structure.parameters:
        for dim, units in enumerate(structure.axes[name]):
            if units is None or (name, dim) in structure.unmasked:
                continue
            mask = masks.get(name)
            if mask is None:
                alive = np.ones(len(units), bool)
            else:
                others = [d for d in range(mask.dim()) if d != dim]
                alive = (mask.any(others[0]) if len(others) == 1 else _any(mask, others)).cpu().numpy()
            kept[units[(units >= 0) & alive]] = True
    inside = tuple(f"{block}." for block in blocks)
    for family in structure.families:
        if all(name.startswith(inside) for name, _ in family.members):
            kept[family.units] = True
        elif not kept[family.units].any():
            kept[family.first] = True
    return kept


def _any(mask: Tensor, dims: list[int]) -> Tensor:
    return mask.sum(dims) > 0 if dims else mask


def _by_first_name(model: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Masks under the first names of tied parameters, those that the structure has."""
    names = first_names(model)
    for name in masks:
        if name not in names:
            raise StructureError(f"{name}: is no parameter of the model: give masks of its own")
    found: dict[str, Tensor] = {}
    for name, mask in Masks(masks).items():
        found[names[name]] = found[names[name]] & mask if names[name] in found else mask
    return found


def _forget_(optimizer: Optimizer, model: nn.Module) -> None:
    """Take parameters that the model no longer has, those of removed blocks, out of the optimizer."""
    left = {id(parameter) for parameter in model.parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if id(parameter) not in left:
                optimizer.state.pop(parameter, None)
        group["params"] = [parameter for parameter in group["params"] if id(parameter) in left]


def _check_masks(model: nn.Module, masks: Mapping[str, Tensor], structure: Structure) -> None:
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    traced = {name: structure.tape.shapes[structure.tape.tensors[name]] for name in structure.parameters}
    for name in sorted(shapes.keys() ^ traced.keys()):
        raise StructureError(f"{name}: only in one of the model and the traced one: trace this model")
    for name, shape in traced.items():
        if shapes[name] != shape:
            raise StructureError(f"{name}: shape {list(shapes[name])}, traced as {list(shape)}: trace this model")
        if name in masks and tuple(masks[name].shape) != shape:
            raise StructureError(f"{name}: a mask of shape {list(masks[name].shape)}, the parameter has {list(shape)}")


def _check(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    small: nn.Module,
    structure: Structure,
    kept: Kept,
    lossy: bool,
    left: Left,
) -> None:
    try:
        verdict = judged(model, masks, small, structure.inputs)
    except Exception as error:
        raise StructureError(
            f"{type(model).__name__}: the smaller network does not run on the example inputs "
            f"({first_line(error)}): keep more units, as with minimum= or exclude=, and report the model"
        ) from error
    if verdict.difference <= TOLERANCE or (lossy and np.isfinite(verdict.difference)):
        return
    if structure.lossy:
        hint = "the structure is lossy: pass lossy=True to accept that"
    else:
        hint = "keep the units of this layer, as in Channels(structure, exclude='name*')"
    where = first_difference(model, masks, small, structure, kept, left, double=verdict.double)
    undecided = "" if verdict.failure is None else f" (float64 could not decide: {verdict.failure})"
    raise StructureError(
        f"{where or type(model).__name__}: without the removed units the outputs differ by {verdict.difference:.2g} of "
        f"the largest{undecided}, and this is where it begins: {hint}"
    )
