"""Parameters that are trained as they are: all of them, biases alone, or only what is beside: the head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn
from torch.optim import Optimizer

from experiments.adaptation.method import Attached, Method
from pruning import Masks, prunable
from pruning.attachment import Attachment
from pruning.parameters import first_names, named


@dataclass(frozen=True, kw_only=True)
class Whole(Method):
    """Trains parameters as a whole; those of a pruned network keep their zeros.

    Full fine-tuning, BitFit (Ben Zaken et al. 2022), or a linear probe.

    Attributes:
        trains: globs of what is trained besides `dense`; none: `dense` alone.
    """

    trains: Sequence[str] = ("*",)

    sized: ClassVar[bool] = False

    def attach(self, model: nn.Module, masks: Masks | None, support: Masks | None = None) -> Attached:
        """Freeze the rest."""
        dense = self.beside(model)
        first = first_names(model)
        beside = {first[name] for name in dense}
        chosen = prunable(model, include=list(self.trains), frozen=True) if self.trains else {}
        return _Attached(model, masks, dense, {name: p for name, p in chosen.items() if first[name] not in beside})


class _Attached(Attached):
    def __init__(
        self, model: nn.Module, masks: Masks | None, dense: dict[str, nn.Parameter], trained: dict[str, nn.Parameter]
    ):
        super().__init__(model, masks, dense)
        self._own, self._attachment = trained, None
        self._required = freeze(model, [*trained.values(), *dense.values()])

    _attachment: Attachment | None

    def own(self) -> dict[str, nn.Parameter]:
        return self._own

    def follow(self, optimizer: Optimizer) -> None:
        every = named(self.model)
        trained = {id(p) for p in self.parameters()}
        held = {} if self.masks is None else {n: m for n, m in self.masks.items() if id(every[n]) in trained}
        if held:
            self._attachment = Masks(held).hold(self.model, optimizer)

    def finish(self) -> nn.Module:
        if self._attachment is not None:
            self._attachment.detach()
        thaw(self._required)
        return self.model


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
