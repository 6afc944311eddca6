"""How a density is shared out: which units compete with each other, and how many of each group stay.

An allocation is a frozen value with one method, `groups(units, density)`; every group selects its own units, and
together they cover each tensor once. Counts are `round_half_even(density · total)` of a group's units, dead ones
included in the total: a density is cumulative.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from numbers import Real
from typing import Protocol

import torch

from pruning.competition import Competition, Group, Rows, Unlike
from pruning.errors import AllocationError
from pruning.granularity import Units
from pruning.layouts import Layout
from pruning.selection import kept_count


class Allocation(Protocol):
    """What `prune` needs of an allocation; see the module's docstring."""

    def groups(self, units: Mapping[str, Units], density: float | None) -> list[Competition]: ...


@dataclass(frozen=True)
class Global:
    """All units of all tensors compete. `minimum`: units that each tensor keeps in any case."""

    minimum: int = 0

    def groups(self, units: Mapping[str, Units], density: float | None) -> list[Competition]:
        _check_minimum(self.minimum)
        if len({u.each for u in units.values()}) > 1:
            return [Unlike(tuple(units), _given(density), self.minimum)]
        total = sum(u.scores.numel() for u in units.values())
        return [Group(tuple(units), kept_count(_given(density), total), self.minimum)]


@dataclass(frozen=True)
class Uniform:
    """Each tensor competes within itself and keeps the same share, at least `minimum` units."""

    minimum: int = 0

    def groups(self, units: Mapping[str, Units], density: float | None) -> list[Competition]:
        return _each_tensor(units, dict.fromkeys(units, _given(density)), self.minimum)


@dataclass(frozen=True)
class ERK:
    """Each tensor competes within itself; densities follow Erdős-Rényi-Kernel (Evci et al. 2020, RigL, section 3).

    density_l = ε · Σ dims / Π dims, of the tensor's own shape (of one expert's matrix, where they are stacked), with ε
    solved for the whole; tensors that would exceed 1 stay dense and ε is solved again.
    """

    minimum: int = 0

    def groups(self, units: Mapping[str, Units], density: float | None) -> list[Competition]:
        shapes = {name: u.shape for name, u in units.items()}
        copies = {name: u.copies for name, u in units.items()}
        return _each_tensor(units, erk_densities(shapes, _given(density), copies), self.minimum)


@dataclass(frozen=True)
class Densities:
    """Each tensor competes within itself at the density of the first glob that its name matches, else at `density`."""

    densities: Mapping[str, float] | None = None
    minimum: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.densities, Mapping | None):
            raise AllocationError(f"Densities({self.densities!r}): give a density for each glob, {{'fc3.*': 0.5}}")

    def groups(self, units: Mapping[str, Units], density: float | None) -> list[Competition]:
        own = _by_glob(units, self.densities, "Densities")
        chosen = {name: check_density(own[name], name) if name in own else _given(density) for name in units}
        return _each_tensor(units, chosen, self.minimum)


@dataclass(frozen=True)
class Rates:
    """Each tensor competes within itself and loses a share of what it still has: a round of Frankle & Carbin 2019.

    They remove 20 % of every layer of LeNet-300-100 a round, and 10 % of its output layer. What goes is
    round_half_even(rate · alive); the density follows, so none can be asked for (None).

    Attributes:
        rate: in [0, 1).
        rates: glob → a rate of its own, for tensors whose names match; the first glob counts.
    """

    rate: float = 0.2
    rates: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.rates, Mapping | None):
            raise AllocationError(f"Rates(rates={self.rates!r}): give a rate for each glob, {{'fc3.*': 0.1}}")
        given: tuple[object, ...] = (self.rate, *(self.rates or {}).values())
        for rate in given:
            if isinstance(rate, bool) or not isinstance(rate, Real) or not 0.0 <= float(rate) < 1.0:
                raise AllocationError(f"Rates: {rate!r} is no share that a round removes: give one in [0, 1)")

    def groups(self, units: Mapping[str, Units], density: float | None) -> list[Competition]:
        if density is not None:
            raise AllocationError(f"density {density:g}: Rates say themselves how much a round removes: ask for None")
        own = _by_glob(units, self.rates, "Rates")
        removed = {name: kept_count(float(own.get(name, self.rate)), unit.live) for name, unit in units.items()}
        return [
            Group((name,), max(unit.live - removed[name], min(unit.minimum, unit.live))) for name, unit in units.items()
        ]


@dataclass(frozen=True)
class PerRow:
    """The weights of each output, its inputs and kernel, compete: the rows that Wanda asks for.

    Rows follow the layout that scores bring along (`pruning.layouts`): of Conv1D of transformers, experts and
    transposed convolutions too. Scores in a plain dict are [outputs, …].
    """

    def groups(self, units: Mapping[str, Units], density: float | None) -> list[Competition]:
        found: list[Competition] = []
        for name, unit in units.items():
            _check_rows(name, unit, unit.layout, "PerRow")
            keep = kept_count(_given(density), unit.layout.shape(unit.scores.shape)[1:].numel())
            if unit.alive is not None:
                lowest = int(unit.layout.rows(unit.alive).flatten(1).sum(1).min())
                if lowest < keep:
                    raise AllocationError(
                        f"{name}: asked to keep {keep} units of every row, but a row has only {lowest} alive: "
                        "ask for a lower density, or leave out within= to let removed ones return"
                    )
            found.append(Rows(name, keep, layout=unit.layout))
        return found


@dataclass(frozen=True)
class NofM:
    """Of every `m` consecutive inputs of an output at most `n` stay (N:M sparsity, Zhou et al. 2021).

    `dim` None are the inputs, by the layout that scores bring along (`pruning.layouts`; in a plain dict dimension 1);
    else the dimension along which `m` follow each other. A shorter last group of r units keeps
    round_half_even(r · n / m). The density is n / m; asking for another is an error, and so is a tensor that this
    would empty.
    """

    n: int
    m: int
    dim: int | None = None

    def __post_init__(self) -> None:
        if any(isinstance(v, bool) or not isinstance(v, int) for v in (self.n, self.m, self.dim or 0)):
            raise AllocationError(f"NofM({self.n}, {self.m}, dim={self.dim}): n, m and dim must be whole numbers")
        if not 0 < self.n <= self.m:
            raise AllocationError(f"NofM({self.n}, {self.m}): n must lie between 1 and m")

    @property
    def density(self) -> float:
        """n / m: no other can be asked for."""
        return self.n / self.m

    def groups(self, units: Mapping[str, Units], density: float | None) -> list[Competition]:
        share = self.density
        if density is not None and abs(density - share) > 1e-9:
            raise AllocationError(
                f"NofM({self.n}, {self.m}) has density {share:g}, asked for {density:g}: ask for {share:g}, or None"
            )
        found: list[Competition] = []
        for name, unit in units.items():
            layout = unit.layout if self.dim is None else self._along(name, unit, self.dim)
            _check_rows(name, unit, layout, "NofM")
            length = layout.shape(unit.scores.shape)[1]
            rest = kept_count(share, length % self.m)
            if length < self.m and rest == 0:
                raise AllocationError(
                    f"{name}: NofM({self.n}, {self.m}) keeps none of {length} inputs of an output, and so would empty "
                    "it: exclude it"
                )
            found.append(Rows(name, self.n, self.m, rest, layout))
        return found

    def _along(self, name: str, unit: Units, dim: int) -> Layout:
        """A layout in which `dim` alone are the inputs."""
        dims = unit.scores.dim()
        if not 0 <= dim < dims:
            raise AllocationError(f"{name}: NofM(dim={dim}): these units have shape {list(unit.scores.shape)}")
        return Layout(outputs=tuple(other for other in range(dims) if other != dim))


def erk_densities(
    shapes: Mapping[str, Sequence[int]], density: float, copies: Mapping[str, int] | None = None
) -> dict[str, float]:
    """Erdős-Rényi-Kernel densities, per tensor name, whose weights sum to `density` of all.

    Counts are rounded tensor by tensor, so that their sum may be off by half a weight a tensor. Of each shape there
    are `copies` (None: one), which is how experts count.
    """
    raw = {name: sum(shape) / max(1, _product(shape)) for name, shape in shapes.items()}
    sizes = {name: _product(shape) * (1 if copies is None else copies[name]) for name, shape in shapes.items()}
    budget = density * sum(sizes.values())
    dense: set[str] = set()
    while True:
        sparse = [name for name in shapes if name not in dense]
        weight = sum(raw[name] * sizes[name] for name in sparse)
        epsilon = max(0.0, budget - sum(sizes[name] for name in dense)) / weight if weight else 0.0
        over = {name for name in sparse if epsilon * raw[name] > 1.0}
        if not over:
            return {name: 1.0 if name in dense else epsilon * raw[name] for name in shapes}
        dense |= over


def check_density(density: object, where: str = "density") -> float:
    """`density` as a float if it is a number, NumPy's too, in (0, 1]; else `AllocationError`."""
    if isinstance(density, bool) or not isinstance(density, Real) or not 0.0 < float(density) <= 1.0:
        raise AllocationError(f"{where}: {density!r} is no density: give the share that is kept, above 0 and at most 1")
    return float(density)


def _by_glob(units: Mapping[str, Units], given: Mapping[str, float] | None, what: str) -> dict[str, float]:
    """What `given` says of the tensors that one of its globs matches; the first glob counts."""
    for glob in given or {}:
        if not any(fnmatchcase(name, glob) for name in units):
            raise AllocationError(f"{what}: {glob!r} matches none of {', '.join(list(units)[:5])}, …")
    found: dict[str, float] = {}
    for glob, value in (given or {}).items():
        found |= {name: value for name in units if fnmatchcase(name, glob) and name not in found}
    return found


def _given(density: float | None) -> float:
    if density is None:
        raise AllocationError("density is missing: only NofM and Rates, which have one of their own, can do without")
    return check_density(density)


def _check_minimum(minimum: int) -> None:
    if isinstance(minimum, bool) or not isinstance(minimum, int) or minimum < 0:
        raise AllocationError(f"minimum={minimum!r}: give how many units a tensor keeps at least, from 0")


def _each_tensor(units: Mapping[str, Units], densities: Mapping[str, float], minimum: int) -> list[Competition]:
    _check_minimum(minimum)
    found: list[Competition] = []
    for name, unit in units.items():
        keep = kept_count(densities[name], unit.scores.numel())
        found.append(Group((name,), max(keep, min(max(minimum, unit.minimum), unit.live))))
    return found


def _check_rows(name: str, unit: Units, layout: Layout, allocation: str) -> None:
    if unit.scores.dim() < 2 or unit.scores.numel() == 0:
        raise AllocationError(
            f"{name}: {allocation} needs units in at least two dimensions, these have shape "
            f"{list(unit.scores.shape)}: exclude the tensor, or use another granularity"
        )
    if not layout.known:
        raise AllocationError(
            f"{name}: {allocation} needs to know which of its dimensions are outputs, and its module does not say: "
            "exclude it, or use another allocation"
        )


def _product(shape: Sequence[int]) -> int:
    return int(torch.Size(shape).numel())
