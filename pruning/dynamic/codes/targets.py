"""How many units codes are drawn to: by family, or by all families that compete."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from pruning.allocation import Allocation
from pruning.competition import Group
from pruning.errors import AllocationError, GranularityError
from pruning.granularity import Units


@dataclass(frozen=True)
class Target:
    """Families whose codes have one term in the penalty, and how many of their units are to stay."""

    names: tuple[str, ...]
    keep: int
    size: int


def targets_of(units: Mapping[str, Units], allocation: Allocation, density: float | None) -> dict[str, Target]:
    """Family → its target, of all units, and no more than live: a round before may have left fewer than it was to.

    Raises:
        AllocationError: the allocation needs scores, or what families keep in any case (`minimum`) is more.
        GranularityError: units of several families, or several of one, would go together.
    """
    if any(unit.each > 1 for unit in units.values()):
        raise GranularityError("auto_pruner: a code keeps any number of units: leave out multiple_of and equal")
    found: dict[str, Target] = {}
    for group in allocation.groups(units, density):
        if not isinstance(group, Group):
            raise AllocationError(
                f"auto_pruner: {type(allocation).__name__} chooses by scores, which codes are not until they have "
                "learned: take allocation=uniform, erk, densities or global"
            )
        keep = min(group.keep, sum(units[name].live for name in group.names))
        replace(group, keep=keep).select(units)  # raises where the minimum is more
        size = sum(units[name].scores.numel() for name in group.names)
        found |= dict.fromkeys(group.names, Target(group.names, keep, size))
    return found
