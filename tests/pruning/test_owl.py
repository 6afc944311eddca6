"""Densities by outliers, against the paper's algorithm written out with NumPy."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pruning import prune
from pruning.allocation import Uniform
from pruning.errors import AllocationError
from pruning.owl import OWL, owl_densities


def scores(seed: int, blocks: int = 4) -> dict[str, torch.Tensor]:
    noise = torch.Generator().manual_seed(seed)
    return {
        f"model.layers.{block}.{name}.weight": torch.randn(12, 20, generator=noise).abs().pow(1 + block)
        for block in range(blocks)
        for name in ("up", "down")
    }


def published(found: dict[str, torch.Tensor], density: float, multiple: float, spread: float) -> list[float]:
    """Algorithm 1 for blocks of equal size."""
    shares = []
    for block in range(len(found) // 2):
        every = np.concatenate([found[f"model.layers.{block}.{n}.weight"].numpy().ravel() for n in ("up", "down")])
        shares.append((every > multiple * every.mean()).mean() * 100)
    ratio = np.array(shares)
    ratio = (ratio - ratio.min()) * (1 / (ratio.max() - ratio.min()) * spread * 2)
    return list(ratio - ratio.mean() + density)


@given(st.integers(0, 1000), st.floats(0.2, 0.7), st.sampled_from([3.0, 5.0, 7.0]), st.floats(0.0, 0.1))
def test_densities_are_those_of_the_paper(seed, density, multiple, spread):
    found = scores(seed)
    densities = owl_densities(found, density, multiple, spread)
    expected = published(found, density, multiple, spread)
    for block, value in enumerate(expected):
        for name in ("up", "down"):
            assert densities[f"model.layers.{block}.{name}.weight"] == pytest.approx(value, abs=1e-9)


def test_masks_have_the_blocks_densities_in_every_row_and_the_asked_one_in_all():
    found = scores(1)
    masks = prune(found, 0.5, allocation=OWL(spread=0.1))
    densities = owl_densities(found, 0.5, spread=0.1)
    for name, mask in masks.items():
        assert set(mask.sum(1).tolist()) == {round(densities[name] * 20)}
    assert masks.density == pytest.approx(0.5, abs=0.02)
    assert len(set(densities.values())) > 1
    within = prune(found, 0.5, allocation=OWL(spread=0.1, inner=Uniform()))
    assert {name: int(mask.sum()) for name, mask in within.items()} == {n: round(d * 240) for n, d in densities.items()}


def test_blocks_of_other_sizes_and_equal_outliers_still_meet_the_density():
    uneven = {"0.weight": torch.rand(4, 10), "1.weight": torch.rand(40, 10).pow(8), "head": torch.ones(3, 3)}
    densities = owl_densities(uneven, 0.5)
    assert sum(densities[name] * score.numel() for name, score in uneven.items()) == pytest.approx(0.5 * 449)
    assert set(owl_densities({"0.w": torch.ones(2, 2), "1.w": torch.ones(2, 2)}, 0.3).values()) == {0.3}


@pytest.mark.parametrize(
    ("options", "density", "reason"),
    [
        ({"multiple": 0.0}, 0.5, "multiple=0.0"),
        ({"spread": -0.1}, 0.5, "spread=-0.1"),
        ({"spread": 0.5}, 0.9, r"layers.\d: OWL would keep"),
        ({}, None, "density is missing"),
        ({}, 1.5, "1.5 is no density"),
    ],
)
def test_what_cannot_be_met_is_refused(options, density, reason):
    with pytest.raises(AllocationError, match=reason):
        prune(scores(0), density, allocation=OWL(**options))


def test_the_block_of_a_name_ends_at_its_first_number():
    every = {
        f"{block}.mlp.{part}.weight": scores(0)[f"model.layers.{block}.up.weight"]
        for block in (0, 1)
        for part in (0, 2)
    }
    found = owl_densities(every, 0.5)
    assert found["0.mlp.0.weight"] == found["0.mlp.2.weight"] != found["1.mlp.0.weight"]
