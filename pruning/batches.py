"""Batches: what a loss takes, and how many examples one holds."""

import copy
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from pruning.errors import ScoreError

Batch = Any
"""Whatever the loss takes, mostly (inputs, targets)."""


def examples(batch: Batch) -> int:
    """How many examples `batch` holds, from 1: the first dimension of all its tensors that have one.

    Tensors lie in tuples, lists and mappings. A list may hold one item an example, as the images of a detector do: then
    its length counts, where the tensors within do not agree on another number. A batch that is a list itself mostly
    holds inputs and targets; one of mappings, tuples or images may hold examples.

    Raises:
        ScoreError: no tensor, no example, or tensors that do not agree (time first, say).
    """
    return _reading(batch)[0]


def has_items(batch: Batch) -> bool:
    """Whether the examples of `batch` are items of lists, not rows of tensors."""
    return _reading(batch)[1]


def cut(batch: Batch, part: slice) -> Batch:
    """The examples `part` of `batch`, in lists, tuples and mappings of the same kinds.

    Raises:
        ScoreError: as `examples`; or packed sequences, which cannot be cut.
    """
    size, items = _reading(batch)
    return _cut(batch, part, size, items, _is_list_of_examples(batch))


def _cut(batch: Any, part: slice, size: int, items: bool, inside: bool = False) -> Any:
    if isinstance(batch, PackedSequence):
        raise ScoreError("packed sequences cannot be cut into examples: give padded ones")
    if items and inside and isinstance(batch, list):
        return batch[part]
    if isinstance(batch, Tensor):
        return batch[part] if batch.dim() and len(batch) == size else batch
    if isinstance(batch, MutableMapping):
        made = copy.copy(batch)
        made.update({key: _cut(value, part, size, items, True) for key, value in batch.items()})
        return made
    if isinstance(batch, list | tuple):
        found = [_cut(value, part, size, items, True) for value in batch]
        return type(batch)(*found) if hasattr(batch, "_fields") else type(batch)(found)
    return batch


def _reading(batch: Batch) -> tuple[int, bool]:
    """How many examples there are, and whether they are items of lists."""
    if isinstance(batch, Tensor) and not batch.dim():
        return 1, False
    by_tensor, by_item = set(_sizes(batch)), set(_sizes(batch, top=True, inside=_is_list_of_examples(batch)))
    readings = {size for sizes in (by_tensor, by_item) if len(sizes) == 1 for size in sizes}
    if len(readings) == 1:
        (size,) = readings
        if not size:
            raise ScoreError("a batch holds no examples: leave it out")
        return size, len(by_tensor) != 1
    found = sorted(by_tensor | by_item)
    if not found:
        raise ScoreError(
            f"a batch of type {type(batch).__name__} holds no tensor that counts examples: give tensors, or tuples or "
            "dicts of them, or Evidence(count=...)"
        )
    raise ScoreError(
        f"a batch holds {' or '.join(map(str, found))} examples, by its tensors and lists: put examples first in all "
        "of them, or give Evidence(count=...), from a batch to its number of examples"
    )


def _is_list_of_examples(batch: Batch) -> bool:
    """Whether a batch may be a list with one item an example: of mappings or tuples, or of images of one shape."""
    if not isinstance(batch, list) or len(batch) < 2:
        return False
    images = [part.shape for part in batch if isinstance(part, Tensor) and part.dim() == 3]
    return all(isinstance(part, Mapping | tuple) for part in batch) or (
        len(images) == len(batch) and len(set(images)) == 1
    )


def _sizes(part: Any, top: bool = False, inside: bool = False) -> Iterator[int]:
    """First dimensions of the tensors in `part`; with `top`, lists inside it count by their lengths instead."""
    if isinstance(part, Tensor):
        if part.dim():
            yield part.size(0)
    elif isinstance(part, PackedSequence):
        yield int(part.batch_sizes[0])
    elif isinstance(part, Mapping):
        for value in part.values():
            yield from _sizes(value, top, True)
    elif top and inside and isinstance(part, list):
        yield len(part)
    elif isinstance(part, list | tuple):
        for value in part:
            yield from _sizes(value, top, True)
