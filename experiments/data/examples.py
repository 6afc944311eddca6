"""Examples that are held in memory: named columns of one length; and the three parts of a data set."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from pruning.errors import DataError

Batch = dict[str, Any]
"""Column → tensor, or a tree of tensors, with examples first."""

Positions = Tensor | slice
"""Which examples: int64 positions, or a range of them."""


class Data(Protocol):
    """A part of a data set: in memory (`Examples`), or read when it is needed (`DatasetExamples`)."""

    def __len__(self) -> int:
        """The number of examples."""
        ...

    def batches(self, chosen: Iterable[Positions], noise: int = 0) -> Iterator[Batch]:
        """A batch for each of `chosen`. What an example draws at random is a function of `noise` and its position."""
        ...

    def to(self, device: torch.device | str) -> Data:
        """The same examples, whose batches are on `device`."""
        ...


class Examples(Mapping[str, Any]):
    """Columns in memory, one row an example. A batch is a dict of the same columns, with fewer rows."""

    def __init__(self, /, **columns: Any):
        """Make examples of columns: tensors, or trees of tensors, with one row an example.

        Raises:
            DataError: no column, no example, columns of different lengths, or NaN in one.
        """
        lengths = {name: _length(name, column) for name, column in columns.items()}
        if len(set(lengths.values())) > 1:
            found = ", ".join(f"{name} has {length}" for name, length in lengths.items())
            raise DataError(f"examples: columns differ in length ({found}): give one row of each for every example")
        if not lengths or not min(lengths.values()):
            raise DataError("examples: there are none: give at least one, or another share of the data")
        for name, column in columns.items():
            _check_numbers(name, column)
        self._columns, self._length = columns, next(iter(lengths.values()))

    def __getitem__(self, name: str) -> Any:
        return self._columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        """The number of examples, not of columns."""
        return self._length

    def batches(self, chosen: Iterable[Positions], noise: int = 0) -> Iterator[Batch]:
        """A batch for each of `chosen`: copies, as models and losses may write into what they get."""
        for some in chosen:
            if isinstance(some, slice):
                yield {name: tree_map(Tensor.clone, column) for name, column in cut(self._columns, some).items()}
            else:
                yield {name: _gathered(column, some) for name, column in self.items()}

    def to(self, device: torch.device | str) -> Examples:
        """The same examples on `device`."""
        moved = Examples.__new__(Examples)
        moved._columns = {name: tree_map(lambda rows: rows.to(device), column) for name, column in self.items()}
        moved._length = self._length
        return moved


@dataclass(frozen=True, eq=False)  # eq=False: comparing tensors gives tensors, which have no truth value
class Splits:
    """The three disjoint parts: weights learn from `train`, choices from `validation`, claims from `test`."""

    train: Data
    validation: Data
    test: Data


def consecutive(count: int, size: int) -> list[slice]:
    """`count` examples in order, `size` at a time."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def take(data: Data, count: int, device: torch.device | str = "cpu") -> Batch:
    """The first `count` examples of `data`, or all it has, on `device`."""
    return next(iter(data.to(device).batches([slice(0, min(count, len(data)))])))


def rows_of(batch: Batch) -> int:
    """The number of examples of a batch."""
    first = next(iter(batch.values()))
    return len(first if isinstance(first, Tensor) else tree_leaves(first)[0])


def cut(batch: Batch, part: slice) -> Batch:
    """The examples `part` of a batch."""
    return {name: tree_map(lambda rows: rows[part], column) for name, column in batch.items()}


def chunks(batch: Batch, parts: int) -> Sequence[Batch]:
    """A batch in at most `parts` of one size, but for the last, as `torch.chunk` has them. A single example left over
    joins those before it: batch norm cannot train on one.
    """
    if parts == 1:
        return [batch]
    count = rows_of(batch)
    found = consecutive(count, -(-count // parts))
    if len(found) > 1 and found[-1].stop - found[-1].start == 1 < found[0].stop:
        found[-2:] = [slice(found[-2].start, count)]
    return [cut(batch, part) for part in found]


def _gathered(column: Any, chosen: Tensor) -> Any:
    if isinstance(column, Tensor):
        return column.index_select(0, chosen.to(column.device))
    return tree_map(lambda rows: rows.index_select(0, chosen.to(rows.device)), column)


def _length(name: str, column: Any) -> int:
    leaves = tree_leaves(column)
    if not leaves or not all(isinstance(rows, Tensor) and rows.dim() for rows in leaves):
        raise DataError(f"examples: column {name} is {type(column).__name__}: give a tensor with one row an example")
    lengths = {len(rows) for rows in leaves}
    if len(lengths) > 1:
        raise DataError(f"examples: column {name} has tensors of {sorted(lengths)} rows: give one row an example")
    return lengths.pop()


def _check_numbers(name: str, column: Any) -> None:
    for rows in tree_leaves(column):
        if not rows.is_floating_point():
            continue
        bad = (~torch.isfinite(rows)).flatten(1).any(1) if rows.dim() > 1 else ~torch.isfinite(rows)
        if bad.any():
            raise DataError(
                f"examples: column {name} is NaN or infinite in {int(bad.sum())} of {len(bad)} examples, first in "
                f"example {int(bad.nonzero()[0])}: leave them out, or fill them in"
            )
