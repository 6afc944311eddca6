"""Units that compete within rows of one tensor, block of rows by block of rows."""

import torch
from torch import Tensor

from pruning.selection import arrays, pieces
from pruning.selection.arrays import Mask, Values

SHORT = 8  # units in a row: so few are compared each with each, which takes length / 2 comparisons a unit


def top_of_rows(scores: Tensor, keep: int, alive: Tensor | None = None) -> Tensor:
    """Mask of the `keep` largest in each row of `scores` [rows, length]; rows with fewer live units keep all of them.

    Ties: the earlier column.
    """
    rows, length = scores.shape
    mask = torch.zeros(rows, length, dtype=torch.bool, device=scores.device)
    if keep == 0 or rows == 0:
        return mask
    if keep >= length:
        return mask.fill_(True) if alive is None else alive.clone()
    dtype = pieces.common_dtype([scores])
    step = max(1, pieces.piece_size(scores) // length)
    for start in range(0, rows, step):
        part = slice(start, start + step)
        block, target = arrays.native(scores[part].detach().to(dtype)), arrays.native(mask[part])
        if alive is not None:
            block = arrays.only(block, arrays.native(alive[part]), -torch.inf)  # below every live one
        (_compare if length <= SHORT else _partition)(block, keep, target)
    return mask if alive is None else mask.logical_and_(alive)


def _compare(block: Values, keep: int, target: Mask) -> None:
    """A unit stays if fewer than `keep` of its row are larger, or equal and earlier."""
    columns = [arrays.contiguous(block[:, j]) for j in range(block.shape[1])]
    ahead = [arrays.zeros(column) for column in columns]
    for i, earlier in enumerate(columns):
        for j in range(i + 1, len(columns)):
            later_is_larger = columns[j] > earlier
            ahead[i] += later_is_larger
            ahead[j] += ~later_is_larger
        target[:, i] = ahead[i] < keep


def _partition(block: Values, keep: int, target: Mask) -> None:
    """By the `keep`-th largest of each row; where several equal it, the first of them stay."""
    threshold = arrays.kth_of_rows(block, keep)
    arrays.at_least(block, threshold, target)
    if arrays.true(target) > keep * block.shape[0]:  # each row has that many at least
        above = block > threshold
        target ^= above  # those that equal it
        target &= target.cumsum(1) <= keep - above.sum(1)[:, None]
        target |= above
