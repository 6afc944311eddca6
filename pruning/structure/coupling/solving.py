"""Solve for units: which labels of a tape are one channel, and which dimension keeps them where one is split."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pruning.structure.coupling.labels import Array, Axis, Labelling
from pruning.structure.coupling.rules import RULES
from pruning.structure.recording.tape import Tape

_TRIES = 6
"""How often other dimensions are tried where one is split into several and the first choice came out fixed."""


@dataclass(frozen=True)
class Solution:
    """The labels of a tape, solved: `component` maps each label to a component ≥ 0, or -1 if it is fixed."""

    labelling: Labelling
    component: Array
    _numbers: Array  # the components of all labels, fixed ones too
    _reasons: Mapping[int, str]

    def reason(self, axis: Axis) -> str | None:
        """What fixes an axis of which nothing can go; None if something can."""
        found = self.component[axis.labels]
        return None if (found >= 0).any() else self._reasons[int(self._numbers[axis.labels[0]])]


def solve(tape: Tape, frozen: frozenset[str] = frozenset(), lossy: bool = False) -> Solution:
    """Walk along the tape until every split dimension has a part that may keep its labels, if it has one.

    Heads come first: the dimension over which matrix products are batched. Then the last, as in channel shuffles.
    """
    undecided = _walked(tape, None, frozen, lossy)
    if not undecided.labelling.splits:
        return undecided
    heads = np.zeros(undecided.labelling.size, bool)
    for labels in undecided.labelling.heads:
        heads[labels] = True
    for split in reversed(undecided.labelling.splits.values()):  # what is split further on into heads counts as heads
        if any(heads[part].any() for part in split.parts.values()):
            heads[split.whole] = True
    order: dict[int, list[int]] = {}
    for number, split in undecided.labelling.splits.items():
        dims = sorted(split.parts, reverse=True)
        order[number] = sorted(dims, key=lambda dim: not heads[split.parts[dim]].any())  # used at once
    choices = {number: dims[0] for number, dims in order.items()}
    best, best_score = None, -1
    for _ in range(_TRIES):
        found = _walked(tape, choices, frozen, lossy)
        score = len(np.unique(found.component))
        if score > best_score:
            best, best_score = found, score
        moved = False
        for number, split in found.labelling.splits.items():
            kept = split.parts.get(choices.get(number, -1))
            dims = order.get(number) or sorted(split.parts, reverse=True)
            if kept is None or (found.component[kept] >= 0).any():
                continue
            if _hopeless(undecided, number):
                continue
            tried = dims.index(choices[number])
            if tried + 1 < len(dims):
                choices[number] = dims[tried + 1]
                moved = True
        if not moved:
            break
    assert best is not None
    return best


def _hopeless(undecided: Solution, number: int) -> bool:
    """Whether a dimension was fixed before it was split, so that no part can keep labels."""
    split = undecided.labelling.splits.get(number)
    return split is not None and not (undecided.component[split.whole] >= 0).any()


def _walked(tape: Tape, choices: Mapping[int, int] | None, frozen: frozenset[str], lossy: bool) -> Solution:
    labelling = Labelling(tape, choices, lossy)
    labelling.walk(RULES, frozen)
    component, fixed = labelling.components()
    held = np.zeros(int(component.max(initial=-1)) + 1, bool)
    held[list(fixed)] = True
    return Solution(labelling, np.where(held[component], -1, component), component, fixed)
