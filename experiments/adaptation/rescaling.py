"""IA3: learned factors of keys, values and feed-forward layers, from peft."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from experiments.adaptation.method import Attached, Method
from experiments.adaptation.peft_layers import Tuned, any_of, imported, linear_layers, made
from pruning import Masks, prunable
from pruning.errors import AdaptationError, ConfigurationError

KNOWN = {
    "bert": (["*attention.self.key.weight", "*attention.self.value.weight"], ["*output.dense.weight"]),
    "llama": (["*k_proj.weight", "*v_proj.weight"], ["*down_proj.weight"]),
}
"""Type of a model of transformers → globs of what has its outputs rescaled, and of what has its inputs rescaled."""


@dataclass(frozen=True, kw_only=True)
class Rescaling(Method):
    """l ⊙ h of keys and values, and W (l ⊙ x) of feed-forward layers (IA3, Liu et al. 2022). It has one size.

    Attributes:
        outputs, inputs: globs of weights whose layers have outputs or inputs rescaled; None: those of the paper, where
            the model is of transformers and known.
    """

    outputs: Sequence[str] | None = None
    inputs: Sequence[str] | None = None

    sized: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.include is not None or self.exclude is not None:
            raise ConfigurationError(
                "adaptation.include, exclude: say nothing here: give globs as adaptation.outputs and adaptation.inputs"
            )

    def attach(self, model: nn.Module, masks: Masks | None, support: Masks | None = None) -> Attached:
        """Put factors beside these layers."""
        peft = imported()
        dense = self.whole(model)
        outputs, inputs = (_paths(model, globs) for globs in self._globs(model))
        if not (outputs or inputs):
            raise AdaptationError("adaptation.outputs, inputs: name no layer: give globs of weights of linear layers")
        config = peft.IA3Config(target_modules=any_of([*outputs, *inputs]), feedforward_modules=any_of(inputs))
        required = {parameter: parameter.requires_grad for parameter in model.parameters()}
        return Tuned(model, masks, dense, made(peft.tuners.ia3.IA3Model, model, config, self.seed), required)

    def _globs(self, model: nn.Module) -> tuple[Sequence[str], Sequence[str]]:
        if self.outputs is not None or self.inputs is not None:
            return self.outputs or (), self.inputs or ()
        kinds = {getattr(getattr(module, "config", None), "model_type", None) for module in model.modules()}
        known = [KNOWN[kind] for kind in KNOWN if kind in kinds]
        if not known:
            raise AdaptationError(
                f"{type(model).__name__}: its keys, values and feed-forward layers are not known: give "
                "adaptation.outputs and adaptation.inputs, globs of their weights"
            )
        return known[0]


def _paths(model: nn.Module, globs: Sequence[str]) -> list[str]:
    """Paths of the linear layers of these weights. Raises `AdaptationError` for what is no weight of one."""
    chosen = prunable(model, include=list(globs), frozen=True) if globs else {}
    linear = linear_layers(model, chosen) if chosen else {}
    for name in chosen:
        if name.rpartition(".")[0] not in linear or not name.endswith(".weight"):
            raise AdaptationError(f"{name}: is no weight of a linear layer: leave it out of adaptation.outputs, inputs")
    return list(linear)
