"""Units, numbered family by family: those whose slices lie in the same tensors."""

import re
from dataclasses import dataclass

import numpy as np

from pruning.structure.coupling.labels import Array
from pruning.structure.coupling.solving import Solution

_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")


def numberless(name: str) -> str:
    """`name` with * for its parts that are numbers, as of layers in their list: `h.0.mlp.weight` → `h.*.mlp.weight`."""
    return _NUMBER.sub("*", name)


@dataclass(frozen=True)
class Family:
    """Units of one kind: they have slices of the same tensors.

    Attributes:
        name: the layer that makes them.
        kind: "heads" (of attention), "channels" (of convolutions) or "neurons".
        first, size: units `first` to `first + size - 1`.
        members: (tensor, dimension) of every slice.
    """

    name: str
    kind: str
    first: int
    size: int
    members: tuple[tuple[str, int], ...]

    @property
    def units(self) -> slice:
        """Slice of its units among all units."""
        return slice(self.first, self.first + self.size)


def families(solution: Solution, smallest: int = 2) -> tuple[tuple[Family, ...], Array]:
    """The families in the order of their first slices, and label → number of its unit (-1: fixed).

    A family of a single unit is no choice, and fixed; so are all of fewer units than `smallest`.
    """
    tape, axes = solution.labelling.tape, solution.labelling.axes
    slots = [
        (name, dim, solution.component[axis.labels])
        for name, value in tape.tensors.items()
        for dim, axis in enumerate(axes[value])
        if axis is not None
    ]
    number_of = np.full(len(solution.component) + 1, -1, np.int64)  # the last is for what is fixed
    heads = np.zeros(len(number_of), bool)
    for labels in solution.labelling.heads:
        heads[solution.component[labels]] = True
    found: list[Family] = []
    names: dict[str, int] = {}
    for members, components in _by_members([units for _, _, units in slots], len(number_of)):
        makers = [i for i in members if slots[i][0] not in tape.buffers]
        if len(components) < smallest or not makers:
            continue
        tensor = next((slots[i][0] for i in makers if slots[i][1] == 0), slots[makers[0]][0])
        rank = len(tape.shapes[tape.tensors[tensor]])
        first = found[-1].units.stop if found else 0
        number_of[components] = np.arange(first, first + len(components))
        found.append(
            Family(
                _distinct(tensor.rpartition(".")[0] or tensor, names),
                "heads" if heads[components[0]] else "channels" if rank > 2 else "neurons",
                first,
                len(components),
                tuple(slots[i][:2] for i in members),
            )
        )
    return tuple(found), number_of[solution.component]


def _by_members(slots: list[Array], count: int) -> list[tuple[list[int], Array]]:
    """Components, of which there are `count`, that occur in the same slots: (slots, components), by the first slot."""
    slots = [units[units >= 0] for units in slots]
    # sets of slots are distinguished by the sum of a random number for each
    numbers = np.random.default_rng(0).integers(2**63, size=len(slots), dtype=np.uint64)
    signature = np.zeros(count, np.uint64)
    for units, number in zip(slots, numbers, strict=True):
        signature[units] += number  # once, where a component comes several times
    used = np.flatnonzero(signature)
    _, first, kind = np.unique(signature[used], return_index=True, return_inverse=True)
    order = np.argsort(kind, kind="stable")
    parts = np.split(used[order], np.cumsum(np.bincount(kind))[:-1]) if len(used) else []
    kind_of = np.full(count, -1, np.int64)  # of one component of each kind
    kind_of[used[first]] = np.arange(len(first))
    members: list[list[int]] = [[] for _ in first]
    for slot, units in enumerate(slots):
        found = kind_of[units]
        for k in set(found[found >= 0].tolist()):
            members[k].append(slot)
    return sorted(zip(members, parts, strict=True), key=lambda part: (part[0], part[1][0]))


def _distinct(name: str, taken: dict[str, int]) -> str:
    """`name`, or with a number if it has been given."""
    taken[name] = taken.get(name, 0) + 1
    return name if taken[name] == 1 else f"{name}#{taken[name]}"
