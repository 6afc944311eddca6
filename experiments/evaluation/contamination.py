"""Which test items share text with what a network has seen: exact n-gram overlap, Brown et al. 2020, appendix C.

Windows of n tokens are numbered, the same tokens alike and no others, by doubling: those of 1, 2, 4, … tokens, each by
the pair of its halves. Nothing is hashed, so that no overlap is found where there is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from experiments.data.examples import Batch, Data, Examples, Splits, take
from pruning.errors import DataError

Tokens = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Overlap:
    """Test items that share text with what was seen.

    Attributes:
        n: tokens in a row that are shared; None where whole examples are, as data are no text.
        flags: of every test item, whether it overlaps.
    """

    n: int | None
    flags: Flags

    @property
    def words(self) -> str:
        """What is shared, in words."""
        return "whole examples" if self.n is None else f"{self.n} tokens in a row"


def overlaps(
    splits: Splits, sizes: Sequence[int], targets: str = "targets", more: Sequence[Tokens] = ()
) -> list[Overlap]:
    """The overlap of the test part with the training part, and with `more` texts, for each n of `sizes`.

    Raises `DataError` for `more` beside data that are no text.
    """
    test, train = (take(part, len(part)) for part in (splits.test, splits.train))
    items, seen = texts_of(test, targets), texts_of(train, targets)
    if items is not None and seen is not None:
        return [Overlap(n, overlapping(items, [*seen, *more], n)) for n in sizes]
    if len(more):
        raise DataError("--against: the data are no text: leave it out")
    return [Overlap(None, repeated(_bytes(test, targets), _bytes(train, targets)))]


def without(data: Data, flags: Flags) -> Examples:
    """The examples that are not flagged. Raises `DataError` where all are."""
    if flags.all():
        raise DataError("every test item overlaps: nothing is left to measure")
    [batch] = data.batches([torch.from_numpy(np.flatnonzero(~flags))])
    return Examples(**batch)


def overlapping(items: Sequence[Tokens], seen: Sequence[Tokens], n: int) -> Flags:
    """Whether an item shares `n` tokens in a row with any of the texts in `seen`; of an item of fewer, all of them.

    Args:
        items, seen: token ids from 0, one array a text. An empty item overlaps with nothing.
        n: at least 1; 8 to 13 are usual.

    Raises `DataError` for an n below 1, or ids below 0.
    """
    if n < 1:
        raise DataError(f"n={n}: give at least 1")
    found = np.zeros(len(items), dtype=bool)
    lengths = np.array([min(len(item), n) for item in items])
    for length in sorted(set(lengths[lengths > 0].tolist())):
        at = np.flatnonzero(lengths == length)
        texts = [*seen, *(items[int(number)] for number in at)]
        windows, owners = _windows(texts, length)
        of_items = owners >= len(seen)
        shared = of_items & np.isin(windows, np.unique(windows[~of_items]))
        found[at[np.unique(owners[shared] - len(seen))]] = True
    return found


def texts_of(batch: Batch, targets: str = "targets") -> list[Tokens] | None:
    """The token ids of every example, without padding; None where the data are no text.

    They are the column "input_ids", or else the only other one of int64 [n, length]; "attention_mask" says what is
    padding.
    """
    whole = {
        name: column
        for name, column in batch.items()
        if isinstance(column, Tensor) and column.dtype == torch.int64 and column.dim() == 2
    }
    named = [name for name in whole if name == "input_ids"] or [
        n for n in whole if n not in ("attention_mask", targets)
    ]
    if len(named) != 1:
        return None
    ids = whole[named[0]].cpu()
    kept = torch.ones_like(ids) if "attention_mask" not in whole else whole["attention_mask"].cpu()
    return [row[keep.bool()].numpy() for row, keep in zip(ids, kept, strict=True)]


def repeated(items: Bytes, seen: Bytes) -> Flags:
    """Whether an item is there in `seen` as a whole; both are uint8 [examples, bytes]."""
    known = {row.tobytes() for row in seen}
    return np.array([row.tobytes() in known for row in items], dtype=bool)


def _bytes(batch: Batch, targets: str) -> Bytes:
    """All columns but `targets` as bytes, uint8 [examples, bytes]."""
    columns = [leaf for name, column in batch.items() if name != targets for leaf in tree_leaves(column)]
    parts = [np.ascontiguousarray(one.cpu().numpy()).reshape(len(one), -1).view(np.uint8) for one in columns]
    return np.concatenate(parts, axis=1)


def _windows(texts: Sequence[Tokens], length: int) -> tuple[Tokens, Tokens]:
    """Numbers of all windows of `length` tokens within single texts, and of the texts that they are of."""
    sizes = np.array([len(text) for text in texts])
    tokens = np.concatenate([np.asarray(text, dtype=np.int64) for text in texts]) if len(texts) else np.zeros(0, int)
    if len(tokens) and tokens.min() < 0:
        raise DataError("token ids: some are below 0: leave padding out")
    owners = np.repeat(np.arange(len(texts)), sizes)
    left = np.cumsum(sizes)[owners] - np.arange(len(tokens)) if len(tokens) else tokens  # tokens from here to its end
    numbers, width = np.unique(tokens, return_inverse=True)[1], 1
    while width < length:
        step = min(width, length - width)  # windows overlap in the last round
        numbers = numbers[: len(numbers) - step] * (numbers.max(initial=0) + 1) + numbers[step:]
        numbers, width = np.unique(numbers, return_inverse=True)[1], width + step
    whole = left[: len(numbers)] >= length
    return numbers[whole], owners[: len(numbers)][whole]
