"""What each family of units adds to the time of a forward pass on this machine."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from pruning.cost import latency
from pruning.errors import StructureError
from pruning.inputs import Inputs
from pruning.masks import Masks
from pruning.parameters import unwrapped
from pruning.structure.choosing.channels import unit_masks
from pruning.structure.coupling.cost_terms import Kept
from pruning.structure.coupling.structure import Structure
from pruning.structure.removing.remove import remove


@dataclass(frozen=True)
class LatencyTable:
    """What each family costs in time, by how many of its units are left.

    Attributes:
        structure: whose units they are.
        whole: milliseconds of the whole model.
        counts: family by family, how many units were left, in ascending order; the last is all of them.
        saved: milliseconds that this saved, the other families being whole; never less with fewer units.
        threads: on how many threads it was measured.
    """

    structure: Structure
    whole: float
    counts: tuple[tuple[int, ...], ...]
    saved: tuple[tuple[float, ...], ...]
    threads: int

    def cost(self, kept: Kept) -> float:
        """Milliseconds with the `kept` units alone: savings interpolated in each family and added up."""
        found = self.whole
        for family, counts, saved in zip(self.structure.families, self.counts, self.saved, strict=True):
            found -= float(np.interp(int(kept[family.units].sum()), counts, saved))
        return max(found, 0.0)


def measure_latency(
    model: nn.Module,
    structure: Structure,
    inputs: Inputs | None = None,
    *,
    shares: Sequence[float] = (0.25, 0.5, 0.75),
    repeats: int = 15,
) -> LatencyTable:
    """Time `model` with each family reduced to some shares of its units, on this machine and its current threads.

    Args:
        inputs: what it is to be fast on, mostly a batch; those that were traced if None.
        shares: of each family's units, in (0, 1); one more is at least one unit, and the last is all.
    """
    if not shares or any(not 0 < share < 1 for share in shares):
        raise StructureError(f"shares={tuple(shares)}: give some between 0 and 1")
    model = unwrapped(model)
    inputs = structure.inputs if inputs is None else inputs
    whole = latency(model, inputs, repeats=repeats)
    counts, saved = [], []
    for family in structure.families:
        points = sorted({max(1, round(share * family.size)) for share in shares} | {1})
        gains = []
        for count in points:
            kept = np.ones(structure.size, bool)
            kept[family.first + count : family.units.stop] = False
            masks = Masks(unit_masks(structure, kept, next(model.parameters()).device))
            small = remove(model, masks, structure, verified=False)
            gains.append(whole - latency(small, inputs, repeats=repeats))
        # timings are noisy: fewer units never save less than more of them
        steady = np.maximum.accumulate(np.maximum(gains[::-1], 0.0))[::-1]
        counts.append((*points, family.size))
        saved.append((*(float(gain) for gain in steady), 0.0))
    return LatencyTable(structure, whole, tuple(counts), tuple(saved), torch.get_num_threads())
