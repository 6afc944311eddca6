"""A deployed network on disk, without pickle: kept values and their places where it is sparse."""

from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from pruning import snapshot
from pruning.errors import ArtefactError
from pruning.execution.cutting import Cut
from pruning.execution.modules import Sparse
from pruning.execution.packing import PackedLinear, pack_, packable
from pruning.execution.switching import candidates, sparse_execution
from pruning.parameters import unwrapped, within
from pruning.structure.removing.saving import described, restored_

_FIELDS = {"structure", "sparse"}


def save(model: nn.Module, path: str | PathLike[str]) -> None:
    """Write a network with sparse layers, and with units removed or not, to one safetensors file.

    Raises:
        OSError: it cannot be written.
    """
    model = unwrapped(model)
    structure = described(model)
    sparse, packed = {}, []
    for name, module in model.named_modules():
        if isinstance(module, Cut):
            structure["classes"][name] = module.whole_class.__qualname__
        if isinstance(module, PackedLinear):
            structure["classes"][name] = nn.Linear.__qualname__
            packed.append(name)
        if isinstance(module, Sparse):
            structure["classes"][name] = type(module).dense_class.__qualname__
            structure["sizes"][name].pop("row_major")
            key = within(name, "values")
            if key in structure["tensors"]:  # not the second layer of a tied pair
                sparse[name] = {
                    "shape": list(module.dense_shape),
                    "places": _narrow(module.pattern.flat(), module.dense_shape.numel()),
                    "values": structure["tensors"].pop(key),
                    "few": module.pattern.few,
                }
    snapshot.save(path, {"structure": structure, "sparse": sparse, "packed": packed})


def load(path: str | PathLike[str], model: nn.Module) -> nn.Module:
    """Make `model` the network in the file, in place, and return it in eval mode.

    Layers that cannot run sparsely, or packed, on the device of `model` are dense, with zeros.

    Args:
        model: from the original constructor, with any weights; what is on the meta device comes to the CPU.

    Raises:
        ArtefactError: the file is missing, cut, damaged or foreign.
        StructureError: `model` is not of the class and form that was saved.
    """
    tree = snapshot.load(path)
    if not isinstance(tree, dict) or set(tree) - {"packed"} != _FIELDS:  # which came later
        raise ArtefactError(f"{path}: is a snapshot, but not of a deployed network: give one from Deployed.save")
    structure, masks, few = tree["structure"], {}, {}
    for name, kept in tree["sparse"].items():
        key = within(name, "weight")
        structure["tensors"][key], masks[key] = _dense(kept)
        few[key] = kept.get("few", 0)
    model = restored_(model, structure)
    if masks:
        sparse_execution(model, masks, layers={name: few[name] for name in candidates(model, masks)})
    for name in tree.get("packed", ()):
        module = unwrapped(model).get_submodule(name)
        if packable(module):
            pack_(module)
    return model.eval()


def _dense(kept: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """The weight with zeros, and its mask."""
    values, places = kept["values"], kept["places"].long()
    weight = values.new_zeros(kept["shape"])
    weight.view(-1)[places] = values
    mask = torch.zeros(kept["shape"], dtype=torch.bool, device=places.device)
    mask.view(-1)[places] = True
    return weight, mask


def _narrow(places: Tensor, end: int) -> Tensor:
    return places.int() if end <= 2**31 else places
