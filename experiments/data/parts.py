"""Columns, or a Dataset, cut into three parts at random."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Subset, default_collate

from experiments.data.datasets import DatasetExamples
from experiments.data.examples import Examples, Splits
from experiments.runtime.seeding import generator
from pruning.errors import DataError


def split(
    data: Any,
    validation: float = 0.1,
    test: float = 0.2,
    seed: int = 0,
    stratify: Tensor | None = None,
    collate: Callable[[list[Any]], Any] = default_collate,
    workers: int = 0,
) -> Splits:
    """The three parts of `data`. The test part is the same whatever the seed, which is that of the validation part.

    Args:
        data: column → tensor, one row an example; or a map-style Dataset, which is read by a DataLoader.
        validation: share of the examples outside the test part, in (0, 1).
        test: share of all, in (0, 1).
        seed: of the validation part, in [0, 2**32).
        stratify: int64 [n]; each of its values is as frequent in every part.
        collate, workers: of a Dataset; see `DatasetExamples`.

    Raises:
        DataError: shares that leave a part empty, or as `Examples` and `DatasetExamples`.
    """
    if not (0 < validation < 1 and 0 < test < 1):
        raise DataError(f"split: validation={validation}, test={test}: give shares strictly between 0 and 1")
    columns = isinstance(data, Mapping)
    whole = Examples(**data) if columns else DatasetExamples(data, collate, workers)
    rest, last = _cut(torch.arange(len(whole)), test, 0, stratify)
    kept, held_out = _cut(rest, validation, seed, None if stratify is None else stratify[rest])
    parts: list[Any] = []
    for chosen in (kept, held_out, last):
        if columns:
            assert isinstance(whole, Examples)
            parts.append(Examples(**next(iter(whole.batches([chosen])))))
        else:
            parts.append(DatasetExamples(Subset(data, chosen.tolist()), collate, workers))
    return Splits(*parts)


def _cut(positions: Tensor, share: float, seed: int, stratify: Tensor | None) -> tuple[Tensor, Tensor]:
    """`positions` without a `share` of them, and these, both shuffled."""
    count = len(positions)
    if stratify is not None:
        from sklearn.model_selection import train_test_split  # noqa: PLC0415  # slow to import

        try:
            kept, out = train_test_split(range(count), test_size=share, random_state=seed, stratify=stratify.numpy())
        except ValueError as error:
            reason = " ".join(str(error).split())
            raise DataError(f"split: {count} examples cannot be split at share {share} ({reason})") from error
        return positions[torch.tensor(kept)], positions[torch.tensor(out)]
    size = -(-int(share * count * 10**9) // 10**9) or 1
    if size >= count:
        raise DataError(f"split: share {share} of {count} examples leaves none: choose another share or more examples")
    order = positions[torch.randperm(count, generator=generator(seed, "split", count))]
    return order[size:], order[:size]
