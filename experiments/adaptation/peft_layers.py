"""Layers of peft's in a model: how they are made with a seed, trained, and put into the weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from experiments.adaptation.four_bits import put
from experiments.adaptation.method import Attached
from experiments.adaptation.whole import freeze, thaw
from experiments.runtime.extras import missing
from pruning import Masks
from pruning.adaptation import merge
from pruning.errors import ConfigurationError


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


class Tuned(Attached):
    """Layers of peft's beside those of the model.

    Attributes:
        whole: layers by their paths, which come back at the end, as their weights are held in four bits meanwhile; then
            nothing is merged.
        keep: whether merging keeps the zeros of the masks.
    """

    def __init__(self, model: nn.Module, masks: Masks | None, dense: dict[str, nn.Parameter], tuner: Any):
        super().__init__(model, masks, dense)
        self._tuner, self.keep = tuner, True
        self.whole: dict[str, nn.Module] = {}
        self._own = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._required = freeze(model, [*self._own.values(), *dense.values()])

    @property
    def merges(self) -> bool:  # type: ignore[override]  # of the object here
        """Whether `finish` puts it into the weights."""
        return not self.whole

    def own(self) -> dict[str, nn.Parameter]:
        return self._own

    def finish(self) -> nn.Module:
        thaw(self._required)
        if self.whole:
            self._tuner.unload()
            for path, layer in self.whole.items():
                put(self.model, path, layer)
            return self.model
        merged = merge(self._tuner, self.masks, self.keep)
        self.masks, self.filled = merged.masks, 0 if self.keep else merged.filled or 0
        return self.model
