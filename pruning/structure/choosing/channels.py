"""Channels: coupled units as a granularity, for every scorer, allocation and schedule."""

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pruning.errors import GranularityError
from pruning.granularity import Pooled, Units
from pruning.structure.choosing.alike import bundles, kinds
from pruning.structure.coupling.cost_terms import Kept, left
from pruning.structure.coupling.families import Family
from pruning.structure.coupling.structure import Structure

Pooling = Literal["sum", "mean", "max", "l2", "joint"]
Normalisation = Literal["mean", "max", "l2"]
_POOLINGS = ("sum", "mean", "max", "l2", "joint")
_NORMALISATIONS = (None, "mean", "max", "l2")


@dataclass(frozen=True)
class Channels:
    """One unit for every channel, neuron or head of a traced model, with all its slices in all tensors.

    Masks made with it zero a removed unit everywhere: in the weights that make it, in those that read it, in biases
    and norms. So they hold more tensors than were scored, and `remove` can take the unit out of the network.

    A family none of whose weights was scored (frozen, excluded or reparametrised layers) keeps all its units, and these
    do not count in the density. A family with some scored tensors competes by those scores: to protect the channels of
    a layer, name its family in `exclude`.

    Attributes:
        structure: what `trace` found.
        pooling: how a unit's score is made of those of all weights in its slices, each once: their sum, mean, maximum
            or L2 norm, or |sum| ("joint": with Taylor scores g·w the first-order change when all go at once).
        normalise: divide the scores of each family by their mean, maximum or L2 norm (of absolute values), so that
            families compete on equal terms.
        include, exclude: globs of family names (see `print(structure)`); other families keep all units.
        minimum: how many units a family keeps at least, from 1; or glob → number, 1 for what no glob matches.
        multiple_of: a family keeps all units, or a multiple of this, for hardware; or glob → number. The units that
            compete are then bundles of so many, best first, of which the last may be smaller.
        equal: True: families of one kind, in layers that repeat, keep the same number of units, so that one number of
            a configuration describes them all; or globs, all that one matches count as one kind too (see `kinds`). What
            competes is then the best unit of each, the second best of each, …, by the mean of their scores; a global
            density is met as closely as whole bundles allow. Families that cannot lose units do not count.

    Raises:
        GranularityError: an option that does not exist, or a glob that matches no family.
    """

    structure: Structure
    pooling: Pooling = "sum"
    normalise: Normalisation | None = None
    include: str | tuple[str, ...] = "*"
    exclude: str | tuple[str, ...] = ()
    minimum: int | Mapping[str, int] = 1
    multiple_of: int | Mapping[str, int] = 1
    equal: bool | str | tuple[str, ...] = False

    def __post_init__(self) -> None:
        if self.pooling not in _POOLINGS:
            raise GranularityError(f"pooling {self.pooling!r} is unknown: choose one of {', '.join(_POOLINGS)}")
        if self.normalise not in _NORMALISATIONS:
            raise GranularityError(f"normalise {self.normalise!r} is unknown: choose mean, max, l2 or None")
        for name, value in (("minimum", self.minimum), ("multiple_of", self.multiple_of)):
            for number in value.values() if isinstance(value, Mapping) else (value,):
                if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                    raise GranularityError(f"{name}={number!r}: give a whole number from 1")
        for globs in (self.include, self.exclude, self.minimum, self.multiple_of, self._equal):
            for glob in () if isinstance(globs, int) else _globs(globs):
                if glob != "*" and not any(fnmatchcase(family.name, glob) for family in self.structure.families):
                    known = ", ".join(family.name for family in self.structure.families[:5])
                    raise GranularityError(f"{glob!r} matches no family: they are {known}, …")
        if not self.families:
            raise GranularityError(
                "no family of units is left: the structure has none, or include and exclude leave none; "
                "print(structure) lists them"
            )

        kinds(self.families, self._equal)  # raises

    @property
    def _equal(self) -> bool | tuple[str, ...]:
        return self.equal if isinstance(self.equal, bool) else _globs(self.equal)

    @property
    def families(self) -> tuple[Family, ...]:
        """Families whose units may go."""
        return tuple(
            family
            for family in self.structure.families
            if _matches(family.name, self.include) and not _matches(family.name, self.exclude)
        )

    def gather(self, scores: Mapping[str, Tensor], within: Mapping[str, Tensor] | None) -> Pooled:
        """The units by family; see `Granularity`."""
        pooled, alive = pool(self.structure, scores, within, self.pooling)
        scored = [family for family in self.families if any(name in scores for name, _ in family.members)]
        if not scored:
            known = ", ".join(family.name for family in self.families[:5])
            raise GranularityError(f"no weight of any family ({known}, …) was scored: score some, or include others")
        own = {family.name: pooled[family.units] for family in scored}
        lives = {family.name: alive[family.units] for family in scored}
        if self.normalise is not None:
            own = {name: found / _size(found[lives[name]], self.normalise) for name, found in own.items()}
        units: dict[str, Units] = {}
        for same in kinds(scored, self._equal):
            names = [family.name for family in same]
            given = [[_of(name, number) for name in names] for number in (self.minimum, self.multiple_of)]
            units[names[0]] = bundles(same, [own[n] for n in names], [lives[n] for n in names], *given)
        return Pooled(units, partial(self._expand, scores, units))

    def _expand(
        self, scores: Mapping[str, Tensor], units: Mapping[str, Units], chosen: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        kept = np.ones(self.structure.size, bool)
        for name, mask in chosen.items():
            members = units[name].members
            assert members is not None
            gone = members[~mask.cpu()]
            kept[gone[gone >= 0].numpy()] = False
        device = next(iter(scores.values())).device
        masks = unit_masks(self.structure, kept, device)
        dense = {name: torch.ones(score.shape, dtype=torch.bool, device=device) for name, score in scores.items()}
        return dense | masks


def unit_masks(structure: Structure, kept: Kept, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Parameter name → bool tensor, False in all slices of the units that are not `kept`; of all tensors with units.

    Slices that a unit's removal leaves as they are (`Structure.unmasked`) stay True.
    """
    masks: dict[str, Tensor] = {}
    for name in structure.parameters:
        axes = structure.axes[name]
        shape = structure.tape.shapes[structure.tape.tensors[name]]
        for dim, units in enumerate(axes):
            if units is not None and (name, dim) not in structure.unmasked:
                stays = torch.from_numpy(left(units, kept)).to(device)
                mask = masks.setdefault(name, torch.ones(shape, dtype=torch.bool, device=device))
                mask &= stays.view([-1 if d == dim else 1 for d in range(len(shape))])
    return masks


def pool(
    structure: Structure, scores: Mapping[str, Tensor], within: Mapping[str, Tensor] | None, pooling: Pooling
) -> tuple[Tensor, Tensor]:
    """[units]: the scores of all weights in each unit's slices, put together; and whether any of them is alive.

    A weight in two slices of the same unit counts once; dead ones not at all. In float64.
    """
    device = next(iter(scores.values())).device
    total = torch.zeros(structure.size, dtype=torch.float64, device=device)
    count = torch.zeros_like(total)
    highest = torch.full_like(total, -torch.inf)
    for name, score in scores.items():
        if name not in structure.axes or tuple(score.shape) != structure.tape.shapes[structure.tape.tensors[name]]:
            raise GranularityError(
                f"{name}: no tensor of this name and shape was traced: trace the model that is scored"
            )
        alive = torch.ones_like(score, dtype=torch.bool) if within is None else within[name]
        values = score.detach().double().masked_fill(~alive, 0.0)
        if pooling == "l2":
            if bool((values < 0).any()):
                raise GranularityError(f"{name}: pooling=l2 loses the sign of scores below 0: choose another")
            values = values.square()
        slices = [(dim, torch.from_numpy(u).to(device)) for dim, u in enumerate(structure.axes[name]) if u is not None]
        for dim, units in slices:
            _add(total, values, dim, units)
            _add(count, alive.double(), dim, units)
            if pooling == "max":
                others = [d for d in range(values.dim()) if d != dim]
                peaks = values.masked_fill(~alive, -torch.inf)
                peaks = peaks.amax(others) if others else peaks
                highest.scatter_reduce_(0, units[units >= 0], peaks[units >= 0], "amax")
        for i, (dim, units) in enumerate(slices):
            for other, others_units in slices[i + 1 :]:
                _subtract_shared(total, values, (dim, units), (other, others_units))
                _subtract_shared(count, alive.double(), (dim, units), (other, others_units))
    lives = count > 0.5
    if pooling == "max":
        return highest.masked_fill(~lives, 0.0), lives
    if pooling == "mean":
        return total / count.clamp(min=1), lives
    if pooling == "l2":
        return total.clamp(min=0).sqrt(), lives
    return (total.abs() if pooling == "joint" else total), lives


def _add(total: Tensor, values: Tensor, dim: int, units: Tensor) -> None:
    others = [d for d in range(values.dim()) if d != dim]
    sums = values.sum(others) if others else values
    total.index_add_(0, units[units >= 0], sums[units >= 0])


def _subtract_shared(total: Tensor, values: Tensor, first: tuple[int, Tensor], second: tuple[int, Tensor]) -> None:
    """Subtract what lies in slices of the same unit along two dimensions, which was added twice."""
    (dim, rows), (other, columns) = first, second
    if not bool(torch.isin(rows[rows >= 0], columns).any()):
        return
    rest = [d for d in range(values.dim()) if d not in (dim, other)]
    plane = values.sum(rest) if rest else values
    plane = plane if dim < other else plane.T
    shared = (rows[:, None] == columns[None, :]) & (rows >= 0)[:, None]
    total.index_add_(0, rows[rows >= 0], -(plane * shared).sum(1)[rows >= 0])


def _size(scores: Tensor, normalise: Normalisation) -> Tensor:
    if not scores.numel():
        return torch.ones((), dtype=scores.dtype, device=scores.device)
    sizes = scores.abs()
    found = sizes.mean() if normalise == "mean" else sizes.max() if normalise == "max" else sizes.square().sum().sqrt()
    return found.clamp(min=torch.finfo(scores.dtype).tiny)


def _globs(given: str | tuple[str, ...] | Mapping[str, int]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


def _matches(name: str, given: str | tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, glob) for glob in _globs(given))


def _of(name: str, given: int | Mapping[str, int]) -> int:
    if isinstance(given, int):
        return given
    return next((number for glob, number in given.items() if fnmatchcase(name, glob)), 1)
