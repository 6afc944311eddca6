"""A removed network on disk, without pickle: its tensors, and the sizes that its modules remember.

The class stays the user's: the original constructor makes the module, and the file makes it small.
"""

from os import PathLike
from typing import Any

from torch import Tensor, nn

from pruning import snapshot
from pruning.errors import ArtefactError, StructureError
from pruning.parameters import unwrapped
from pruning.structure.removing.attention import PrunedAttention
from pruning.structure.removing.blocks import Skip, skip_
from pruning.structure.removing.configurations import odd_names, settle_
from pruning.structure.removing.deleting import delete_, saved_places, to_delete

_FIELDS = {"tensors", "sizes", "classes"}


def save(small: nn.Module, path: str | PathLike[str]) -> None:
    """Write a removed network to one safetensors file. Raises `OSError` where it cannot be written."""
    snapshot.save(path, described(small))


def load(path: str | PathLike[str], model: nn.Module) -> nn.Module:
    """Make `model` the network in the file, in place, and return it.

    Args:
        model: from the original constructor, with any weights; give an optimizer the parameters that it
            has afterwards. What is on the meta device comes to the CPU.

    Raises:
        ArtefactError: the file is missing, cut, damaged or foreign.
        StructureError: `model` is not of the class and form that was saved.
    """
    tree = snapshot.load(path)
    if not isinstance(tree, dict) or set(tree) - {"blocks"} != _FIELDS:
        raise ArtefactError(f"{path}: is a snapshot, but not of a removed network: give one from structure.save")
    return restored_(model, tree)


def described(small: nn.Module) -> dict[str, Any]:
    """All that `restored_` needs of a removed network: its tensors, sizes and classes, by name."""
    small = unwrapped(small)
    return {
        "tensors": dict(small.named_parameters()) | dict(small.named_buffers()),
        "sizes": {name: _sizes(module) for name, module in small.named_modules()},
        "classes": {name: type(module).__qualname__ for name, module in small.named_modules()},
        "blocks": saved_places(small),
    }


def restored_(model: nn.Module, tree: dict[str, Any]) -> nn.Module:
    """Make `model`, from the original constructor, the network that was `described`, in place, and return it."""
    model = unwrapped(model)
    tensors: dict[str, Tensor] = tree["tensors"]
    odd, left = odd_names(model), to_delete(model, tree.get("blocks", {}))
    delete_(model, left)
    skip_(model, tuple(name for name, kind in tree["classes"].items() if kind == Skip.__qualname__))
    modules = dict(model.named_modules())
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    saved_names = tensors.keys() | tree["classes"].keys()
    for name in sorted(saved_names ^ (own.keys() | modules.keys()), key=lambda name: (name not in saved_names, name)):
        where = "the file" if name in saved_names else "the model"
        raise StructureError(f"{name}: only in {where}: build the model as it was built before it was pruned")
    for name, module in modules.items():
        saved, kind = tree["classes"][name], type(module).__qualname__
        if saved != kind:
            if saved != PrunedAttention.__qualname__ or not isinstance(module, nn.MultiheadAttention):
                raise StructureError(
                    f"{name}: is a {kind}, saved was a {saved}: build the model as it was built before"
                )
            module.__class__ = PrunedAttention
        for attribute, value in tree["sizes"][name].items():
            setattr(module, attribute, value)
    made: dict[int, Any] = {}
    for name, tensor in own.items():
        meta = tensor.device.type == "meta"
        new = tensors[name] if meta else tensors[name].to(tensor.device)
        if isinstance(tensor, nn.Parameter) and not meta:
            tensor.data = new
            new = tensor
        made[id(tensor)] = nn.Parameter(new, tensor.requires_grad) if isinstance(tensor, nn.Parameter) and meta else new
    for module in modules.values():  # under all names, where tensors are tied
        module._parameters.update({key: made[id(p)] for key, p in module._parameters.items() if p is not None})
        module._buffers.update({key: made[id(b)] for key, b in module._buffers.items() if b is not None})
    for module in modules.values():
        if isinstance(module, nn.RNNBase):
            module.flatten_parameters()
    settle_(model, odd, left)
    return model


def _sizes(module: nn.Module) -> dict[str, Any]:
    """All whole numbers that a module has as attributes, and sequences of them."""
    return {name: value for name, value in vars(module).items() if _whole(value)}


def _whole(value: Any) -> bool:
    if type(value) in (tuple, list):
        return all(_whole(part) for part in value)
    return type(value) in (int, bool)
