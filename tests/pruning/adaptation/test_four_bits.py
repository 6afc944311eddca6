"""NF4 against its definition, and against bitsandbytes."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pruning import Evidence, prunable, prune, scorers
from pruning.adaptation.four_bits import BLOCK, FourBitLinear, FourBits, levels, quantise_
from pruning.errors import AdaptationError

PUBLISHED = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334),
    *(-0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
"""Dettmers et al. 2023, appendix E."""


def test_the_levels_are_those_of_the_paper() -> None:
    torch.testing.assert_close(levels(), torch.tensor(PUBLISHED), atol=3e-7, rtol=0)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(0, 10**6), st.floats(1e-3, 1e3))
def test_every_weight_is_the_nearest_level_of_its_block(count: int, seed: int, size: float) -> None:
    weight = size * torch.randn(count, generator=torch.Generator().manual_seed(seed))
    weight[::7] = 0.0
    found = FourBits.of(weight)
    dense = found.dense()
    for start in range(0, count, BLOCK):
        block = weight[start : start + BLOCK]
        choices = levels() * block.abs().max()
        distance = (block[:, None] - choices).abs()
        chosen = (block - dense[start : start + BLOCK]).abs()
        torch.testing.assert_close(chosen, distance.min(1).values, rtol=1e-4, atol=1e-6 * size)
    assert bool((dense[weight == 0] == 0).all())
    assert found.nbytes == (count + 1) // 2 + 4 * -(-count // BLOCK)


def test_the_codes_are_those_of_bitsandbytes() -> None:
    """Rows are whole blocks: of others bitsandbytes 0.50 on a CPU reads back wrong numbers."""
    functional = pytest.importorskip("bitsandbytes").functional
    weight = torch.randn(48, 128, generator=torch.Generator().manual_seed(0))
    packed, state = functional.quantize_4bit(weight, blocksize=BLOCK, quant_type="nf4")
    found = FourBits.of(weight)
    assert torch.equal(packed.reshape(-1), found.codes)
    read = functional.dequantize_4bit(packed, state, quant_type="nf4")
    torch.testing.assert_close(read, found.dense(), rtol=0, atol=1e-6)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Sequential(nn.Linear(48, 32, bias=False)), nn.Linear(32, 4))


def test_layers_compute_with_the_rounded_weights_and_pass_gradients_on() -> None:
    model, x = network(), torch.randn(5, 32, requires_grad=True)
    masks = prune(scorers.magnitude(Evidence(model, prunable(model))), 0.3)
    masks.apply_(model)
    rounded = copy.deepcopy(model)
    for name in ("0", "2.0"):
        weight = rounded.get_submodule(name).weight
        weight.data.copy_(FourBits.of(weight).dense())
    assert quantise_(model, exclude="3.*") == ("0", "2.0")
    assert isinstance(model[0], FourBitLinear)
    torch.testing.assert_close(model(x), rounded(x))
    ours, theirs = (torch.autograd.grad(m(x).square().sum(), [x, m[0].bias]) for m in (model, rounded))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)
    assert bool((model[0].weight[~masks["0.weight"]] == 0).all())
    again = network()
    quantise_(again, exclude="3.*")
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(x), model(x))


def test_a_low_rank_update_of_peft_trains_over_them() -> None:
    peft = pytest.importorskip("peft")
    model = network()
    quantise_(model, exclude="3.*")
    before = copy.deepcopy(model.state_dict())
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["0", "2.0"]))
    x: Tensor = torch.randn(8, 32)
    optimizer = torch.optim.Adam([p for p in wrapped.parameters() if p.requires_grad], lr=0.01)
    losses = []
    for _ in range(20):
        loss = wrapped(x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
    after = wrapped.get_base_model().state_dict()
    assert all(
        torch.equal(after[name.replace("0.codes", "0.base_layer.codes")], v)
        for name, v in before.items()
        if name.endswith("0.codes")
    )


def test_what_has_no_four_bits_is_refused() -> None:
    with pytest.raises(AdaptationError, match="give real numbers"):
        FourBits.of(torch.tensor([1.0, torch.inf]))
    with pytest.raises(AdaptationError, match="give real numbers"):
        FourBits.of(torch.arange(3))
    model = nn.Sequential(nn.Embedding(8, 4), nn.Linear(4, 8, bias=False))
    with pytest.raises(AdaptationError, match=r"0\.weight: is not the weight of a Linear"):
        quantise_(model, include="0.*")
    tied = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    tied[1].weight = tied[0].weight
    with pytest.raises(AdaptationError, match=r"0\.weight: is tied"):
        quantise_(tied)
