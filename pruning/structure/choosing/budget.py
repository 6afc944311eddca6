"""Budgets: the best units that fit into a share of parameters, of MACs, or of measured time."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from pruning.allocation import check_density
from pruning.competition import Competition
from pruning.errors import AllocationError
from pruning.granularity import Units
from pruning.structure.coupling.cost_terms import Kept
from pruning.structure.coupling.structure import Structure


class Measure(Protocol):
    """Something that a network without some units costs; never more than with them."""

    def cost(self, kept: Kept) -> float:
        """What it costs with the `kept` units alone."""
        ...


@dataclass(frozen=True)
class Budget:
    """An allocation for `Channels`: all units compete, and the highest-scored that fit into the budget stay.

    The density is then a share of what the whole model costs, not of units. The result is the largest that does not
    exceed it: with the next unit it would.

    Attributes:
        structure: the one of the granularity.
        of: "parameters", "macs", or a measured table (`measure_latency`).
    """

    structure: Structure
    of: Literal["parameters", "macs"] | Measure = "macs"

    def __post_init__(self) -> None:
        if isinstance(self.of, str) and self.of not in ("parameters", "macs"):
            raise AllocationError(f"Budget(of={self.of!r}): give 'parameters', 'macs' or a measured table")

    def cost(self, kept: Kept) -> float:
        """What the network costs with the `kept` units alone."""
        return self.structure.cost(self.of, kept) if isinstance(self.of, str) else self.of.cost(kept)

    def groups(self, units: Mapping[str, Units], density: float | None) -> list[Competition]:
        """One competition of all; see `Allocation`."""
        if density is None:
            raise AllocationError("density is missing: give the share of the whole model's cost that may stay")
        return [_Fitting(self, check_density(density))]


@dataclass(frozen=True)
class _Fitting:
    budget: Budget
    density: float

    def select(self, units: Mapping[str, Units]) -> dict[str, Tensor]:
        """Unit masks: as many of the best as fit."""
        members = [_members(name, unit) for name, unit in units.items()]
        reserved = [_reserved(unit) for unit in units.values()]
        alive = torch.cat([_alive(unit).cpu() for unit in units.values()])
        scores = torch.cat([unit.scores.double().cpu().reshape(-1) for unit in units.values()])
        first = torch.cat(reserved)
        rank = torch.where(first, torch.inf, torch.where(alive, scores, -torch.inf))
        order = torch.argsort(rank, descending=True, stable=True)
        lowest, highest = int(first.sum()), int(alive.sum())
        every = np.zeros(self.budget.structure.size, bool)
        every[:] = True
        competing = torch.cat([m.reshape(-1) for m in members])
        every[competing[competing >= 0].numpy()] = False
        width = max(m.shape[1] for m in members)
        table = torch.cat([torch.nn.functional.pad(m, (0, width - m.shape[1]), value=-1) for m in members])

        def cost(count: int) -> float:
            kept = every.copy()
            chosen = table[order[:count]]
            kept[chosen[chosen >= 0].numpy()] = True
            return self.budget.cost(kept)

        allowed = self.density * self.budget.cost(np.ones(self.budget.structure.size, bool))
        if cost(lowest) > allowed:
            share = cost(lowest) / self.budget.cost(np.ones(self.budget.structure.size, bool))
            raise AllocationError(
                f"density {self.density:g}: what cannot go is {share:.3g} of the whole already: ask for more, or let "
                "more families shrink (minimum, include, exclude)"
            )
        while lowest < highest:  # the largest count that fits
            middle = (lowest + highest + 1) // 2
            lowest, highest = (middle, highest) if cost(middle) <= allowed else (lowest, middle - 1)
        chosen = torch.zeros(len(scores), dtype=torch.bool)
        chosen[order[:lowest]] = True
        parts = torch.split(chosen, [unit.scores.numel() for unit in units.values()])
        return {name: part.to(unit.scores.device) for (name, unit), part in zip(units.items(), parts, strict=True)}


def _members(name: str, unit: Units) -> Tensor:
    if unit.members is None:
        raise AllocationError(
            f"{name}: a budget needs units of a traced structure: use granularity=Channels(structure)"
        )
    return unit.members


def _alive(unit: Units) -> Tensor:
    return torch.ones(unit.scores.numel(), dtype=torch.bool) if unit.alive is None else unit.alive.reshape(-1)


def _reserved(unit: Units) -> Tensor:
    """The best `minimum` of the living units, which stay in any case."""
    found = torch.zeros(unit.scores.numel(), dtype=torch.bool)
    alive = _alive(unit).cpu()
    rank = torch.where(alive, unit.scores.double().cpu().reshape(-1), -torch.inf)
    best = torch.argsort(rank, descending=True, stable=True)[: min(unit.minimum, int(alive.sum()))]
    found[best] = True
    return found
