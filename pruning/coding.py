"""A mask as few bytes: one bit a weight, or the gaps between kept weights in Golomb-Rice code, whichever is smaller.

A gap g, the number of removed weights before a kept one, is written as its quotient g >> k in unary, so many zeros and
a one that stops, and its lowest k bits, the remainder. First come all remainders, then all quotients, as two packed
arrays of bits. Where weights are kept at random, this is within about 3 % of the mask's entropy. Golomb 1966, Rice 1979
"""

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.bool_]
Bytes = NDArray[np.uint8]

BITS, GAPS = "bits", "gaps"
_GOLDEN = (5**0.5 - 1) / 2


def encode(mask: Bits) -> tuple[str, Bytes]:
    """The name of the smaller coding, and `mask` (one dimension) in it. Equal masks have equal bytes."""
    kept = int(np.count_nonzero(mask))
    if mask.size and not kept:
        return GAPS, np.empty(0, np.uint8)
    k = _parameter(kept, mask.size)
    if k == 0:  # the gaps' unary quotients would be the mask's own bits
        return BITS, np.packbits(mask)
    places: NDArray[np.int64] = np.flatnonzero(mask).astype(np.int64, copy=False)
    gaps: NDArray[np.int64] = np.diff(places, prepend=-1) - 1
    stops = np.cumsum((gaps >> k) + 1) - 1
    if _bytes(kept * k) + _bytes(int(stops[-1]) + 1) >= _bytes(mask.size):
        return BITS, np.packbits(mask)
    unary = np.zeros(int(stops[-1]) + 1, np.bool_)
    unary[stops] = True
    remainders = np.empty((kept, k), np.bool_)
    for bit in range(k):
        remainders[:, bit] = gaps >> bit & 1
    return GAPS, np.concatenate([np.packbits(remainders), np.packbits(unary)])


def decode(coding: str, data: Bytes, kept: int, total: int) -> Bits:
    """The mask of `total` weights, `kept` of them kept (0 <= kept <= total < 2^48), that `encode` wrote as `data`.

    Raises `ValueError`, which says what is wrong, for all that `encode` does not write.
    """
    if coding == BITS:
        mask = _bits(data, total)
        if np.count_nonzero(mask) != kept:
            raise ValueError(f"keeps {np.count_nonzero(mask)} weights, its header says {kept}")
        return mask
    if coding != GAPS:
        raise ValueError(f"is in an unknown coding, {coding!r}")
    mask = np.zeros(total, np.bool_)
    mask[_positions(data, kept, total)] = True
    return mask


def _positions(data: Bytes, kept: int, total: int) -> NDArray[np.int64]:
    k = _parameter(kept, total)
    split = _bytes(kept * k)
    remainders = _bits(data[:split], kept * k).reshape(kept, k)
    stops = np.flatnonzero(np.unpackbits(data[split:])).astype(np.int64, copy=False)
    if stops.size != kept:
        raise ValueError(f"keeps {stops.size} weights, its header says {kept}")
    length = int(stops[-1]) + 1 if kept else 0
    if data.size - split != _bytes(length):
        raise ValueError(f"holds {data.size} bytes for the gaps of {kept} weights")
    # Before anything is added up, so that no sum can leave int64: 2^k is less than total / kept.
    if (length - kept) << k > total:
        raise ValueError(f"has gaps that run past its {total} weights")
    gaps = (np.diff(stops, prepend=-1) - 1) << k
    for bit in range(k):
        gaps |= remainders[:, bit].astype(np.int64) << bit
    positions: NDArray[np.int64] = np.cumsum(gaps + 1) - 1
    if kept and positions[-1] >= total:
        raise ValueError(f"has gaps that run past its {total} weights")
    return positions


def _bits(data: Bytes, count: int) -> Bits:
    """`count` packed bits, with nothing but zeros after them."""
    if data.size != _bytes(count):
        raise ValueError(f"holds {data.size} bytes for {count} bits")
    bits = np.unpackbits(data).view(np.bool_)
    if bits[count:].any():
        raise ValueError(f"holds more than its {count} bits")
    return bits[:count]


def _bytes(bits: int) -> int:
    return -(-bits // 8)


def _parameter(kept: int, total: int) -> int:
    """The k for which the code of geometric gaps is shortest on average.

    With x = (1 - density)^(2^k) a gap takes k + 1 / (1 - x) bits; k + 1 is better where x is above the golden ratio's
    0.618. By multiplications alone, which every machine rounds alike: reader and writer need not exchange k.
    """
    if not kept:
        return 0
    k, x = 0, 1 - kept / total
    while x > _GOLDEN:
        k, x = k + 1, x * x
    return k
