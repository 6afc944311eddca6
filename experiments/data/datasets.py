"""Examples of a map-style Dataset of torch's, larger than memory may be: read by a DataLoader, in any order."""

from __future__ import annotations

import random
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, default_collate

from experiments.data.examples import Batch, Positions
from experiments.runtime.seeding import derived_seed
from pruning.errors import DataError


@dataclass(frozen=True, eq=False)
class DatasetExamples:
    """The examples of a Dataset, with `__len__` and `__getitem__`.

    What an example draws from the random generators of torch, NumPy and Python depends on the run's seed, the epoch
    and its position alone: not on workers, nor on where a killed run went on.

    Attributes:
        dataset: examples are mappings, which become columns, or pairs, which become "inputs" and "targets".
        collate: from a list of examples to a batch.
        workers: processes that read ahead; 0: none.
        pinned: copy batches to page-locked memory, from which a GPU copies faster.
        device: of batches.

    Raises:
        DataError: data that can only be iterated, or no example.
    """

    dataset: Any
    collate: Callable[[list[Any]], Any] = default_collate
    workers: int = 0
    pinned: bool = False
    device: torch.device | str = "cpu"

    def __post_init__(self) -> None:
        name = type(self.dataset).__name__
        if isinstance(self.dataset, IterableDataset) or not all(
            hasattr(self.dataset, method) for method in ("__len__", "__getitem__")
        ):
            raise DataError(
                f"{name}: can only be iterated, so that no order of it can be repeated: give a map-style Dataset, with "
                "__len__ and __getitem__"
            )
        if not len(self.dataset):
            raise DataError(f"{name}: there are no examples: give at least one, or another share of the data")

    def __len__(self) -> int:
        return len(self.dataset)

    def to(self, device: torch.device | str) -> DatasetExamples:
        """The same examples, whose batches are on `device`."""
        return replace(self, device=device)

    def batches(self, chosen: Iterable[Positions], noise: int = 0) -> Iterator[Batch]:
        """A batch for each of `chosen`.

        Raises:
            DataError: an example that cannot be read, a batch that is none, or a worker that died.
        """
        wanted = [_positions(some, len(self)) for some in chosen]
        reader = _Reader(self.dataset, self.collate, noise)
        # batch_size=None: the reader makes whole batches, each where it is read
        loader: DataLoader[Any] = DataLoader(
            reader,
            batch_size=None,
            sampler=wanted,
            num_workers=self.workers,
            pin_memory=self.pinned,
            collate_fn=_same,
            generator=torch.Generator(),  # the global one would have another state after every loader
        )
        try:
            for found in loader:
                if isinstance(found, _Failure):
                    raise DataError(found.text)
                yield tree_map(lambda rows: rows.to(self.device, non_blocking=self.pinned), found)
        except (RuntimeError, OSError) as error:
            if isinstance(error, RuntimeError) and "worker" not in str(error):
                raise
            reason = " ".join(str(error).split())
            raise DataError(
                f"{type(_origin(self.dataset, 0)[0]).__name__}: a worker that reads ahead died or did not start "
                f"({reason}), as where memory runs out: set fewer workers, or workers=0, which says more"
            ) from error


@dataclass(frozen=True)
class _Failure:
    """Why a batch could not be read: an exception of a worker would arrive with its traceback as text."""

    text: str


@dataclass(frozen=True)
class _Reader(Dataset[Any]):
    """A map-style Dataset of batches, by positions."""

    dataset: Any
    collate: Callable[[list[Any]], Any]
    noise: int

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, positions: Sequence[int]) -> Batch | _Failure:
        name, place, fix = type(_origin(self.dataset, 0)[0]).__name__, "", ": correct it, or leave this example out"
        try:
            examples = []
            for position in positions:
                place = f"example {_origin(self.dataset, position)[1]}"
                examples.append(_read(self.dataset, position, self.noise))
            place, fix = (
                f"examples {_origin(self.dataset, positions[0])[1]} … as a batch",
                ": give a collate that joins them",
            )
            return _named(self.collate(examples), len(positions))
        except DataError as error:
            return _Failure(f"{name}: {place}: {error}")
        except (Exception, SystemExit) as error:  # whatever a user's data raise
            at = traceback.extract_tb(error.__traceback__)[-1]
            kind = " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
            return _Failure(f"{name}: {place}: {kind} ({Path(at.filename).name}, line {at.lineno}){fix}")


def _origin(dataset: Any, position: int) -> tuple[Any, int]:
    """The Dataset behind subsets, and the position there."""
    while isinstance(dataset, Subset):
        dataset, position = dataset.dataset, dataset.indices[position]
    return dataset, position


def _read(dataset: Any, position: int, noise: int) -> Any:
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            seed = derived_seed(noise, "example", position)
            torch.default_generator.manual_seed(seed)  # not CUDA's: a forked worker has none
            random.seed(seed)
            np.random.seed(seed % 2**32)
            return dataset[position]
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _named(found: Any, count: int) -> Batch:
    """The columns that a collate function returned."""
    if isinstance(found, Mapping):
        batch = dict(found)
    elif isinstance(found, list | tuple) and len(found) == 2:
        batch = {"inputs": found[0], "targets": found[1]}
    else:
        raise DataError(f"is {type(found).__name__}: give mappings, or pairs of inputs and targets")
    if not all(isinstance(rows, Tensor) for rows in tree_leaves(batch)):
        raise DataError(f"columns {', '.join(batch)}: hold something else than tensors: leave it out in collate")
    for name, column in batch.items():
        for rows in tree_leaves(column):
            if not rows.dim() or len(rows) != count:
                raise DataError(f"column {name} has {len(rows) if rows.dim() else 'no'} rows for {count} examples")
    return batch


def _same(batch: Any) -> Any:
    return batch


def _positions(chosen: Positions, count: int) -> list[int]:
    if isinstance(chosen, slice):
        return list(range(*chosen.indices(count)))
    found: list[int] = chosen.tolist()
    return found
