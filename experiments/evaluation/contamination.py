"""Which test items share text with what a network has seen: exact n-gram overlap, Brown et al. 2020, appendix C.

Windows of n tokens are numbered, the same tokens alike and no others, by doubling: those of 1, 2, 4, … tokens, each by
the pair of its halves. Nothing is hashed, so that no overlap is found where there is none.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pruning.errors import DataError

Tokens = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


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


def repeated(items: npt.NDArray[np.generic], seen: npt.NDArray[np.generic]) -> Flags:
    """Whether an item is there in `seen` as a whole, bit by bit; both are [examples, …] of one dtype and shape."""
    rows = [np.ascontiguousarray(part).reshape(len(part), -1) for part in (items, seen)]
    kind = np.dtype((np.void, rows[0].dtype.itemsize * rows[0].shape[1]))
    one, other = (part.view(kind)[:, 0] for part in rows)
    found: Flags = np.isin(one, other)
    return found


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
