"""The table of adaptations: what it says is trained is what is trained, and what it says of zeros is so."""

from typing import Any

import pytest
import torch
from torch import nn

from pruning import Masks
from pruning.adaptation import Adapters, Prefixes, Prompt, Tuning
from pruning.adaptation.catalogue import FAMILIES, table
from pruning.adaptation.four_bits import quantise_

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

SIZES = {"inputs": 12, "outputs": 20, "rank": 3, "width": 16, "bottleneck": 5, "length": 7, "places": 9}


def layer() -> nn.Sequential:
    return nn.Sequential(nn.Linear(12, 20))


def encoder() -> Any:
    config = transformers.AutoConfig.for_model(
        "bert", vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=4
    )
    return transformers.AutoModel.from_config(config)


def wrapped(config: Any, model: nn.Module | None = None) -> list[nn.Parameter]:
    found = peft.get_peft_model(layer() if model is None else model, config)
    return [p for p in found.parameters() if p.requires_grad]


def quantised() -> nn.Module:
    model = layer()
    quantise_(model)
    return model


def support(count: int) -> Masks:
    mask = torch.zeros(20, 12, dtype=torch.bool)
    mask.view(-1)[:count] = True
    return Masks({"0.weight": mask})


TRAINED = {
    "full": lambda: Tuning(layer(), support(240)).parameters(),
    "sparse": lambda: Tuning(layer(), support(9)).parameters(),
    "bitfit": lambda: Tuning(layer(), {"0.bias": torch.ones(20, dtype=torch.bool)}).parameters(),
    "lora": lambda: wrapped(peft.LoraConfig(r=3, target_modules=["0"])),
    "dora": lambda: wrapped(peft.LoraConfig(r=3, use_dora=True, target_modules=["0"])),
    "qlora": lambda: wrapped(peft.LoraConfig(r=3, target_modules=["0"]), quantised()),
    "sparse_lora": lambda: [
        *Tuning(layer(), support(9)).parameters(),
        *wrapped(peft.LoraConfig(r=3, target_modules=["0"])),
    ],
    "ia3": lambda: wrapped(peft.IA3Config(target_modules=["0"], feedforward_modules=[])),
    "adapters": lambda: Adapters(encoder(), 5).parameters(),
    "prefix": lambda: Prefixes(encoder(), 7).parameters(),
    "prompt": lambda: Prompt(encoder(), 7).parameters(),
}


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_what_the_table_says_is_trained(family: Any) -> None:
    assert sum(p.numel() for p in TRAINED[family.name]()) == family.count(SIZES)


def test_the_table_has_every_family_once() -> None:
    lines = table().splitlines()
    assert [line.split("`")[1] for line in lines[2:]] == [family.name for family in FAMILIES] == list(TRAINED)
    assert {line.count(" | ") for line in lines} == {7}
    assert all((family.zeros is None) == (not family.merges) for family in FAMILIES)
