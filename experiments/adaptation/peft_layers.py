"""Layers of peft's in a model: how they are made with a seed, trained, and put into the weights."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from experiments.adaptation.four_bits import put
from experiments.adaptation.method import Attached
from experiments.adaptation.whole import freeze, thaw
from experiments.runtime.extras import missing
from pruning import Masks
from pruning.adaptation import merge
from pruning.errors import AdaptationError, ConfigurationError


def imported() -> Any:
    """The package peft. Raises `ConfigurationError` where it is missing."""
    try:
        import peft  # noqa: PLC0415  # an optional extra, and slow to import
    except ImportError as error:
        raise ConfigurationError(missing("peft")) from error
    return peft


def made(kind: Any, model: nn.Module, config: Any, seed: int) -> Any:
    """A tuner of peft's on `model`, in place; what it draws is a function of `seed`."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return kind(model, config, "default")


def linear_layers(model: nn.Module, adapted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Path → weight [outputs, inputs] of the linear layers, Conv1D of transformers too, whose weights are `adapted`.

    Raises `AdaptationError` where there is none. Weights of other layers are not adapted by low rank here.
    """
    found = {}
    for name, parameter in adapted.items():
        path, _, own = name.rpartition(".")
        module = model.get_submodule(path)
        if own == "weight" and (type(module) is nn.Linear or type(module).__name__ == "Conv1D"):
            found[path] = parameter
    if not found:
        raise AdaptationError(
            f"{type(model).__name__}: none of its linear layers may be adapted: give adaptation.include, exclude"
        )
    return found


def exact(path: str) -> str:
    """A pattern of peft's that matches this path alone."""
    return f"^{re.escape(path)}"


def any_of(paths: Iterable[str]) -> str:
    """A pattern of peft's that matches these paths alone: names in a list would match by their ends."""
    return "|".join(map(re.escape, paths))


class Tuned(Attached):
    """Layers of peft's beside those of the model."""

    def __init__(
        self,
        model: nn.Module,
        masks: Masks | None,
        dense: dict[str, nn.Parameter],
        tuner: Any,
        required: Mapping[nn.Parameter, bool],
        whole: Mapping[str, nn.Module] | None = None,
        keep: bool = True,
    ):
        """Train what `tuner` has put into `model`.

        Args:
            model, masks, dense: as of `Attached`.
            tuner: of peft.
            required: what could be trained before.
            whole: layers by their paths, which come back at the end, as their weights are held in four bits meanwhile;
                then nothing is merged.
            keep: whether merging keeps the zeros of the masks.
        """
        super().__init__(model, masks, dense)
        self._tuner, self._required, self._keep = tuner, dict(required), keep
        self._whole = dict(whole or {})
        self.merges = not self._whole
        self._own = {name: p for name, p in model.named_parameters() if p.requires_grad}
        freeze(model, [*self._own.values(), *dense.values()])

    def own(self) -> dict[str, nn.Parameter]:
        return self._own

    def finish(self) -> nn.Module:
        super().finish()
        if self._whole:
            self._tuner.unload()
            for path, layer in self._whole.items():
                put(self.model, path, layer)
        else:
            merged = merge(self._tuner, self.masks, self._keep)
            self.masks, self.filled = merged.masks, 0 if self._keep else merged.filled or 0
        thaw(self._required)
        return self.model
