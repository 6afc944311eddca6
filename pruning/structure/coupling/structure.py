"""Structure: which slices of which tensors go together, and what each unit costs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from pruning.inputs import Inputs
from pruning.structure.coupling.cost_terms import CostTerm, Kept, UnitsOf, mac_terms, parameter_terms
from pruning.structure.coupling.families import Family, families
from pruning.structure.coupling.labels import Array, Axes
from pruning.structure.coupling.solving import Solution
from pruning.structure.recording.tape import Tape


@dataclass(frozen=True)
class Structure:
    """What `trace` found; prints as a table.

    Attributes:
        families: all units, family by family.
        axes: parameter or buffer name → for each dimension the unit of every index (-1: fixed), or None if all are.
        frozen: modules that cannot be shrunk, with the reason.
        constants: (class, attribute) of integers that stay, though they are equal to sizes that shrink.
        fixed: (parameter, dimension) of which nothing can go → the operator that needs all of it.
        unknown: operators without a rule, with a module that ran them; what they touch is fixed.
        lossy: whether channels may go over which statistics are taken.
        inputs: the example inputs.
        reads: (tensor, dimension) pairs with which weights read units: they are summed over.
        writes: all other pairs, which make units; and those of weights that are used several times, which may do both.
        unmasked: (tensor, dimension) whose slices keep their values where a unit is removed, as the directions of a
            weight norm, which have no length of zero.
        nonzero_when_removed: [units], those whose activations weights read, and that may hold other values than zeros
            where they are removed.
        summed_elsewhere: [units], those that other operators than products of weights and activations sum over.
        tape, labels, unit: the forward pass, the labels of its values, and the unit of each label.
    """

    families: tuple[Family, ...]
    axes: UnitsOf
    frozen: Mapping[str, str]
    constants: frozenset[tuple[type, str]]
    fixed: Mapping[tuple[str, int], str] = field(repr=False)
    unknown: Mapping[str, str]
    lossy: bool
    inputs: Inputs = field(repr=False)
    reads: frozenset[tuple[str, int]] = field(repr=False)
    writes: frozenset[tuple[str, int]] = field(repr=False)
    unmasked: frozenset[tuple[str, int]] = field(repr=False)
    nonzero_when_removed: Kept = field(repr=False)
    summed_elsewhere: Kept = field(repr=False)
    tape: Tape = field(repr=False)
    labels: Mapping[int, Axes] = field(repr=False)
    unit: Array = field(repr=False)

    @property
    def size(self) -> int:
        """How many units there are."""
        return sum(family.size for family in self.families)

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of all parameters, tied ones once."""
        return tuple(name for name in self.axes if name not in self.tape.buffers)

    @property
    def unused(self) -> tuple[str, ...]:
        """Parameters that the example inputs leave unread: they keep their sizes, and code that reads them in other
        cases, together with what has shrunk, will not run."""
        return tuple(name for name in self.parameters if self.tape.tensors[name] not in self.tape.read)

    @cached_property
    def cost_terms(self) -> Mapping[str, tuple[CostTerm, ...]]:
        """The terms whose sum is the number of "parameters", and that of "macs"."""
        return {
            "parameters": tuple(parameter_terms(self.tape, self.axes)),
            "macs": tuple(mac_terms(self.tape, self.labels, self.unit)),
        }

    def cost(self, of: str, kept: Kept | None = None) -> int:
        """Parameters (`of="parameters"`) or MACs (`of="macs"`) when only the `kept` units are left; None: all."""
        kept = np.ones(self.size, bool) if kept is None else kept
        return sum(term.value(kept) for term in self.cost_terms[of])

    def shrunk(self, of: str) -> Array:
        """[units]: how many parameters or MACs go when one unit goes alone."""
        each = np.zeros(self.size, np.int64)
        for term in self.cost_terms[of]:
            units, less = term.shrunk()
            each[units] += less
        return each

    @property
    def share(self) -> float:
        """The share of all parameters that lie in some unit, in [0, 1]."""
        whole = self.cost("parameters")
        return 1 - self.cost("parameters", np.zeros(self.size, bool)) / whole if whole else 0.0

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [("family", "kind", "units", "parameters each", "MACs each", "slices of")]
        costs = self.shrunk("parameters"), self.shrunk("macs")
        for family in self.families:
            names = [f"{name}[{dim}]" for name, dim in family.members]
            more = f", … {len(names) - 3} more" if len(names) > 3 else ""
            each = [f"{shrunk[family.units].mean():,.0f}" for shrunk in costs]
            rows.append((family.name, family.kind, str(family.size), *each, ", ".join(names[:3]) + more))
        widths = [max(len(row[i]) for row in rows) for i in range(5)]
        lines = []
        for row in rows:
            words = [cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True)]
            numbers = [cell.rjust(width) for cell, width in zip(row[2:5], widths[2:], strict=True)]
            lines.append("  ".join((*words, *numbers, row[5])))
        lines.append(f"{self.size:,} units hold {self.share:.1%} of {self.cost('parameters'):,} parameters")
        for reason in dict.fromkeys(self.frozen.values()):
            names = [name or "the model" for name, other in self.frozen.items() if other == reason]
            lines.append(f"kept whole: {_listed(names)}: {reason}")
        if self.frozen:
            lines.append(
                "(to let these shrink, take sizes from tensors, as in x.shape[1], not from numbers in their code)"
            )
        if self.unused:
            hint = "trace with inputs that reach what others reach"
            lines.append(f"not used by the example inputs: {_listed(self.unused)}: {hint}")
        if not self.families:
            for reason in list(dict.fromkeys(self.fixed.values()))[:8]:
                slots = [f"{name}[{dim}]" for (name, dim), other in self.fixed.items() if other == reason]
                lines.append(f"fixed by {reason}: {_listed(slots)}")
        lines += [
            f"kept whole: what {operator} touches in {module or 'the model'}: no rule is known for this operator"
            for operator, module in self.unknown.items()
        ]
        return "\n".join(lines)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def structure_of(
    solution: Solution,
    frozen: Mapping[str, str],
    inputs: Inputs,
    constants: frozenset[tuple[type, str]] = frozenset(),
    smallest: int = 2,
) -> Structure:
    """Families of a solution, and where their slices are."""
    tape, labelling = solution.labelling.tape, solution.labelling
    found, unit = families(solution, smallest)
    axes = {
        name: tuple(None if axis is None else _units(unit[axis.labels]) for axis in labelling.axes[value])
        for name, value in tape.tensors.items()
    }
    names = {value: name for name, value in tape.tensors.items()}
    size = sum(family.size for family in found)
    read = np.zeros(labelling.size, bool)
    read[_joined(labelling.reads)] = True
    reads = frozenset(
        (name, dim)
        for name, value in tape.tensors.items()
        for dim, axis in enumerate(labelling.axes[value])
        if axis is not None and read[axis.labels].any()
    )
    marks = []
    for labels in (labelling.nonzero_when_removed, labelling.summed_elsewhere):
        numbers = unit[_joined(labels)]
        marks.append(np.isin(np.arange(size), numbers))
    return Structure(
        families=found,
        axes=axes,
        frozen=frozen,
        constants=constants,
        fixed={
            (name, dim): reason
            for name, value in tape.tensors.items()
            if name not in tape.buffers
            for dim, axis in enumerate(labelling.axes[value])
            if axis is not None and (reason := solution.reason(axis)) is not None
        },
        unknown=dict(labelling.unknown),
        lossy=labelling.lossy,
        inputs=inputs,
        reads=reads,
        writes=frozenset(
            (name, dim)
            for name, value in tape.tensors.items()
            for dim in range(len(tape.shapes[value]))
            if (name, dim) not in reads or labelling.uses.get(value, 0) > 1
        ),
        unmasked=frozenset((names[value], dim) for value, dim in labelling.unmasked if value in names),
        nonzero_when_removed=marks[0],
        summed_elsewhere=marks[1],
        tape=tape,
        labels=labelling.axes,
        unit=unit,
    )


def _joined(labels: list[Array]) -> Array:
    return np.concatenate([np.empty(0, np.int64), *labels])


def _units(found: Array) -> Array | None:
    return found if (found >= 0).any() else None
