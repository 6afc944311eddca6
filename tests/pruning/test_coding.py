"""Masks as bytes: there and back, near the entropy, and nothing but what was written is read."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruning.coding import BITS, GAPS, decode, encode


def drawn(total: int, density: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(total) < density


def there_and_back(mask: np.ndarray) -> tuple[str, np.ndarray]:
    coding, data = encode(mask)
    found = decode(coding, data, int(mask.sum()), mask.size)
    assert found.dtype == np.bool_
    assert np.array_equal(found, mask)
    assert data.dtype == np.uint8
    assert data.size <= -(-mask.size // 8)
    return coding, data


@given(st.integers(0, 3000), st.floats(0, 1), st.integers(0, 5))
def test_there_and_back(total, density, seed):
    there_and_back(drawn(total, density**3, seed))


@given(st.lists(st.booleans(), max_size=40))
def test_there_and_back_bit_by_bit(bits):
    there_and_back(np.array(bits, dtype=np.bool_))


@pytest.mark.parametrize("kept", [[0], [-1], [0, -1], [5000], []])
@pytest.mark.parametrize("total", [1, 8, 9, 10_000, (1 << 24) + 3])
def test_few_weights_of_many(total, kept):
    mask = np.zeros(total, np.bool_)
    mask[[position for position in kept if position < total]] = True
    coding, data = there_and_back(mask)
    if total > 100:
        assert coding == GAPS
        assert data.size <= 16
    there_and_back(~mask)


@pytest.mark.parametrize("density", [0.1, 0.05, 0.01, 0.001])
def test_sparse_masks_are_near_their_entropy(density):
    mask = drawn(1_000_000, density)
    share = mask.mean()
    entropy = -mask.size * (share * math.log2(share) + (1 - share) * math.log2(1 - share))
    coding, data = there_and_back(mask)
    assert coding == GAPS
    assert 8 * data.size <= 1.05 * entropy
    assert 8 * data.size >= 0.99 * entropy  # or something is wrong with this test


def test_dense_masks_take_a_bit_a_weight():
    coding, data = there_and_back(drawn(10_001, 0.5))
    assert (coding, data.size) == (BITS, 1251)


def sparse() -> tuple[np.ndarray, np.ndarray]:
    mask = drawn(400, 0.05)
    return mask, encode(mask)[1]


def test_a_changed_bit_is_another_valid_mask_or_refused():
    """Whatever is read keeps as many weights as the header says; a checksum beside tells the rest."""
    mask, data = sparse()
    kept = int(mask.sum())
    for position in range(8 * data.size):
        changed = data.copy()
        changed[position // 8] ^= 128 >> position % 8
        try:
            found = decode(GAPS, changed, kept, mask.size)
        except ValueError:
            continue
        assert found.sum() == kept


@pytest.mark.parametrize("total", [0, 1, 7, 399, 401, 10_000])
@pytest.mark.parametrize("kept", [0, 1, 19, 400])
def test_other_counts_never_crash(kept, total):
    data = sparse()[1]
    if kept > total:
        return
    for coding in (GAPS, BITS):
        try:
            found = decode(coding, data, kept, total)
        except ValueError:
            continue
        assert found.size == total
        assert found.sum() == kept


def test_cut_long_and_unknown_ones_are_refused():
    mask, data = sparse()
    kept = int(mask.sum())
    for bad in (data[:-1], np.append(data, np.uint8(0)), data[:0]):
        with pytest.raises(ValueError, match=r"holds|keeps"):
            decode(GAPS, bad, kept, mask.size)
    bits = np.packbits(mask)
    for bad in (bits[:-1], np.append(bits, np.uint8(0))):
        with pytest.raises(ValueError, match="holds"):
            decode(BITS, bad, kept, mask.size)
    with pytest.raises(ValueError, match="header says"):
        decode(BITS, bits, kept + 1, mask.size)
    with pytest.raises(ValueError, match="unknown coding"):
        decode("morse", data, kept, mask.size)
