"""Units that compete with each other: within a group of tensors, or within rows of one, a number of them stays."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pruning.errors import AllocationError
from pruning.granularity import Units
from pruning.selection import top, top_of_rows


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
        self._check(chosen)
        scores = [u.scores for u in chosen]
        alive = None if all(u.alive is None for u in chosen) else [_alive(u) for u in chosen]
        if not any(self._reserved(u) for u in chosen):
            return dict(zip(self.names, top(scores, self.keep, alive), strict=True))
        reserved = [top([u.scores], self._reserved(u), None if u.alive is None else [u.alive])[0] for u in chosen]
        rest = [~r if u.alive is None else u.alive & ~r for r, u in zip(reserved, chosen, strict=True)]
        more = top(scores, self.keep - sum(int(r.sum()) for r in reserved), rest)
        return {name: r | m for name, r, m in zip(self.names, reserved, more, strict=True)}

    def _reserved(self, unit: Units) -> int:
        return min(max(self.minimum, unit.minimum), unit.live)

    def _check(self, chosen: Sequence[Units]) -> None:
        where = self.names[0] if len(self.names) == 1 else f"{self.names[0]} … {self.names[-1]}"
        total, live = sum(u.scores.numel() for u in chosen), sum(u.live for u in chosen)
        if total == 0:
            raise AllocationError(f"{where}: an empty group has no units to keep: exclude the empty tensor")
        if self.keep > live:
            raise AllocationError(
                f"{where}: asked to keep {self.keep} of {total} units, but only {live} are alive: "
                "ask for a lower density, or leave out within= to let removed ones return"
            )
        reserved = sum(self._reserved(u) for u in chosen)
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
