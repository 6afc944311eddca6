"""Labels: a number for every index of every dimension, and which of them are the same channel.

An axis that is None is fixed: none of its indices can go. Rules tie axes to each other, or fix them, operator by
operator; what is connected in the end must go together.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pruning.structure.recording.tape import Call, Ref, Tape

Array = NDArray[np.int64]


@dataclass(frozen=True)
class Axis:
    """One dimension of a tensor.

    Attributes:
        labels: one an index.
        holds_zeros: whether removed indices hold exact zeros in the masked network, so that sums are the same.
        interchangeable: whether every index holds the same values, so that any of them may go, or none.
    """

    labels: Array
    holds_zeros: bool
    interchangeable: bool = False

    def __len__(self) -> int:
        return len(self.labels)


Axes = tuple[Axis | None, ...]
"""All dimensions of one tensor."""


def nonzero(axes: Sequence[Axis | None]) -> Axes:
    """The same axes, for a tensor that may hold other values than zeros where something is removed."""
    return tuple(axis and replace(axis, holds_zeros=False) for axis in axes)


Rule = Callable[["Labelling", Call], Sequence[Axes]]
"""Gives the axes of a call's outputs, tying and fixing labels on the way."""


@dataclass
class Labelling:
    """A walk along a tape.

    Attributes:
        choices: call number → which dimension keeps the labels where one is split into several. Without one for a
            call, all keep labels that nothing ties to the whole: enough to see what becomes of them.
        lossy: keep labels where statistics are taken over channels, though masked and removed then differ.
        splits: call number → its split, of those where a choice is needed.
        heads: labels of dimensions over which matrix products are batched, as over attention heads.
        weights: values that are parameters, or views of one, with the parameter's own value.
        uses: how many calls a parameter takes part in, views aside.
        reads: labels of weights' dimensions that are summed over, with activations.
        nonzero_when_removed: labels of activations that weights read, and that do not hold zeros where removed.
        summed_elsewhere: labels that are summed over by other operators than products of weights and activations.
        unmasked: (parameter, dimension) that keep their values where they are removed: what reads them is zero there.
        unknown: operators without a rule, with the module that ran them.
    """

    tape: Tape
    choices: Mapping[int, int] | None = None
    lossy: bool = False
    axes: dict[int, Axes] = field(default_factory=dict)
    splits: dict[int, "Split"] = field(default_factory=dict)
    heads: list[Array] = field(default_factory=list)
    weights: dict[int, int] = field(default_factory=dict)
    uses: dict[int, int] = field(default_factory=dict)
    reads: list[Array] = field(default_factory=list)
    nonzero_when_removed: list[Array] = field(default_factory=list)
    summed_elsewhere: list[Array] = field(default_factory=list)
    unmasked: list[tuple[int, int]] = field(default_factory=list)
    unknown: dict[str, str] = field(default_factory=dict)
    number: int = 0
    size: int = 0
    _ties: list[tuple[Array, Array]] = field(default_factory=list)
    _fixed: list[tuple[Array, str]] = field(default_factory=list)

    def fresh(self, size: int, holds_zeros: bool, interchangeable: bool = False) -> Axis | None:
        """New labels; a single index is no choice, and so fixed."""
        if size < 2:
            return None
        self.size += size
        return Axis(np.arange(self.size - size, self.size, dtype=np.int64), holds_zeros, interchangeable)

    def of(self, ref: Any) -> Axes:
        """The axes of an argument."""
        return self.axes[ref.value]

    def shape(self, ref: Ref) -> tuple[int, ...]:
        """The shape of an argument."""
        return self.tape.shapes[ref.value]

    def made(self, call: Call, output: int = 0) -> tuple[int, ...]:
        """The shape of an output."""
        return self.tape.shapes[call.outputs[output]]

    def fix(self, axis: Axis | None) -> None:
        """Let nothing of `axis` go."""
        if axis is not None:
            call = self.tape.calls[self.number]
            self._fixed.append((axis.labels, f"{call.operator} in {call.module or 'the model'}"))

    def fix_all(self, axes: Axes) -> None:
        """Let nothing of a tensor go."""
        for axis in axes:
            self.fix(axis)

    def equate(self, first: Array, second: Array) -> None:
        """Declare that labels, broadcast against each other, are the same."""
        if first is not second:
            left, right = np.broadcast_arrays(first, second)
            self._ties.append((left.ravel(), right.ravel()))

    def tie(self, axes: Sequence[Axis | None], holds_zeros: bool) -> Axis | None:
        """One axis for several of the same length: index i of each goes with index i of the others."""
        known = [axis for axis in axes if axis is not None]
        if len(known) < len(axes) or not known:
            for axis in known:
                self.fix(axis)
            return None
        for axis in known[1:]:
            self.equate(known[0].labels, axis.labels)
        return replace(known[0], holds_zeros=holds_zeros, interchangeable=all(axis.interchangeable for axis in known))

    def walk(self, rules: Mapping[str, Rule], frozen: frozenset[str] = frozenset()) -> None:
        """Apply the rules to all calls; what modules named in `frozen` touch is fixed."""
        self._begin()
        for number, call in enumerate(self.tape.calls):
            self.number = number
            if not self.tape.counts(call):
                self.axes.update((value, (None,) * len(self.tape.shapes[value])) for value in call.outputs)
                continue
            for ref in call.refs:
                self.axes.setdefault(ref.value, (None,) * len(self.tape.shapes[ref.value]))
            rule = rules.get(call.operator)
            if rule is None:
                self.unknown.setdefault(call.operator, call.module)
            outputs = self._kept_whole(call) if rule is None or call.module in frozen else rule(self, call)
            if not self._fits(call, outputs):  # a form of the operator that its rule does not know
                self.unknown.setdefault(call.operator, call.module)
                outputs = self._kept_whole(call)
            self.axes.update(zip(call.outputs, outputs, strict=True))
            for ref in call.refs:
                parameter = self.weights.get(ref.value)
                if parameter is not None and call.operator in _VIEWS:
                    self.weights.update(dict.fromkeys(call.outputs, parameter))
                elif parameter is not None:
                    self.uses[parameter] = self.uses.get(parameter, 0) + 1
            for alias in call.aliases:
                self.axes[alias] = nonzero(self.axes[alias])
        for value in self.tape.results:
            for axis in self.axes.get(value, ()):
                if axis is not None:
                    self._fixed.append((axis.labels, "an output of the model"))

    def _fits(self, call: Call, outputs: Sequence[Axes]) -> bool:
        shapes = [self.tape.shapes[value] for value in call.outputs]
        return [len(axes) for axes in outputs] == [len(shape) for shape in shapes] and all(
            axis is None or len(axis) == size
            for axes, shape in zip(outputs, shapes, strict=True)
            for axis, size in zip(axes, shape, strict=True)
        )

    def _kept_whole(self, call: Call) -> Sequence[Axes]:
        for ref in call.refs:
            self.fix_all(self.of(ref))
        return [(None,) * len(self.tape.shapes[value]) for value in call.outputs]

    def _begin(self) -> None:
        """Labels for parameters and floating buffers; what the caller gives is fixed, and what is not used."""
        for name, value in self.tape.tensors.items():
            floating, masked = self.tape.dtypes[value].is_floating_point, name not in self.tape.buffers
            self.axes[value] = tuple(self.fresh(size, masked) if floating else None for size in self.tape.shapes[value])
            if masked:
                self.weights[value] = value
        for value in self.tape.inputs:
            self.axes.setdefault(value, (None,) * len(self.tape.shapes[value]))
        for name, value in self.tape.tensors.items():
            if value not in self.tape.read:
                self._fixed += [(axis.labels, f"{name} is not used") for axis in self.axes[value] if axis is not None]
            # torch takes an LSTM of as many hidden as projected units for one without projection
            hidden = self.axes[value][1] if name.rpartition(".")[2].startswith("weight_hr_l") else None
            if hidden is not None:
                self._fixed.append((hidden.labels, f"{name} must project to fewer than it projects"))

    def components(self) -> tuple[Array, dict[int, str]]:
        """Label → number of its component; and the components that are fixed, with the reason."""
        from scipy.sparse import coo_array  # noqa: PLC0415  # slow to import
        from scipy.sparse.csgraph import connected_components  # noqa: PLC0415  # as scipy.sparse

        rows = np.concatenate([np.empty(0, np.int64), *(left for left, _ in self._ties)])
        columns = np.concatenate([np.empty(0, np.int64), *(right for _, right in self._ties)])
        graph = coo_array((np.ones(len(rows), np.int8), (rows, columns)), shape=(self.size, self.size))
        _, component = connected_components(graph, directed=False)
        labels = [labels for labels, _ in self._fixed]
        number = np.repeat(np.arange(len(labels)), [len(part) for part in labels])
        held, first = np.unique(component[np.concatenate([np.empty(0, np.int64), *labels])], return_index=True)
        fixed = {int(c): self._fixed[number[i]][1] for c, i in zip(held, first, strict=True)}
        return component.astype(np.int64), fixed


_VIEWS = frozenset(
    ("t", "transpose", "permute", "view", "unsqueeze", "squeeze", "alias", "detach", "expand", "to_copy", "clone")
)


@dataclass(frozen=True)
class Split:
    """A dimension that a call splits: the labels it had, and those of each part that might keep them."""

    whole: Array
    parts: Mapping[int, Array]


def argument(call: Call, position: int, name: str, default: Any = None) -> Any:
    """An argument by position or name; operators are recorded without those that have their default."""
    if position < len(call.args):
        return call.args[position]
    return call.kwargs.get(name, default)
