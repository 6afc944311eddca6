"""Overlap of test items with what was seen, against a search of every window."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.evaluation.contamination import overlapping, repeated
from pruning.errors import DataError

TEXTS = st.lists(st.lists(st.integers(0, 3), max_size=12).map(lambda one: np.array(one, dtype=np.int64)), max_size=6)


@settings(max_examples=300, deadline=None)
@given(TEXTS, TEXTS, st.integers(1, 7))
def test_overlap_is_that_of_every_window(items, seen, n) -> None:
    known = {
        tuple(text[at : at + size]) for text in seen for size in range(1, n + 1) for at in range(len(text) - size + 1)
    }
    for item, found in zip(items, overlapping(items, seen, n), strict=True):
        size = min(n, len(item))
        windows = {tuple(item[at : at + size]) for at in range(len(item) - size + 1)} if size else set()
        assert found == bool(windows & known)


def test_a_planted_leak_is_found_among_many_tokens_and_a_clean_set_is_clean() -> None:
    draw = np.random.default_rng(0)
    seen = [draw.integers(0, 30_000, 500) for _ in range(100)]
    items = [draw.integers(0, 30_000, 40) for _ in range(50)]
    assert not overlapping(items, seen, 8).any()
    items[7][10:18] = seen[31][200:208]
    items[9][30:40] = seen[99][:10]
    items[11][5:12] = seen[50][100:107]  # seven tokens alone
    assert np.flatnonzero(overlapping(items, seen, 8)).tolist() == [7, 9]
    assert np.flatnonzero(overlapping(items, seen, 10)).tolist() == [9]


def test_windows_do_not_reach_from_text_to_text() -> None:
    seen = [np.array([1, 2, 3]), np.array([4, 5, 6])]
    assert overlapping([np.array([3, 4]), np.array([2, 3]), np.array([4, 5, 7])], seen, 2).tolist() == [
        False,
        True,
        True,
    ]


def test_whole_examples() -> None:
    draw = np.random.default_rng(0)
    seen = draw.random((20, 3, 4)).astype(np.float32)
    items = draw.random((5, 3, 4)).astype(np.float32)
    items[2] = seen[11]
    items[3] = seen[4]
    items[3, 0, 0] += 1e-6
    assert repeated(items, seen).tolist() == [False, False, True, False, False]


def test_mistakes_are_named() -> None:
    with pytest.raises(DataError, match="n=0"):
        overlapping([], [], 0)
    with pytest.raises(DataError, match="below 0"):
        overlapping([np.array([1, -100])], [np.array([1])], 2)
