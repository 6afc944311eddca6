"""Architectures of torchvision, timm and transformers: what they are made of is found, and removed without a change."""

import pytest
import torch

from pruning.structure import remove, trace, verify
from tests.pruning.structure.masking import masks_of, some_kept

structure_models = pytest.importorskip("experiments.benchmarks.structure_models")

CONVOLUTIONS = {
    "torchvision": ("shufflenet_v2_x0_5", "squeezenet1_1", "mobilenet_v3_small", "mnasnet0_5"),
    "timm": ("ghostnet_100", "lcnet_050", "tinynet_e", "repghostnet_050", "mambaout_femto", "starnet_s1"),
}


def built(group, name, size=None):
    torch.manual_seed(0)
    model, inputs = dict(structure_models.models(group))[name]()
    model = structure_models.disturbed(model)
    return model, inputs if size is None else torch.randn(2, 3, size, size)


def checked(model, inputs):
    structure = trace(model, inputs)
    masks = masks_of(structure, some_kept(structure, 0, 0.7))
    small = remove(model, masks, structure)
    assert verify(model, masks, small, inputs) <= 1e-5
    return structure, small


@pytest.mark.parametrize(("group", "name"), [(group, name) for group, names in CONVOLUTIONS.items() for name in names])
def test_convolutional_networks(group, name):
    structure, small = checked(*built(group, name, 64))
    assert structure.share > 0.6
    assert sum(p.numel() for p in small.parameters()) < structure.cost("parameters")


HEADS = {
    "bert": ("bert.encoder.layer.0.attention.self.query", 4, 96),
    "vit": ("vit.layers.0.attention.q_proj", 4, 96),
    "gpt2": ("transformer.h.0.attn.c_attn", 4, 192),
    "llama": ("model.layers.0.self_attn.q_proj", 4, 96),
    "t5": ("encoder.block.0.layer.0.SelfAttention.q", 4, 96),
}


@pytest.mark.parametrize("name", HEADS)
def test_language_models_have_heads_and_inner_neurons(name):
    model, inputs = built("transformers", name)
    structure, small = checked(model, inputs)
    first, heads, neurons = HEADS[name]
    sizes = {family.name: (family.kind, family.size) for family in structure.families}
    assert sizes[first] == ("heads", heads)
    assert [kind for kind, size in sizes.values() if size == neurons] == ["neurons"] * (4 if name == "t5" else 2)
    assert not structure.frozen
    shorter = {key: value[:, :7] if value.dim() == 2 else value for key, value in inputs.items()}
    masks = masks_of(structure, some_kept(structure, 0, 0.7))
    assert verify(model, masks, small, shorter) <= 1e-5


def test_key_heads_go_with_their_query_heads():
    model, inputs = built("transformers", "llama")
    structure = trace(model, inputs)
    family = structure.families[0]
    width = {name: (structure.axes[f"model.layers.0.self_attn.{name}_proj.weight"][0] == 0).sum() for name in "qkv"}
    assert width == {"q": 12, "k": 6, "v": 6}
    assert ("model.layers.0.self_attn.o_proj.weight", 1) in family.members


def test_vision_transformers_lose_heads():
    timm = pytest.importorskip("timm")
    options = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 6, "num_classes": 5}
    model = structure_models.disturbed(timm.create_model("vit_tiny_patch16_224", **options))
    structure, small = checked(model, torch.randn(2, 3, 32, 32))
    assert [family.size for family in structure.families if family.kind == "heads"] == [6, 6]
    kept = some_kept(structure, 0, 0.7)
    assert small.blocks[0].attn.num_heads == kept[structure.families[0].units].sum() < 6


def test_shifted_windows_lose_heads_with_their_relative_positions():
    timm = pytest.importorskip("timm")
    options = {
        "img_size": 32,
        "patch_size": 2,
        "window_size": 4,
        "embed_dim": 24,
        "depths": (2, 2),
        "num_heads": (3, 6),
    }
    model = structure_models.disturbed(timm.create_model("swin_tiny_patch4_window7_224", **options, num_classes=5))
    structure, _ = checked(model, torch.randn(2, 3, 32, 32))
    heads = [family for family in structure.families if family.kind == "heads"]
    assert [family.size for family in heads] == [3, 3, 6, 6]
    assert all(any("relative_position_bias_table" in name for name, _ in family.members) for family in heads)
