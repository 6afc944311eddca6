"""Trees of plain data and tensors come back as they were, or not at all."""

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from pruning import snapshot
from pruning.errors import ArtefactError

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool)


def equal(one: Any, two: Any) -> bool:
    """Of the same types all the way down; NaN is NaN."""
    if type(one) is not type(two):
        return False
    if isinstance(one, Tensor):
        return one.dtype == two.dtype and one.shape == two.shape and torch.equal(one.float(), two.float())
    if isinstance(one, np.ndarray):
        return one.dtype == two.dtype and np.array_equal(one, two)
    if isinstance(one, dict):
        return list(one) == list(two) and all(equal(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(equal, one, two))
    return one == two or (isinstance(one, float) and math.isnan(one) and math.isnan(two))


@st.composite
def tensors(draw: Callable[..., Any]) -> Tensor:
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    tensor = torch.arange(math.prod(shape), dtype=torch.float32).view(shape).to(draw(st.sampled_from(DTYPES)))
    return tensor.transpose(0, 1) if tensor.dim() > 1 and draw(st.booleans()) else tensor


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | tensors()
TREES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.integers() | st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=10,
)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=TREES)
def test_a_tree_comes_back_as_it_was(tmp_path: Path, tree: Any) -> None:
    snapshot.save(tmp_path / "file", tree)
    assert equal(snapshot.load(tmp_path / "file"), tree)


def test_random_states_come_back(tmp_path: Path) -> None:
    state = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    snapshot.save(tmp_path / "file", state)
    assert equal(snapshot.load(tmp_path / "file"), state)


def test_a_damaged_file_is_never_read(tmp_path: Path) -> None:
    """Every byte flipped, and cut at every length."""
    path = tmp_path / "file"
    snapshot.save(path, {"a": torch.arange(3.0), 1: (2, None)})
    whole = path.read_bytes()
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << (position % 8)
        for content in (bytes(damaged), whole[:position]):
            path.write_bytes(content)
            with pytest.raises(ArtefactError) as caught:
                snapshot.load(path)
            assert "\n" not in str(caught.value)
    path.write_bytes(whole)
    assert equal(snapshot.load(path), {"a": torch.arange(3.0), 1: (2, None)})


@pytest.mark.parametrize("tree", [object(), {"a": {1, 2}}, [len], {"a": 1j}])
def test_what_is_no_plain_data_is_refused(tmp_path: Path, tree: Any) -> None:
    with pytest.raises(ArtefactError, match="neither plain data nor a tensor"):
        snapshot.save(tmp_path / "file", tree)
    assert not (tmp_path / "file").exists()


def test_a_file_that_is_not_there_and_a_folder_that_is_not(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="file: cannot be read"):
        snapshot.load(tmp_path / "file")
    with pytest.raises(OSError, match="cannot be written"):
        snapshot.save(tmp_path / "none" / "file", {})
