"""peft's adaptations on pruned models: masks find their weights, and merging keeps zeros or counts what it fills."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pruning import Evidence, Masks, prunable, prune, scorers
from pruning.adaptation import merge
from pruning.errors import AdaptationError
from pruning.parameters import first_names, named

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Sequential(nn.Linear(16, 16), nn.Tanh()), nn.Linear(16, 3))


METHODS: dict[str, Callable[[], Any]] = {
    "lora": lambda: peft.LoraConfig(r=2, target_modules=["0", "2.0"], modules_to_save=["3"]),
    "rslora": lambda: peft.LoraConfig(r=4, use_rslora=True, rank_pattern={"0": 2}, target_modules=["0", "2.0"]),
    "dora": lambda: peft.LoraConfig(r=2, use_dora=True, target_modules=["0", "2.0"]),
    "ia3": lambda: peft.IA3Config(target_modules=["0", "2.0"], feedforward_modules=["2.0"]),
    "shira": lambda: peft.ShiraConfig(r=2, target_modules=["0", "2.0"]),
}


def pruned() -> tuple[nn.Sequential, Masks]:
    model = network()
    masks = prune(scorers.magnitude(Evidence(model, prunable(model))), 0.5)
    masks.apply_(model)
    return model, masks


def wrapped(method: str) -> tuple[Any, Masks]:
    model, masks = pruned()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.get_peft_model(model, METHODS[method]()), masks


def train(model: nn.Module, steps: int = 4) -> None:
    x = torch.linspace(-2, 2, 96).view(8, 12).sin()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), torch.arange(8) % 3).backward()
        optimizer.step()


@pytest.mark.parametrize("method", METHODS)
def test_the_names_of_the_base_model_are_those_that_it_had(method: str) -> None:
    before = {name: parameter.detach().clone() for name, parameter in network().named_parameters()}
    model, masks = wrapped(method)
    found = named(model)
    assert before.keys() <= found.keys()
    assert all(first_names(model)[name] == name for name in before)
    assert all(torch.equal(found[name], before[name] * masks.get(name, torch.tensor(True))) for name in before)
    assert masks.agree(model)
    assert set(masks) <= set(prunable(model, frozen=True))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("keep", [True, False])
def test_merging_keeps_the_zeros_or_counts_what_it_fills(method: str, keep: bool) -> None:
    model, masks = wrapped(method)
    train(model)
    assert masks.agree(model)
    x = torch.randn(5, 12)
    outputs = model.eval()(x)
    changes = _changes(method)
    found = merge(model, masks, keep)
    filled = sum(int((change[~masks[name]] != 0).sum()) for name, change in changes.items())
    assert found.filled == filled
    assert (filled == 0) == (method == "ia3")  # rows times numbers
    assert masks.agree(found.model) == (keep or filled == 0)
    assert {name for name, _ in found.model.named_parameters()} == {name for name, _ in network().named_parameters()}
    weights = named(found.model)
    for name, change in changes.items():
        wanted = change * masks[name] if keep else change
        torch.testing.assert_close(weights[name].detach(), wanted, atol=1e-6, rtol=1e-5)
    if not keep:
        torch.testing.assert_close(found.model(x), outputs, atol=1e-5, rtol=1e-5)
        assert found.masks is not None
        assert found.masks.agree(found.model)


def _changes(method: str) -> dict[str, Tensor]:
    """The merged weights by the formulas of the papers, from the trained factors."""
    model, _ = wrapped(method)
    train(model)
    found = {}
    if method == "lora":  # its head is a trained copy
        found["3.weight"] = model.get_base_model()[3].modules_to_save["default"].weight.detach()
    for name, path in (("0.weight", "0"), ("2.0.weight", "2.0")):
        layer = model.get_base_model().get_submodule(path)
        weight = layer.base_layer.weight.detach()
        if method in ("lora", "rslora", "dora"):
            a, b = layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach()
            rank = len(a)
            alpha = 8
            moved = weight + b @ a * (alpha / rank**0.5 if method == "rslora" else alpha / rank)
            if method == "dora":
                size = layer.lora_magnitude_vector["default"].weight.detach()
                moved = moved * (size / moved.norm(dim=1))[:, None]
            found[name] = moved
        elif method == "ia3":
            factor = layer.ia3_l["default"].detach().flatten()
            found[name] = weight * (factor[None] if path == "2.0" else factor[:, None])
        else:
            delta = torch.sparse_coo_tensor(
                layer.shira_indices["default"], layer.shira_weight["default"].detach(), weight.shape
            )
            found[name] = weight + delta.to_dense()
    return found


def test_masks_hold_the_base_weights_of_a_wrapped_model_that_trains_them() -> None:
    model, masks = wrapped("lora")
    for name, parameter in named(model).items():
        parameter.requires_grad_(name in masks or "lora" in name)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    with masks.attach(model, optimizer):
        x = torch.randn(8, 12)
        for _ in range(3):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
    assert masks.agree(model)
    assert bool((named(model)["0.weight"] != network()[0].weight * masks["0.weight"]).any())


def test_what_cannot_be_merged_is_refused() -> None:
    model, masks = wrapped("lora")
    with pytest.raises(AdaptationError, match="Sequential: cannot be merged"):
        merge(network())
    named(model)["0.weight"].data.fill_(1.0)
    with pytest.raises(AdaptationError, match="removed weights are not zero"):
        merge(model, masks)
    config = transformers.AutoConfig.for_model(
        "llama", vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    decoder = transformers.AutoModelForCausalLM.from_config(config)
    names = {name for name, _ in decoder.named_parameters()}
    prompted = peft.get_peft_model(decoder, peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    assert names <= named(prompted).keys()
    with pytest.raises(AdaptationError, match="cannot be merged"):
        merge(prompted)
    assert merge(wrapped("lora")[0]).filled is None
