"""Removed blocks are deleted from their lists, and those that are left renumbered, where the model allows it."""

from collections.abc import Iterator, Mapping

from torch import nn

from pruning.errors import StructureError
from pruning.structure.removing.blocks import Skip

Left = Mapping[str, tuple[int, ...]]
"""Name of a list of blocks → the places, in the list as it was, of those that are left."""


_Known = dict[int, int]
_KNOWN = "blocks_left"
"""The attribute of a list: new place → the one in the list as it was constructed. A dictionary, since whole numbers and
tuples of them are taken for sizes."""

Before = dict[str, tuple[list[nn.Module], _Known | None]]
"""Name of a list → the blocks in it, and what it knew."""


def skipped(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """The lists in `model` with a `Skip` in them, and what is left there."""
    return {
        name: tuple(i for i, block in enumerate(module) if not isinstance(block, Skip))
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and any(isinstance(block, Skip) for block in module)
    }


def saved_places(model: nn.Module) -> dict[str, list[int]]:
    """The lists that were shortened, and the places of their blocks in the network as it was constructed."""
    return {
        name: list(vars(module)[_KNOWN].values())
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and _KNOWN in vars(module)
    }


def to_delete(model: nn.Module, places: Mapping[str, list[int]]) -> dict[str, tuple[int, ...]]:
    """Which lists of `model`, from its original constructor, are longer than in the network that was saved."""
    found = {}
    modules = dict(model.named_modules())
    for name, left in places.items():
        blocks = modules.get(name)
        if not isinstance(blocks, nn.ModuleList) or (len(blocks) != len(left) and max(left, default=0) >= len(blocks)):
            raise StructureError(f"{name}: is no list of so many blocks: build the model as it was built before")
        if len(blocks) != len(left):
            found[name] = tuple(left)
    return found


def delete_(model: nn.Module, left: Left) -> Before:
    """Leave the blocks at these places in their lists; returns how they were."""
    before: Before = {}
    for name, places in left.items():
        blocks = model.get_submodule(name)
        assert isinstance(blocks, nn.ModuleList)
        known = vars(blocks).get(_KNOWN)
        before[name] = list(blocks), known
        _fill_(blocks, [before[name][0][i] for i in places])
        vars(blocks)[_KNOWN] = {new: known[old] if known else old for new, old in enumerate(places)}
    return before


def restore_(model: nn.Module, before: Before) -> None:
    """Undo `delete_`."""
    for name, (modules, known) in before.items():
        blocks = model.get_submodule(name)
        assert isinstance(blocks, nn.ModuleList)
        _fill_(blocks, modules)
        del vars(blocks)[_KNOWN]
        if known is not None:
            vars(blocks)[_KNOWN] = known


def _fill_(blocks: nn.ModuleList, modules: list[nn.Module]) -> None:
    blocks._modules.clear()
    blocks.extend(modules)


def numbered(model: nn.Module, left: Left) -> Iterator[tuple[str, nn.Module, int, int]]:
    """(name, module, old place, new place) of all modules in the blocks of shortened lists."""
    for name, places in left.items():
        for new, old in enumerate(places):
            block = f"{name}.{new}"
            for inner, module in model.get_submodule(block).named_modules():
                yield (f"{block}.{inner}" if inner else block), module, old, new


def original_name(name: str, left: Left) -> str:
    """The name that a module, or a parameter, had before blocks were deleted."""
    for blocks, places in left.items():
        if name.startswith(f"{blocks}."):
            number, dot, rest = name[len(blocks) + 1 :].partition(".")
            return f"{blocks}.{places[int(number)]}{dot}{rest}"
    return name
