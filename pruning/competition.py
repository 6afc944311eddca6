"""Units that compete with each other: within a group of tensors, or within rows of one, a number of them stays."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pruning.errors import AllocationError
from pruning.granularity import Units
from pruning.layouts import STANDARD, Layout
from pruning.selection import count, elements, kept_count, top, top_of_rows


class Competition(Protocol):
    """Units that compete with each other, and how many stay."""

    def select(self, units: Mapping[str, Units]) -> dict[str, Tensor]:
        """Unit masks of the group's tensors."""
        ...


@dataclass(frozen=True)
class Group:
    """The units of the tensors `names` compete; `keep` stay, among them at least `minimum` of each tensor."""

    names: tuple[str, ...]
    keep: int
    minimum: int = 0

    def select(self, units: Mapping[str, Units]) -> dict[str, Tensor]:
        chosen = [units[name] for name in self.names]
        scores = [u.scores for u in chosen]
        alive = None if all(u.alive is None for u in chosen) else [_alive(u) for u in chosen]
        least = []
        if self.minimum or any(u.minimum for u in chosen):
            least = [min(max(self.minimum, u.minimum), u.live) for u in chosen]
        total = elements(scores)
        self._check(chosen, total, total if alive is None else count(alive), sum(least))
        masks = top(scores, self.keep, alive)
        # units are reserved only where too few win freely: elsewhere those that would be reserved have won
        reserved: dict[int, Tensor] = {}
        while short := [i for i, n in enumerate(least) if n and i not in reserved and int(masks[i].sum()) < n]:
            alive = [_alive(u) for u in chosen] if alive is None else list(alive)
            for i in short:
                reserved[i] = top(scores[i : i + 1], least[i], alive[i : i + 1])[0]
                alive[i] = alive[i] & ~reserved[i]
            masks = top(scores, self.keep - sum(least[i] for i in reserved), alive)
        for i, mask in reserved.items():
            masks[i] = masks[i] | mask
        return dict(zip(self.names, masks, strict=True))

    def _check(self, chosen: Sequence[Units], total: int, live: int, reserved: int) -> None:
        where = self.names[0] if len(self.names) == 1 else f"{self.names[0]} … {self.names[-1]}"
        if total == 0:
            raise AllocationError(f"{where}: an empty group has no units to keep: exclude the empty tensor")
        if self.keep > live:
            raise AllocationError(
                f"{where}: asked to keep {self.keep} of {total} units, but only {live} are alive: "
                "ask for a lower density, or leave out within= to let removed ones return"
            )
        if reserved > self.keep:
            minimum = max(self.minimum, *(u.minimum for u in chosen))
            raise AllocationError(
                f"{where}: minimum={minimum} of each needs {reserved} units, but the density keeps {self.keep}: "
                "lower minimum or raise the density"
            )


@dataclass(frozen=True)
class Rows:
    """In one tensor, every `length` consecutive units along the inputs of an output compete, and `keep` stay.

    Attributes:
        name: of the tensor.
        keep: units that stay.
        length: None: all inputs of an output, kernel included, are one row. Else along the first dimension of the
            inputs; a shorter last part of a row keeps `keep_rest` units.
        layout: of the tensor.
    """

    name: str
    keep: int
    length: int | None = None
    keep_rest: int = 0
    layout: Layout = STANDARD

    def select(self, units: Mapping[str, Units]) -> dict[str, Tensor]:
        unit = units[self.name]
        scores = self._rows(unit.scores)
        alive = None if unit.alive is None else self._rows(unit.alive)
        mask = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
        size = scores.shape[-1]
        length = size if self.length is None else self.length
        body = size - size % length
        for start, stop, width, keep in ((0, body, length, self.keep), (body, size, size - body, self.keep_rest)):
            if stop > start:
                part = scores[..., start:stop].reshape(-1, width)
                live = None if alive is None else alive[..., start:stop].reshape(-1, width)
                mask[..., start:stop] = top_of_rows(part, keep, live).view(*mask.shape[:-1], stop - start)
        return {self.name: self._restored(mask, unit.scores.shape)}

    def _rows(self, tensor: Tensor) -> Tensor:
        """The tensor with the competing units along the last dimension."""
        rows = self.layout.rows(tensor)
        return rows.flatten(1) if self.length is None else rows.movedim(1, -1)

    def _restored(self, mask: Tensor, shape: torch.Size) -> Tensor:
        return self.layout.restored(mask if self.length is None else mask.movedim(-1, 1), shape)


@dataclass(frozen=True)
class Unlike:
    """As `Group`, of units that stand for different numbers of units (`Units.stand_for`), which `density` counts.

    The best stay, as many as come closest to the density; of two that are equally close, fewer.
    """

    names: tuple[str, ...]
    density: float
    minimum: int = 0

    def select(self, units: Mapping[str, Units]) -> dict[str, Tensor]:
        chosen = {name: units[name] for name in self.names}
        total = sum(u.stand_for(torch.ones_like(u.scores, dtype=torch.bool)) for u in chosen.values())
        asked = kept_count(self.density, total)
        lowest = sum(min(max(self.minimum, u.minimum), u.live) for u in chosen.values())
        highest = sum(u.live for u in chosen.values())
        least, most = self._kept(units, lowest), self._kept(units, highest)
        slack = max(u.each for u in chosen.values()) / 2
        if not least - slack <= asked <= most + slack:
            raise AllocationError(
                f"{self.names[0]} … {self.names[-1]}: asked to keep {asked} of {total} units, but at least {least} "
                f"stay and at most {most} are alive: ask for another density, or for a lower minimum"
            )
        live = highest
        while lowest < highest:  # the largest number with which no more than `asked` stay
            middle = (lowest + highest + 1) // 2
            lowest, highest = (middle, highest) if self._kept(units, middle) <= asked else (lowest, middle - 1)
        keep = lowest
        if keep < live and self._kept(units, keep + 1) - asked < asked - self._kept(units, keep):
            keep += 1
        return Group(self.names, keep, self.minimum).select(units)

    def _kept(self, units: Mapping[str, Units], keep: int) -> int:
        """How many units stay with the `keep` best."""
        masks = Group(self.names, keep, self.minimum).select(units)
        return sum(units[name].stand_for(mask) for name, mask in masks.items())


def _alive(unit: Units) -> Tensor:
    return torch.ones_like(unit.scores, dtype=torch.bool) if unit.alive is None else unit.alive
