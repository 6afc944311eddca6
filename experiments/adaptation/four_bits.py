"""Linear layers in four bits, by this project's NF4 or by bitsandbytes, put back at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from experiments.runtime.extras import missing
from pruning.adaptation.four_bits import BLOCK, quantise_
from pruning.errors import AdaptationError, ConfigurationError

BY = ("here", "bitsandbytes")


def quantised(model: nn.Module, weights: Sequence[str], by: str) -> dict[str, nn.Module]:
    """Put layers in four bits in the place of those with these `weights`; those that were there, by path."""
    paths = [name.rpartition(".")[0] for name in weights]
    before = {path: model.get_submodule(path) for path in paths}
    if by == "here":
        quantise_(model, include=list(weights))
        return before
    made = {path: _of_bitsandbytes(path, layer) for path, layer in before.items()}
    for path, layer in made.items():
        put(model, path, layer)
    return before


def put(model: nn.Module, path: str, layer: nn.Module) -> None:
    """Let `layer` be the module at `path`."""
    above, _, own = path.rpartition(".")
    setattr(model.get_submodule(above), own, layer)


def _of_bitsandbytes(path: str, layer: nn.Module) -> nn.Module:
    try:
        import bitsandbytes  # noqa: PLC0415  # an optional extra, and slow to import
    except ImportError as error:
        raise ConfigurationError(missing("bitsandbytes")) from error
    if type(layer) is not nn.Linear:
        raise AdaptationError(f"{path}: is a {type(layer).__name__}: four bits are of Linear layers: exclude it")
    if layer.weight.device.type == "cpu" and layer.in_features % BLOCK:
        raise AdaptationError(
            f"{path}: has {layer.in_features} inputs, no multiple of {BLOCK}, which bitsandbytes reads back wrongly "
            "on a CPU: set adaptation.by=here"
        )
    theirs: Any = bitsandbytes.nn
    options = {"bias": layer.bias is not None, "compute_dtype": layer.weight.dtype, "quant_type": "nf4"}
    made: Any = theirs.Linear4bit(layer.in_features, layer.out_features, **options)
    made.weight = theirs.Params4bit(layer.weight.detach().clone(), requires_grad=False, quant_type="nf4")
    made.bias = layer.bias
    moved: nn.Module = made.to(layer.weight.device)  # which rounds it
    with torch.no_grad():
        if moved.weight.dtype != torch.uint8:
            raise AdaptationError(f"{path}: bitsandbytes has not rounded its weight: set adaptation.by=here")
    return moved
