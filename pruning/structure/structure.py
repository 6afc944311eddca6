"""Structure: which slices of which tensors go together, and what each unit costs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from pruning.structure.families import Family, families
from pruning.structure.labels import Array, Axes
from pruning.structure.tape import Inputs, Tape
from pruning.structure.units import Solution
from pruning.structure.volumes import Kept, UnitsOf, Volume, mac_volumes, parameter_volumes


@dataclass(frozen=True)
class Structure:
    """What `trace` found; prints as a table.

    Attributes:
        families: all units, family by family.
        axes: parameter or buffer name → for each dimension the unit of every index (-1: fixed), or None if all are.
        frozen: modules that cannot be shrunk, with the reason.
        unknown: operators without a rule, with a module that ran them; what they touch is fixed.
        lossy: whether channels may go over which statistics are taken.
        inputs: the example inputs.
        tape, labels, unit: the forward pass, the labels of its values, and the unit of each label.
    """

    families: tuple[Family, ...]
    axes: UnitsOf
    frozen: Mapping[str, str]
    unknown: Mapping[str, str]
    lossy: bool
    inputs: Inputs = field(repr=False)
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

    @cached_property
    def volumes(self) -> Mapping[str, tuple[Volume, ...]]:
        """What is summed up for "parameters" and for "macs"."""
        return {
            "parameters": tuple(parameter_volumes(self.tape, self.axes)),
            "macs": tuple(mac_volumes(self.tape, self.labels, self.unit)),
        }

    def cost(self, of: str, kept: Kept | None = None) -> int:
        """Parameters (`of="parameters"`) or MACs (`of="macs"`) when only the `kept` units are left; None: all."""
        kept = np.ones(self.size, bool) if kept is None else kept
        return sum(volume.of(kept) for volume in self.volumes[of])

    def shrunk(self, of: str) -> Array:
        """[units]: how many parameters or MACs go when one unit goes alone."""
        each = np.zeros(self.size, np.int64)
        for volume in self.volumes[of]:
            units, less = volume.shrunk()
            each[units] += less
        return each

    @property
    def share(self) -> float:
        """The share of all parameters that lie in some unit, in [0, 1]."""
        whole = self.cost("parameters")
        return 1 - self.cost("parameters", np.zeros(self.size, bool)) / whole if whole else 0.0

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [("family", "kind", "units", "parameters", "MACs", "slices of")]
        costs = self.shrunk("parameters"), self.shrunk("macs")
        for family in self.families:
            names = [f"{name}[{dim}]" for name, dim in family.members]
            more = f", … {len(names) - 3} more" if len(names) > 3 else ""
            each = [f"{shrunk[family.units].mean():,.0f}" for shrunk in costs]
            rows.append((family.name, family.kind, str(family.size), *each, ", ".join(names[:3]) + more))
        widths = [max(len(row[i]) for row in rows) for i in range(5)]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, (*widths, 0), strict=True)).rstrip() for row in rows]
        lines.append(f"{self.size:,} units hold {self.share:.1%} of {self.cost('parameters'):,} parameters")
        lines += [f"kept whole: {name or 'the model'}: {reason}" for name, reason in self.frozen.items()]
        lines += [
            f"kept whole: what {operator} touches in {module or 'the model'}: no rule is known for this operator"
            for operator, module in self.unknown.items()
        ]
        return "\n".join(lines)


def structure_of(solution: Solution, frozen: Mapping[str, str], inputs: Inputs) -> Structure:
    """Families of a solution, and where their slices are."""
    tape, labelling = solution.labelling.tape, solution.labelling
    found, unit = families(solution)
    axes = {
        name: tuple(None if axis is None else _units(unit[axis.labels]) for axis in labelling.axes[value])
        for name, value in tape.tensors.items()
    }
    return Structure(found, axes, frozen, dict(labelling.unknown), labelling.lossy, inputs, tape, labelling.axes, unit)


def _units(found: Array) -> Array | None:
    return found if (found >= 0).any() else None
