"""Units, numbered family by family: those whose slices lie in the same tensors."""

from dataclasses import dataclass

import numpy as np

from pruning.structure.labels import Array
from pruning.structure.units import Solution


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
        """Where its units lie among all."""
        return slice(self.first, self.first + self.size)


def families(solution: Solution) -> tuple[tuple[Family, ...], Array]:
    """The families in the order of their first slices, and label → number of its unit (-1: fixed).

    A family of a single unit is no choice, and fixed.
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
    for members, components in _by_members([units for _, _, units in slots]):
        makers = [i for i in members if slots[i][0] not in tape.buffers]
        if len(components) < 2 or not makers:
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


def _by_members(slots: list[Array]) -> list[tuple[list[int], Array]]:
    """Components that occur in the same slots: (slots, components), by the first slot."""
    count = max(1, len(slots))
    slot = np.repeat(np.arange(len(slots)), [len(units) for units in slots])
    component = np.concatenate([np.empty(0, np.int64), *slots])
    pair = np.unique((component * count + slot)[component >= 0])
    component, slot = pair // count, pair % count
    if not len(pair):
        return []
    start = np.flatnonzero(np.diff(component, prepend=-1))
    # sets of slots are told apart by the sum of a random number for each
    random = np.random.default_rng(0).integers(2**63, size=count, dtype=np.uint64)
    _, first, kind = np.unique(np.add.reduceat(random[slot], start), return_index=True, return_inverse=True)
    stop = np.append(start, len(pair))
    order = np.argsort(kind, kind="stable")
    parts = np.split(component[start][order], np.cumsum(np.bincount(kind))[:-1])
    members = [slot[stop[i] : stop[i + 1]].tolist() for i in first]
    return sorted(zip(members, parts, strict=True), key=lambda part: (part[0], part[1][0]))


def _distinct(name: str, taken: dict[str, int]) -> str:
    """`name`, or with a number if it has been given."""
    taken[name] = taken.get(name, 0) + 1
    return name if taken[name] == 1 else f"{name}#{taken[name]}"
