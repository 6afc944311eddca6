"""Floats in descending order, and their positions: a stable counting sort by half of the bits, then by the others."""

import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_array
from torch import Tensor

FEW = 1 << 15  # values: so few are sorted by comparisons

_SIGN = 1 << 31

Array = npt.NDArray[Any]


def descending_magnitudes(values: Tensor) -> tuple[Tensor, Tensor]:
    """|values| in descending order, and the position of each in `values`; of equal ones the earlier position first.

    On a CPU float32 takes a third of the time of torch's stable sort, with the same result.

    Args:
        values: floats, flat.
    """
    counted = values.is_cpu and values.dtype == torch.float32 and 0 < values.numel() < 1 << 31
    if not counted or sys.byteorder != "little":
        ordered, positions = values.abs().sort(descending=True, stable=True)
        return ordered, positions
    digits = np.empty(values.numel(), np.int32)
    keys = digits.view(np.uint32)  # floats that are not negative are in the order of their bits; NaN is above all
    np.bitwise_and(values.contiguous().numpy().view(np.uint32), _SIGN - 1, out=keys)
    largest = keys.max()
    np.subtract(largest, keys, out=keys)
    pairs = np.empty(
        (keys.size, 2), np.uint32
    )  # read as one integer the key, which is second, counts before the position
    pairs[:, 0], pairs[:, 1] = np.arange(keys.size, dtype=np.uint32), keys
    packed = pairs.view(np.uint64)[:, 0]
    if keys.size <= FEW:
        packed.sort()
    else:
        half = (int(keys.max()).bit_length() + 1) // 2
        digits &= (1 << half) - 1
        packed = _by_digit(packed, digits, 1 << half)
        np.right_shift(packed.view(np.uint32)[1::2], half, out=keys)
        packed = _by_digit(packed, digits, 1 << half)
    pairs = packed.view(np.uint32).reshape(-1, 2)
    np.subtract(largest, pairs[:, 1], out=keys)
    return torch.from_numpy(keys.view(np.float32)), torch.from_numpy(pairs[:, 0].astype(np.int64))


def _by_digit(packed: Array, digits: Array, size: int) -> Array:
    """`packed` in the order of `digits`, each below `size`; what is equal stays in order.

    SciPy turns a matrix from rows to columns by a counting sort. Here it has one row, and the digits are its columns.
    """
    row = csr_array((packed, digits, np.array([0, packed.size], np.int32)), shape=(1, size))
    return row.tocsc().data
