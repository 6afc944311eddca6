"""Densities of blocks by their outliers: a block in which few scores tower over the rest loses more of its weights."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from pruning.allocation import Allocation, PerRow, check_density
from pruning.competition import Competition
from pruning.errors import AllocationError
from pruning.granularity import Units


def owl_densities(
    scores: Mapping[str, Tensor], density: float, multiple: float = 5.0, spread: float = 0.08
) -> dict[str, float]:
    """The density of each tensor, the same for all of a block. Yin et al. 2023 (OWL), section 3 and algorithm 1.

    The outlier share D of a block is that of its scores above `multiple` times their mean. Densities rise linearly with
    D, over an interval of width 2 · `spread`, whose place is such that they are `density` of all weights.

    Args:
        scores: of the dense network; in the paper those of `pruning.scorers.wanda`. The block of a tensor is its name
            up to the first number: all `model.layers.3.*` are one; without a number it is a block of its own. So are
            all tensors by their names within one block: call this before `pruning.sequential.sequentially`, not in it.
        density: of all weights, in (0, 1].
        multiple: M of the paper, above 0.
        spread: λ of the paper, at least 0.

    Raises:
        AllocationError: a value out of its range, or a block whose density would not lie in (0, 1].
    """
    if not scores:
        raise AllocationError("OWL: no scores to share a density by")
    if not 0 < multiple < math.inf or not 0 <= spread < math.inf:
        raise AllocationError(f"OWL: multiple={multiple}, spread={spread}: give one above 0, and one of at least 0")
    members: dict[str, list[str]] = {}
    for name in scores:
        members.setdefault(_block(name), []).append(name)
    shares = {block: _outliers([scores[name] for name in names], multiple) for block, names in members.items()}
    low, high = min(shares.values()), max(shares.values())
    raised = {
        block: 2 * spread * (share - low) / (high - low) if high > low else 0.0 for block, share in shares.items()
    }
    sizes = {block: sum(scores[name].numel() for name in names) for block, names in members.items()}
    mean = sum(raised[block] * size for block, size in sizes.items()) / sum(sizes.values())
    found: dict[str, float] = {}
    for block, names in members.items():
        own = check_density(density) + raised[block] - mean
        if not 0 < own <= 1:
            raise AllocationError(
                f"{block}: OWL would keep {own:.3g} of it: ask for another density, or a smaller spread"
            )
        found |= dict.fromkeys(names, own)
    return {name: found[name] for name in scores}


@dataclass(frozen=True)
class OWL:
    """Blocks get densities by the outliers among their scores; within a block `inner` shares its density out.

    The scores are those that units are pruned by, as in the paper where both are Wanda's. Meant for the dense network:
    what is removed already counts with its score.
    """

    multiple: float = 5.0
    spread: float = 0.08
    inner: Allocation = field(default_factory=PerRow)

    def groups(self, units: Mapping[str, Units], density: float | None) -> list[Competition]:
        if density is None:
            raise AllocationError("density is missing: OWL shares one out among blocks")
        scores = {name: unit.scores for name, unit in units.items()}
        densities = owl_densities(scores, density, self.multiple, self.spread)
        return [group for name, unit in units.items() for group in self.inner.groups({name: unit}, densities[name])]


def _block(name: str) -> str:
    """`model.layers.3.mlp.up_proj.weight` → `model.layers.3`; a name without a number is a block of its own."""
    found = re.match(r"(?:.*?\.)??\d+(?=\.)", name)
    return found[0] if found else name


def _outliers(scores: list[Tensor], multiple: float) -> float:
    total = sum(score.numel() for score in scores)
    mean = sum(float(score.double().sum()) for score in scores) / total
    return sum(int((score > multiple * mean).sum()) for score in scores) / total
