"""Dead units: those that masks of single weights leave unread, or with outputs of zero."""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pruning.masks import Masks
from pruning.parameters import unwrapped
from pruning.structure.choosing.channels import unit_masks
from pruning.structure.coupling.cost_terms import Kept
from pruning.structure.coupling.structure import Structure


def without_dead(model: nn.Module, masks: Mapping[str, Tensor], structure: Structure) -> Masks:
    """Extend `masks` over all that is left of dead units, so that `remove` takes them out. Outputs stay as they are.

    A unit is dead if nothing reads it (all weights that do are removed, or zero), or if it is zero (all that makes it
    is, bias and norm included). One that goes may leave others without a reader, and so on. The highest unit of a
    family whose units all are dead stays, as a layer cannot be empty.
    """
    model = unwrapped(model)
    weights = {name: p.detach() for name, p in model.named_parameters()}
    alive = {name: w != 0 if name not in masks else masks[name].to(w.device) & (w != 0) for name, w in weights.items()}
    kept = np.ones(structure.size, bool)
    while True:
        dead = _dead(structure, alive) & kept
        for family in structure.families:
            if not (kept & ~dead)[family.units].any():
                survivors = np.flatnonzero(kept[family.units])
                dead[family.first + survivors[-1]] = False
        if not dead.any():
            break
        kept &= ~dead
        for name, mask in unit_masks(structure, kept).items():
            alive[name] = alive[name] & mask.to(alive[name].device)
    if kept.all():
        return Masks(masks)
    units = unit_masks(structure, kept, next(iter(weights.values())).device)
    whole = {name: torch.ones_like(mask) for name, mask in units.items()} | dict(masks)
    return Masks({name: mask & units[name] if name in units else mask for name, mask in whole.items()})


def unread(structure: Structure, masks: Mapping[str, Tensor]) -> Kept:
    """[units]: those of which no path through kept weights leads to an output or to a buffer, whatever the weights are.

    Buffers are statistics: a unit over which a norm keeps some is read by it.
    """
    seen = np.zeros(structure.size, bool)
    for name in structure.tape.buffers:
        for units in structure.axes.get(name, ()):
            if units is not None:
                seen[units[units >= 0]] = True
    shapes = {name: structure.tape.shapes[structure.tape.tensors[name]] for name in structure.parameters}
    alive = {name: masks[name] if name in masks else torch.ones(shape) > 0 for name, shape in shapes.items()}
    kept = np.ones(structure.size, bool)
    while True:
        dead = _read_by_none(structure, alive) & kept & ~seen
        if not dead.any():
            return ~kept
        kept &= ~dead
        for name, mask in unit_masks(structure, kept).items():
            alive[name] = alive[name] & mask.to(alive[name].device)


def _dead(structure: Structure, alive: Mapping[str, Tensor]) -> Kept:
    """[units]: those that nothing reads, or whose outputs are zero."""
    made = np.zeros(structure.size, bool)
    for name, dim, units in _slots(structure, alive):
        if (name, dim) in structure.writes:
            made[units] = True
    return _read_by_none(structure, alive) | (~made & ~structure.nonzero_when_removed)


def _read_by_none(structure: Structure, alive: Mapping[str, Tensor]) -> Kept:
    """[units]: those whose readers all are removed."""
    read = np.zeros(structure.size, bool)
    has_reader = np.zeros(structure.size, bool)
    for name, dim, units in _slots(structure, alive):
        if (name, dim) in structure.reads:
            read[units] = True
    for name, dim in structure.reads:
        axis = structure.axes[name][dim]
        if axis is not None:
            has_reader[axis[axis >= 0]] = True
    return has_reader & ~read & ~structure.summed_elsewhere


def _slots(structure: Structure, alive: Mapping[str, Tensor]) -> Iterator[tuple[str, int, NDArray[np.int64]]]:
    """Yield, per tensor and dimension, the units of which anything is left there."""
    for name, mask in alive.items():
        for dim, units in enumerate(structure.axes[name]):
            if units is not None and (name, dim) not in structure.unmasked:
                others = [d for d in range(mask.dim()) if d != dim]
                lives = (mask.sum(others) > 0 if others else mask).cpu().numpy()
                yield name, dim, units[(units >= 0) & lives]
