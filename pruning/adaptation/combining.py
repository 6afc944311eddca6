"""Several deltas of one base as one, and where they get in each other's way."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from pruning.adaptation.delta import Change, Delta
from pruning.errors import AdaptationError

How = Literal["sum", "mean", "ties"]


@dataclass(frozen=True)
class Conflict:
    """What two deltas have in common in one tensor.

    Attributes:
        name: of the parameter.
        overlap: number of places that both change.
        expected: of two supports of these sizes that know nothing of each other.
        opposite: share of the overlap where the differences have opposite signs, in [0, 1]; None without an overlap.
    """

    name: str
    overlap: int
    expected: float
    opposite: float | None


def combined(deltas: Sequence[Delta], how: How = "sum") -> Delta:
    """One delta of several, which have the same base.

    Args:
        how: at every place `sum`: their sum, a difference that a delta lacks is 0 (task arithmetic, Ilharco et al.
            2023). `mean`: the sum by their number. `ties`: the mean of those differences that have the sign of the sum
            (Yadav et al. 2023, TIES-Merging, whose trimming a support has done).

    Raises:
        AdaptationError: no deltas, another base, or a dense part that differs.
    """
    if not deltas:
        raise AdaptationError("no deltas to combine: give at least one")
    if how not in ("sum", "mean", "ties"):
        raise AdaptationError(f"how={how!r}: choose sum, mean or ties")
    dense: dict[str, Tensor] = {}
    for delta in deltas:
        for name, value in delta.dense.items():
            if name in dense and not torch.equal(dense[name], value):
                raise AdaptationError(f"{name}: is replaced as a whole by several deltas: combine those without it")
            dense[name] = value
    names = sorted({name for delta in deltas for name in delta.changes})
    changes = {
        name: _combined(name, [delta.changes[name] for delta in deltas if name in delta.changes], len(deltas), how)
        for name in names
    }
    return Delta(changes, dense)


def conflicts(one: Delta, other: Delta) -> tuple[Conflict, ...]:
    """Overlaps of two deltas of the same base, for every tensor that both change.

    Raises `AdaptationError` for deltas of different bases.
    """
    return tuple(_conflicts(one, other))


def _conflicts(one: Delta, other: Delta) -> Iterator[Conflict]:
    for name, a in one.changes.items():
        b = other.changes.get(name)
        if b is None:
            continue
        _check_base(name, a, b)
        left, right = torch.isin(a.places, b.places), torch.isin(b.places, a.places)
        opposite = (a.values[left].sign() * b.values[right].sign()) < 0
        overlap = int(left.sum())
        expected = len(a.places) * len(b.places) / a.shape.numel()
        yield Conflict(name, overlap, expected, float(opposite.double().mean()) if overlap else None)


def _combined(name: str, changes: Sequence[Change], count: int, how: How) -> Change:
    first = changes[0]
    for change in changes[1:]:
        _check_base(name, first, change)
    places = torch.unique(torch.cat([change.places for change in changes]))
    dtype = torch.promote_types(torch.float32, first.values.dtype)
    each = torch.zeros(len(changes), len(places), dtype=dtype)
    for row, change in zip(each, changes, strict=True):
        row[torch.searchsorted(places, change.places)] = change.values.to(dtype)
    values = each.sum(0)
    if how == "mean":
        values = values / count
    if how == "ties":
        agreeing = each.sign() == values.sign()
        agreeing &= each != 0
        values = (each * agreeing).sum(0) / agreeing.sum(0).clamp(min=1)
    return replace(first, places=places, values=values)


def _check_base(name: str, one: Change, other: Change) -> None:
    if (one.base, one.shape, one.dtype) != (other.base, other.shape, other.dtype):
        raise AdaptationError(f"{name}: the deltas are of different bases: combine those of one network")
