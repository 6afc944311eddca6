"""Prefix tuning for encoders: learned keys and values before those of the input; peft has it for decoders alone."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pruning.adaptation.freezing import check_free, freeze
from pruning.errors import AdaptationError
from pruning.parameters import unwrapped

_NAME = "prefixed_sdpa"


class Prefix(nn.Module):
    """Keys and values of n learned positions, [n, heads · width] each; Li & Liang 2021, without its reparametrisation.

    The output of attention is softmax(q [Pₖ; K]ᵀ / √d) [Pᵥ; V]: a mean of what attention gave and of the prefix, by how
    much of the softmax each has (He et al. 2022, equation 7).
    """

    def __init__(self, length: int, width: int, seed: int = 0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.key = nn.Parameter(torch.randn(length, width, generator=generator) * 0.02)
        self.value = nn.Parameter(torch.randn(length, width, generator=generator) * 0.02)


class Prefixes:
    """Prefixes in every self-attention of an encoder, which is frozen but for them, until `detach()`.

    They are modules of the model, named `prefix`, so that its `state_dict` has them. Attention runs by torch's
    scaled_dot_product_attention meanwhile.
    """

    def __init__(self, model: nn.Module, length: int, seed: int = 0):
        """Put a prefix of `length` positions into every self-attention.

        Raises:
            AdaptationError: transformers is missing, a length below 1, an adaptation is there already, or the model has
                no self-attention of transformers that sees both ways: for decoders take peft's PrefixTuningConfig.
        """
        if length < 1:
            raise AdaptationError(f"prefixes: length={length}: give at least 1")
        self.model = unwrapped(model)
        self._attentions = list(_attentions(self.model))
        check_free(self.model)
        _register()
        configs: dict[int, Any] = {}
        for number, module in enumerate(self._attentions):
            key: Any = module.key
            prefix = Prefix(length, key.out_features, 1000 * seed + number)
            module.add_module("prefix", prefix.to(key.weight.device, key.weight.dtype))
            config: Any = module.config
            configs[id(config)] = config
        self._removers: list[Callable[[], None]] = [freeze(self.model, self.parameters(), "prefixes")]
        for module in self._attentions:
            self._removers.append(module.register_forward_pre_hook(_check_acting).remove)
        for config in configs.values():
            self._removers.append(partial(setattr, config, "_attn_implementation", config._attn_implementation))
            config._attn_implementation = _NAME

    def parameters(self) -> Iterator[nn.Parameter]:
        """What is trained."""
        for module in self._attentions:
            yield from module.get_submodule("prefix").parameters()

    def detach(self) -> None:
        """Take the prefixes out; the model is as before, and so is what may be trained of it."""
        while self._removers:
            self._removers.pop()()
        for module in self._attentions:
            module._modules.pop("prefix", None)


def _attentions(model: nn.Module) -> Iterator[nn.Module]:
    """Self-attention modules that call the attention function that their configuration names, and see both ways."""
    found = False
    for module in model.modules():
        layers = [getattr(module, name, None) for name in ("query", "key", "value")]
        if not all(isinstance(layer, nn.Linear) for layer in layers) or not hasattr(module, "config"):
            continue
        causal = getattr(module, "is_causal", False) or getattr(module, "is_decoder", False)
        if causal or "CrossAttention" in type(module).__name__:
            raise AdaptationError(
                f"{type(module).__name__}: is no encoder's: take peft's PrefixTuningConfig for decoders"
            )
        found = True
        yield module
    if not found:
        raise AdaptationError(
            f"{type(model).__name__}: has no self-attention with query, key and value of transformers' encoders: take "
            "adapters, or peft's PrefixTuningConfig for a decoder"
        )


def _check_acting(module: nn.Module, _: Any) -> None:
    """Raise `AdaptationError` where attention runs in another way, which would leave the prefix out."""
    config: Any = module.config
    if config._attn_implementation != _NAME:
        raise AdaptationError(
            f"{type(module).__name__}: its attention was set to {config._attn_implementation}, in which prefixes do "
            "not act: leave it as it is until detach()"
        )


def _register() -> None:
    """Make attention with a prefix known to transformers, under a name that configurations can hold."""
    try:
        from transformers import AttentionInterface, AttentionMaskInterface  # noqa: PLC0415  # an optional extra
        from transformers.masking_utils import sdpa_mask  # noqa: PLC0415  # an optional extra
    except ImportError as error:
        raise AdaptationError("prefixes need transformers: pip install 'sparse-subnetworks[text]'") from error
    AttentionInterface.register(_NAME, _attend)
    AttentionMaskInterface.register(_NAME, sdpa_mask)


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor | None]:
    """Attention of transformers with the prefix of `module`; tensors are [batch, heads, positions, width]."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward  # noqa: PLC0415  # an optional extra

    prefix = module.get_submodule("prefix")
    length = prefix.get_parameter("key").shape[0]
    batch, heads, _, width = key.shape

    def before(own: Tensor, name: str) -> Tensor:
        learned = prefix.get_parameter(name).view(length, heads, width).transpose(0, 1)
        return torch.cat([learned.expand(batch, -1, -1, -1), own], dim=2)

    if attention_mask is not None:
        seen = attention_mask.new_ones if attention_mask.dtype == torch.bool else attention_mask.new_zeros
        attention_mask = torch.cat([seen(*attention_mask.shape[:-1], length), attention_mask], dim=-1)
    found: tuple[Tensor, Tensor | None] = sdpa_attention_forward(
        module, query, before(key, "key"), before(value, "value"), attention_mask, **options
    )
    return found
