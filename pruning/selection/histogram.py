"""The k-th largest of any values in two passes (four in float64): floats as integers, refined 16 bits at a time.

Floats are mapped to integers of the same order, and a histogram of these is refined around the k-th largest. What it
needs beside a piece does not depend on the values; histograms of several shards could be added up.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pruning.selection.arrays import Values, as_tensor
from pruning.selection.pieces import Run

_RADIX = 16  # bits a pass


class Threshold(NamedTuple):
    """Where a selection ends: what lies above `value` stays, and of what equals it the first `ties`, or all (None)."""

    value: float
    ties: int | None


def kth_largest(found: Sequence[Run], keep: int) -> Threshold:
    """The `keep`-th largest score."""
    dtype = found[0].dtype
    bits = torch.finfo(dtype).bits
    low = -(1 << (bits - 1))  # the keys still in question are low … low + 2^width - 1
    equal = 0
    for width in range(bits, 0, -_RADIX):
        counts = sum((_counts(run, dtype, low, width) for run in found), torch.zeros(1 << _RADIX, dtype=torch.int64))
        above = counts.flip(0).cumsum(0)  # how many lie in or above a bin
        nth_from_top = int(torch.searchsorted(above, keep))
        if nth_from_top > 0:
            keep -= int(above[nth_from_top - 1])
        place = above.numel() - 1 - nth_from_top
        low += place << (width - _RADIX)
        equal = int(counts[place])
    return Threshold(_float(low, dtype), None if keep == equal else keep)


def _counts(pieces: Iterable[Values], dtype: torch.dtype, low: int, width: int) -> Tensor:
    """Histogram, in 2^16 bins, of the values whose keys lie in low … low + 2^width - 1; NaN is left out."""
    counts = torch.zeros(1 << _RADIX, dtype=torch.int64)
    shift = width - _RADIX
    lowest, highest = _float(low, dtype), _float(low + (1 << width) - 1, dtype)
    for piece in pieces:
        values = as_tensor(piece)
        values = values[(values >= lowest) & (values <= highest)]
        index = (_keys(values) >> shift) - (low >> shift)
        # 0.0 passes for -0.0 in the comparison above, one bin too high: hence the cut
        counts += torch.bincount(index, minlength=1 << _RADIX)[: 1 << _RADIX].cpu()
    return counts


def _keys(values: Tensor) -> Tensor:
    """Integers in the order of the floats; -0.0 and 0.0 become the same key."""
    bits = (values + 0.0).view(torch.int32 if values.dtype == torch.float32 else torch.int64)
    largest = torch.iinfo(bits.dtype).max
    return bits ^ ((bits >> (torch.iinfo(bits.dtype).bits - 1)) & largest)


def _float(key: int, dtype: torch.dtype) -> float:
    """The float of a key: `_keys` undone; keys beyond the infinities are clamped to them."""
    integer = torch.int32 if dtype == torch.float32 else torch.int64
    infinity = int(torch.tensor(torch.inf, dtype=dtype).view(integer))
    key = min(max(key, -infinity - 1), infinity)
    bits = key if key >= 0 else key ^ torch.iinfo(integer).max
    return float(torch.tensor(bits, dtype=integer).view(dtype))
