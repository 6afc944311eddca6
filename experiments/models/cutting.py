"""Transformers cut between two of their layers: a lower part whose states are made once, and an upper one to train."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pruning.errors import ModelError


class Entered(nn.Module):
    """In the place of embeddings: the states that enter the first layer that is left."""

    def forward(self, input_ids: Any = None, inputs_embeds: Tensor | None = None, **_: Any) -> Tensor:
        """The states as they are."""
        if inputs_embeds is None:
            raise ModelError(
                "this model begins at a later layer: give the states that enter it, as data.load.first_layer does"
            )
        return inputs_embeds


def upper_part(name: str, model: Any, first_layer: int) -> None:
    """Leave out the layers of `model` below `first_layer`, and what is before them: it reads "inputs_embeds" then.

    Raises `ModelError` for a model that is not known to be a chain of layers, or has no such one. 0 leaves it whole.
    """
    if first_layer == 0:
        return
    inner, layers = _chain(name, model, first_layer)
    del layers[:first_layer]
    if isinstance(getattr(inner, "embeddings", None), nn.Module):
        inner.embeddings = Entered()
    for place, layer in enumerate(layers):  # by which attention finds what it has seen before
        attentions: list[Any] = [module for module in layer.modules() if hasattr(module, "layer_idx")]
        for attention in attentions:
            attention.layer_idx = place
    inner.config.num_hidden_layers = len(layers)


def lower_part(name: str, model: Any, first_layer: int) -> None:
    """Leave out `first_layer` and all after it, so that "last_hidden_state" is what enters it; errors as above."""
    inner, layers = _chain(name, model, first_layer)
    del layers[first_layer:]
    if isinstance(getattr(inner, "norm", None), nn.Module):
        inner.norm = nn.Identity()
    inner.config.num_hidden_layers = len(layers)


def _chain(name: str, model: Any, first_layer: int) -> tuple[Any, nn.ModuleList]:
    """The module that runs the layers, and these: as of BERT (embeddings, encoder) or Llama (embed_tokens, norm)."""
    for inner in model.modules():
        parts = {part for part, _ in inner.named_children()}
        if parts <= {"embeddings", "encoder", "pooler"} and "embeddings" in parts:
            layers = getattr(inner.encoder, "layer", None)
            whole = {part for part, _ in inner.encoder.named_children()} == {"layer"}
        elif parts <= {"embed_tokens", "layers", "norm", "rotary_emb"} and "layers" in parts:
            layers, whole = inner.layers, True
        else:
            continue
        if getattr(inner.config, "embedding_multiplier", 1) != 1:
            whole = False  # it would be multiplied by again
        if isinstance(layers, nn.ModuleList) and whole:
            if not 0 < first_layer < len(layers):
                raise ModelError(
                    f"first_layer={first_layer}: {name} has {len(layers)} layers: give 0 to {len(layers) - 1}"
                )
            return inner, layers
    raise ModelError(f"{name}: {type(model).__name__} is not cut at a layer here: set first_layer=0")
