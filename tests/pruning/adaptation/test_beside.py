"""A sparse update beside four bits against the same update of the rounded weights, in the weights."""

import copy

import pytest
import torch
from torch import Tensor, nn

from pruning import Evidence, Masks, prunable, prune, scorers
from pruning.adaptation import Beside, Tuning
from pruning.adaptation.four_bits import FourBitLinear, quantise_
from pruning.errors import AdaptationError


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Linear(32, 48), nn.ReLU(), nn.Sequential(nn.Linear(48, 32, bias=False)), nn.Linear(32, 4)
    return nn.Sequential(*layers).to(dtype)


def support_of(model: nn.Module, density: float = 0.05) -> Masks:
    evidence = Evidence(model, prunable(model, exclude="3.*"))
    return prune(scorers.random(evidence), density)


def rounded(model: nn.Module) -> nn.Module:
    """With the weights that four bits hold, as floats."""
    found, held = copy.deepcopy(model), copy.deepcopy(model)
    for path in quantise_(held, exclude="3.*"):
        found.get_submodule(path).weight.data.copy_(held.get_submodule(path).weight)
    return found


@pytest.mark.parametrize("four_bits", [True, False])
@pytest.mark.parametrize("shape", [(6, 32), (2, 3, 32), (1, 32), (0, 32)])
def test_training_beside_is_training_within(four_bits: bool, shape: tuple[int, ...]) -> None:
    base = network()
    support = support_of(base)
    within = rounded(base) if four_bits else copy.deepcopy(base)
    if four_bits:
        quantise_(base, exclude="3.*")
    before = copy.deepcopy(base.state_dict())
    tuning, beside = Tuning(within, support), Beside(base, support)
    assert beside.count == tuning.count == int(sum(mask.sum() for mask in support.values()))
    optimizers = [torch.optim.AdamW(list(one.parameters()), lr=1e-2, weight_decay=0.1) for one in (tuning, beside)]
    tuning.follow(optimizers[0])
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        x: Tensor = torch.randn(shape, generator=generator)
        for model, optimizer in zip((within, base), optimizers, strict=True):
            optimizer.zero_grad()
            model(input=x).square().sum().backward()
            optimizer.step()
    for name, values in tuning.values.items():
        torch.testing.assert_close(beside.values[name], values, rtol=1e-4, atol=1e-6)
        assert shape[0] == 0 or bool(values.abs().min() > 0)
    x = torch.randn(5, 32)
    torch.testing.assert_close(base(x), within(x), rtol=1e-4, atol=1e-6)
    state = base.state_dict()
    assert {name.rpartition(".")[2] for name in state.keys() - before.keys()} == {"difference"}
    beside.detach()
    after = base.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(parameter.requires_grad for parameter in base.parameters())


def test_the_numbers_of_half_precision_are_those_of_the_dense_product() -> None:
    model = network(torch.bfloat16)
    beside = Beside(model, support_of(model))
    assert {values.dtype for values in beside.parameters()} == {torch.float32}
    for values in beside.parameters():
        values.data.normal_(std=0.1)
    x = torch.randn(7, 32).bfloat16()
    dense = torch.zeros(48, 32)
    dense[beside.support["0.weight"]] = beside.values["0.weight"].detach()
    found = model[0](x)
    beside.detach()
    want = model[0](x) + (x.float() @ dense.t()).bfloat16()
    torch.testing.assert_close(found, want, rtol=1e-2, atol=1e-2)
    assert found.dtype == torch.bfloat16


def test_over_four_bits_of_bitsandbytes() -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes").nn
    layer = nn.Linear(64, 8)
    theirs = bitsandbytes.Linear4bit(64, 8, compute_dtype=torch.float32, quant_type="nf4")
    theirs.load_state_dict(layer.state_dict())
    theirs, ours = nn.Sequential(theirs.to("cpu")), nn.Sequential(FourBitLinear(layer))
    mask = torch.rand(8, 64, generator=torch.Generator().manual_seed(0)) < 0.1
    x, outputs = torch.randn(4, 64), []
    for model in (theirs, ours):
        beside = Beside(model, {"0.weight": mask})
        beside.values["0.weight"].data.fill_(0.5)
        outputs.append(model(x))
        beside.detach()
        outputs[-1] = outputs[-1] - model(x)
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(outputs[1], x @ (0.5 * mask.float()).t(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("support", "message"),
    [
        ({"0.weight": torch.zeros(48, 32, dtype=torch.bool)}, "trains nothing"),
        ({"9.weight": torch.ones(48, 32, dtype=torch.bool)}, "not the weight of a linear layer"),
        ({"0.bias": torch.ones(48, dtype=torch.bool)}, "not the weight of a linear layer"),
        ({"0.weight": torch.ones(32, 48, dtype=torch.bool)}, "has a mask"),
        ({"0.weight": torch.ones(48, 32)}, "has a mask"),
    ],
)
def test_other_supports_are_refused_and_nothing_is_left_behind(support: dict[str, Tensor], message: str) -> None:
    model = network()
    with pytest.raises(AdaptationError, match=message):
        Beside(model, support)
    assert all(parameter.requires_grad for parameter in model.parameters())
    chosen = support_of(model)
    first = Beside(model, chosen)
    with pytest.raises(AdaptationError, match="has differences beside its weights already"):
        Beside(model, chosen)
    first.detach()
