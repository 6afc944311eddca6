"""Floats in descending order, and their positions: a stable counting sort by half of the bits, then by the others."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

FEW = 1 << 13  # values: so few are sorted by torch
PIECE = 1 << 15  # values of a piece, which fits the cache

_SIGN = 1 << 31

Array = npt.NDArray[Any]


def descending_magnitudes(values: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """|values| in descending order and the position of each, piece by piece; of equal ones the earlier position first.

    On a CPU float32 takes a third of the time of torch's stable sort, with the same result, and less memory.

    Args:
        values: floats, flat.
    """
    if not (values.is_cpu and values.dtype == torch.float32 and FEW < values.numel() < 1 << 31):
        ordered, places = values.abs().sort(descending=True, stable=True)
        yield ordered, places
        return
    digits = np.empty(values.numel(), np.int32)
    keys = digits.view(np.uint32)  # floats that are not negative are in the order of their bits; NaN is above all
    np.bitwise_and(values.contiguous().numpy().view(np.uint32), _SIGN - 1, out=keys)
    largest = keys.max()
    np.subtract(largest, keys, out=keys)
    pairs = np.empty((keys.size, 2), np.uint32)
    pairs[:, 0], pairs[:, 1] = np.arange(keys.size, dtype=np.uint32), keys
    half = (int(keys.max()).bit_length() + 1) // 2
    digits &= (1 << half) - 1
    pairs = _by_digit(pairs, digits, 1 << half)
    np.right_shift(pairs[:, 1], half, out=keys)
    pairs = _by_digit(pairs, digits, 1 << half)
    for start in range(0, len(pairs), PIECE):
        positions, keys = pairs[start : start + PIECE].T
        yield torch.from_numpy((largest - keys).view(np.float32)), torch.from_numpy(positions.astype(np.int64))


def _by_digit(pairs: Array, digits: Array, size: int) -> Array:
    """`pairs` in the order of `digits`, each below `size`; what is equal stays in order.

    SciPy turns a matrix from rows to columns by a counting sort. Here it has one row, and the digits are its columns.
    """
    from scipy.sparse import csr_array  # noqa: PLC0415  # slow to import

    packed = pairs.view(np.uint64)[:, 0]
    columns: Array = csr_array((packed, digits, np.array([0, packed.size], np.int32)), shape=(1, size)).tocsc().data
    return columns.view(np.uint32).reshape(-1, 2)
