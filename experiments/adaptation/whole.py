"""Parameters that are trained as they are: all of them, biases alone, or only what is dense: the head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from experiments.adaptation.method import Attached, Method
from pruning import Masks, prunable
from pruning.errors import AdaptationError, ConfigurationError
from pruning.parameters import first_names


@dataclass(frozen=True, kw_only=True)
class Whole(Method):
    """Trains parameters as a whole; those of a pruned network keep their zeros.

    Full fine-tuning, BitFit (Ben Zaken et al. 2022), or a linear probe, of which `learning_rate` is that of `dense`.

    Attributes:
        trains: globs of what is trained besides `dense`, without what the model itself has frozen; none: `dense` alone.
    """

    trains: Sequence[str] = ("*",)

    sized: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.include is not None or self.exclude is not None:
            raise ConfigurationError("adaptation.include, exclude: say nothing here: give globs as adaptation.trains")

    def attach(self, model: nn.Module, masks: Masks | None, support: Masks | None = None) -> Attached:
        """Freeze the rest."""
        dense = self.whole(model)
        if not dense and not self.trains:
            raise AdaptationError(
                f"adaptation={self.name}: nothing is trained: set training.trainable, or adaptation.dense, to the head"
            )
        first = first_names(model)
        whole = {first[name] for name in dense}
        chosen = prunable(model, include=list(self.trains)) if self.trains else {}
        return _Attached(model, masks, dense, {name: p for name, p in chosen.items() if first[name] not in whole})


class _Attached(Attached):
    separate = False

    def __init__(
        self, model: nn.Module, masks: Masks | None, dense: dict[str, nn.Parameter], trained: dict[str, nn.Parameter]
    ):
        super().__init__(model, masks, dense)
        self._own = trained
        self._required = freeze(model, [*trained.values(), *dense.values()])

    def own(self) -> dict[str, nn.Parameter]:
        return self._own

    def finish(self) -> nn.Module:
        thaw(self._required)
        return super().finish()


def freeze(model: nn.Module, trained: Sequence[nn.Parameter]) -> dict[nn.Parameter, bool]:
    """Let `trained` alone of the model's parameters be trainable; what was before, for `thaw`."""
    before = {parameter: parameter.requires_grad for parameter in model.parameters()}
    chosen = {id(parameter) for parameter in trained}
    for parameter in before:
        parameter.requires_grad_(id(parameter) in chosen)
    return before


def thaw(before: dict[nn.Parameter, bool]) -> None:
    """Undo `freeze`."""
    for parameter, required in before.items():
        parameter.requires_grad_(required)
