"""Units that compete with each other: within a group of tensors, or within rows of one, a number of them stays."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pruning.errors import AllocationError
from pruning.granularity import Units
from pruning.selection import count, elements, top, top_of_rows


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
    """In one tensor, seen as [rows, length] along `dim`, every `length` consecutive units compete and `keep` stay.

    `length` None is the whole row. A shorter last part of a row keeps `keep_rest` units. With `flatten` a row is all
    that one index of dimension 0 holds.
    """

    name: str
    keep: int
    dim: int = 1
    length: int | None = None
    keep_rest: int = 0
    flatten: bool = False

    def select(self, units: Mapping[str, Units]) -> dict[str, Tensor]:
        unit = units[self.name]
        mask = torch.zeros(unit.scores.shape, dtype=torch.bool, device=unit.scores.device)
        scores, alive, target = (
            None if tensor is None else self._rows(tensor) for tensor in (unit.scores, unit.alive, mask)
        )
        assert scores is not None
        assert target is not None
        size = scores.shape[-1]
        length = size if self.length is None else self.length
        body = size - size % length
        for start, stop, width, keep in ((0, body, length, self.keep), (body, size, size - body, self.keep_rest)):
            if stop > start:
                part = scores[..., start:stop].reshape(-1, width)
                live = None if alive is None else alive[..., start:stop].reshape(-1, width)
                picked = top_of_rows(part, keep, live)
                target[..., start:stop] = picked.view(*target.shape[:-1], stop - start)
        return {self.name: mask}

    def _rows(self, tensor: Tensor) -> Tensor:
        """A view (for the mask, which is contiguous) with the competing units along the last dimension."""
        return tensor.reshape(tensor.shape[0], -1) if self.flatten else tensor.movedim(self.dim, -1)


def _alive(unit: Units) -> Tensor:
    return torch.ones_like(unit.scores, dtype=torch.bool) if unit.alive is None else unit.alive
