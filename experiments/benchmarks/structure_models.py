"""The models of the structure benchmark: torchvision's classifiers, one of each timm family, five of transformers."""

from collections.abc import Callable, Iterator
from typing import Any

import timm
import torch
import torchvision
import transformers
from torch import nn

TIMM = """bat_resnext26ts beit_base_patch16_224 botnet26t_256 cait_xxs24_224 coat_tiny coatnet_0_rw_224 convformer_s18
convit_tiny convmixer_768_32 convnext_atto convnextv2_atto crossvit_9_240 csatv2 cspresnet50 darknet53 davit_tiny
deit_tiny_patch16_224 densenet121 dla34 dm_nfnet_f0 dpn68 eca_resnet33ts edgenext_xx_small efficientformer_l1
efficientformerv2_s0 efficientnet_b0 efficientvit_b0 efficientvit_m0 ese_vovnet19b_dw eva02_tiny_patch14_224
fasternet_t0 fastvit_t8 fbnetc_100 focalnet_tiny_srf gcresnet33ts gcvit_xxtiny gernet_s ghostnet_100 gmlp_s16_224
halonet26t hardcorenas_a hgnet_tiny hiera_tiny_224 hrnet_w18_small inception_next_tiny inception_resnet_v2 inception_v4
lambda_resnet26t lcnet_050 levit_128s mambaout_femto maxvit_nano_rw_256 mixer_s32_224 mixnet_s mnasnet_small
mobilenetv2_050 mobilenetv3_small_050 mobilenetv4_conv_small mobileone_s0 mobilevit_xxs mobilevitv2_050 mvitv2_tiny
nest_tiny nextvit_small nf_resnet50 pit_ti_224 poolformer_s12 pvt_v2_b0 rdnet_tiny regnetx_002 regnety_002
repghostnet_050 repvgg_a0 repvit_m0_9 res2net50_14w_8s resmlp_12_224 resnest14d resnet18 resnetv2_50 rexnet_100
samvit_base_patch16 selecsls42b sequencer2d_s seresnet50 shvit_s1 skresnet18 starnet_s1 swiftformer_xs
swin_tiny_patch4_window7_224 swinv2_cr_tiny_224 swinv2_tiny_window8_256 tf_efficientnetv2_b0 tiny_vit_5m_224 tinynet_e
tnt_s_patch16_224 tresnet_m twins_svt_small vgg11 visformer_tiny vit_relpos_small_patch16_224
vit_small_patch16_dinov3 vit_tiny_patch16_224 vitamin_small_224 volo_d1_224 vovnet39a xception41 xcit_nano_12_p16_224"""

Maker = Callable[[], tuple[nn.Module, Any]]
"""Makes a model with random weights, and inputs of one example (two of text)."""


def models(group: str) -> Iterator[tuple[str, Maker]]:
    """The models of "torchvision", "timm" or "transformers", by name."""
    if group == "torchvision":
        for name in torchvision.models.list_models(module=torchvision.models):
            yield name, lambda name=name: _torchvision(name)
    elif group == "timm":
        for name in TIMM.split():
            yield name, lambda name=name: _timm(name)
    else:
        yield from _TRANSFORMERS.items()


def disturbed(model: nn.Module) -> nn.Module:
    """`model` in eval mode with statistics, biases and scales that a training might have left.

    As constructed, many are 0 or 1, or 10⁻⁶: a mistake in them would not be seen.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in model.modules():
            if getattr(module, "running_var", None) is not None:
                module.running_mean.normal_(0, 0.2, generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
        for parameter in model.parameters():
            if parameter.dim() < 2 or float(parameter.abs().max()) < 1e-3:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


def warm_up() -> tuple[nn.Module, torch.Tensor]:
    """A small network: whoever is timed prunes it first, so that what happens once in a process is not timed."""
    layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 2))
    return layers, torch.randn(1, 3, 8, 8)


def _torchvision(name: str) -> tuple[nn.Module, Any]:
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    size = {"inception_v3": 299, "vit_h_14": 224}.get(name, 224)
    return torchvision.models.get_model(name, weights=None, **options), torch.randn(1, 3, size, size)


def _timm(name: str) -> tuple[nn.Module, Any]:
    model = timm.create_model(name)
    return model, torch.randn(1, *model.default_cfg["input_size"])


def _ids() -> torch.Tensor:
    return torch.randint(0, 100, (2, 12))


def _bert() -> tuple[nn.Module, Any]:
    config = transformers.BertConfig(
        vocab_size=100, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96
    )
    return transformers.BertForSequenceClassification(config), {"input_ids": _ids()}


def _vit() -> tuple[nn.Module, Any]:
    config = transformers.ViTConfig(
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        image_size=32,
        patch_size=8,
    )
    return transformers.ViTForImageClassification(config), {"pixel_values": torch.randn(2, 3, 32, 32)}


def _gpt2() -> tuple[nn.Module, Any]:
    config = transformers.GPT2Config(
        vocab_size=100, n_embd=48, n_layer=2, n_head=4, n_positions=32, bos_token_id=0, eos_token_id=1
    )
    return transformers.GPT2LMHeadModel(config), {"input_ids": _ids()}


def _llama() -> tuple[nn.Module, Any]:
    config = transformers.LlamaConfig(
        vocab_size=100,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=4,
        intermediate_size=96,
    )
    return transformers.LlamaForCausalLM(config), {"input_ids": _ids()}


def _t5() -> tuple[nn.Module, Any]:
    config = transformers.T5Config(
        vocab_size=100, d_model=48, d_kv=12, d_ff=96, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    return transformers.T5ForConditionalGeneration(config), {"input_ids": _ids(), "decoder_input_ids": _ids()}


_TRANSFORMERS: dict[str, Maker] = {"bert": _bert, "vit": _vit, "gpt2": _gpt2, "llama": _llama, "t5": _t5}
