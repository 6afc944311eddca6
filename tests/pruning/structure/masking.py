"""Masks of units chosen at random, and families at a glance."""

import numpy as np

from pruning import Masks
from pruning.structure import Structure
from pruning.structure.choosing.channels import unit_masks
from pruning.structure.coupling.cost_terms import Kept


def some_kept(structure: Structure, seed: int, share: float = 0.6) -> Kept:
    """About this share of the units, at least one of each family."""
    rng = np.random.default_rng(seed)
    kept = rng.random(structure.size) < share
    for family in structure.families:
        if not kept[family.units].any():
            kept[family.first + rng.integers(family.size)] = True
    return kept


def masks_of(structure: Structure, kept: Kept) -> Masks:
    return Masks(unit_masks(structure, kept))


def families(structure: Structure) -> dict[str, tuple[str, int]]:
    """Name → (kind, size)."""
    return {family.name: (family.kind, family.size) for family in structure.families}
