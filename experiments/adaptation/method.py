"""Adaptations in an experiment: what a method is configured by, and what it is on a model."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from pruning import Masks, prunable
from pruning.adaptation import Budget, parse_budget
from pruning.attachment import Attachment
from pruning.errors import AdaptationError, ConfigurationError
from pruning.parameters import first_names, named

Globs = str | Sequence[str] | None


class Attached(ABC):
    """An adaptation on a model, whose other weights are frozen: base of all.

    Attributes:
        model: what is called from now on.
        masks: of the weights that are not removed, once `finish` was called; None for a dense network.
        filled: how many removed weights it has filled by then.
        rate, dense_rate: learning rates of what it trains of its own, and of `dense`; None: that of the optimizer.
        separate: whether a file of its own says more than the weights that it is in; otherwise it has none.
        merges: whether `finish` puts it into the weights; otherwise it stays beside them, and is attached again.
    """

    merges: bool = True
    separate: bool = True

    def __init__(self, model: nn.Module, masks: Masks | None, dense: Mapping[str, nn.Parameter]):
        """`dense` are parameters that are trained as a whole beside it, such as those of a head."""
        self.model, self.masks, self.dense, self.filled = model, masks, dict(dense), 0
        self.rate: float | None = None
        self.dense_rate: float | None = None
        self._attachment: Attachment | None = None

    @abstractmethod
    def own(self) -> dict[str, nn.Parameter]:
        """What it trains, by names."""

    def follow(self, optimizer: Optimizer) -> None:
        """Let it see every step of `optimizer`, until `finish`; removed weights that are trained as a whole stay 0."""
        every, trained = named(self.model), {id(parameter) for parameter in self.parameters()}
        masks: Mapping[str, Tensor] = self.masks or {}
        held = {name: mask for name, mask in masks.items() if name in every and id(every[name]) in trained}
        if held:
            self._attachment = Masks(held).hold(self.model, optimizer)

    def finish(self) -> nn.Module:
        """End it: the model without it, or with it in its weights where it `merges`."""
        if self._attachment is not None:
            self._attachment.detach()
        return self.model

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of all that a training changes, of statistics too: it goes on from there with `load_state_dict`."""
        return {name: tensor.detach().clone() for name, tensor in self._every().items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from `state_dict()`. Raises `AdaptationError` for the state of another adaptation."""
        every = self._every()
        if every.keys() != state.keys() or any(state[name].shape != p.shape for name, p in every.items()):
            raise AdaptationError("the state is of another adaptation: give that of this one")
        for name, parameter in every.items():
            parameter.copy_(state[name])

    def save(self, path: Path) -> None:
        """What it trains, `dense` aside, as one file."""
        save_file({name: p.detach().cpu().contiguous() for name, p in self.own().items()}, path)

    @torch.no_grad()
    def read(self, path: Path) -> None:
        """What `save` wrote. Raises `AdaptationError` for the file of another adaptation."""
        own = {f"own.{name}": value for name, value in load_file(path).items()}
        rest = {name: tensor for name, tensor in self._every().items() if not name.startswith("own.")}
        self.load_state_dict(own | rest)

    def _every(self) -> dict[str, Tensor]:
        parts: dict[str, Mapping[str, Tensor]] = {"own": self.own(), "dense": self.dense}
        parts["buffer"] = dict(self.model.named_buffers())
        return {f"{part}.{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}

    @property
    def count(self) -> int:
        """Weights that it trains, those of `dense` aside."""
        return sum(parameter.numel() for parameter in self.own().values())

    def parameters(self) -> Iterator[nn.Parameter]:
        """All that is trained, `dense` too."""
        yield from self.own().values()
        yield from self.dense.values()


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """How little is trained, and of what: base of all.

    Attributes:
        name: of its family in `pruning.adaptation.catalogue`, or of a choice of one: what labels begin with.
        learning_rate: of what it trains; of several the best on the validation part is taken.
        widen: how often the search goes on beyond the ends of `learning_rate`, while the best is at one of them.
        dense: globs of parameters that are trained as a whole beside it: a head.
        dense_rate: learning rate of these; None: the optimizer's own.
        include, exclude: globs of parameters that may be adapted, as of `pruning.prunable`; those of `dense` are not.
            Where a method acts elsewhere, they say of which weights a budget is (`lora:8`, a share).
        budget: as of `pruning.adaptation.parse_budget`, or several, each of which is a level of the run. A method of
            one size has no use for it.
        seed: of what is drawn.
    """

    name: str
    learning_rate: Sequence[float] | float
    widen: int = 2
    dense: Globs = None
    dense_rate: float | None = None
    include: Globs = None
    exclude: Globs = None
    budget: float | str | Sequence[float | str] | None = None
    seed: int = 0

    sized: ClassVar[bool] = True
    """Whether it can be of any size, within a budget."""

    def __post_init__(self) -> None:
        if not self.rates or not all(map(_is_rate, self.rates)):
            raise ConfigurationError(f"adaptation.learning_rate={self.learning_rate}: give rates above 0")
        if self.dense_rate is not None and not _is_rate(self.dense_rate):
            raise ConfigurationError(f"adaptation.dense_rate={self.dense_rate}: give a rate above 0, or null")
        if not isinstance(self.widen, int) or isinstance(self.widen, bool) or self.widen < 0:
            raise ConfigurationError(f"adaptation.widen={self.widen}: give a whole number, at least 0")

    @property
    def rates(self) -> tuple[float, ...]:
        """The learning rates to begin with, ascending."""
        given = self.learning_rate if isinstance(self.learning_rate, Sequence) else [self.learning_rate]
        return tuple(sorted(set(given)))

    @property
    def budgets(self) -> tuple[float | str | None, ...]:
        """The budgets, each for a level of the run; (None,) for a method of one size.

        Raises `ConfigurationError` where one is needed and there is none.
        """
        if not self.sized:
            return (None,)
        given = self.budget
        found = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given]
        if not found or None in found or len(set(map(str, found))) < len(found):
            raise ConfigurationError(
                f"adaptation.budget={self.budget}: give a number of weights, a share (0.4%), bytes (100kB) or "
                "lora:8, or several, each once"
            )
        return tuple(found)

    @abstractmethod
    def attach(self, model: nn.Module, masks: Masks | None, support: Masks | None = None) -> Attached:
        """It on `model`, in place.

        Args:
            model: as it is pruned.
            masks: under which it is; None: it is dense.
            support: what a `Sparse` method chose.

        Raises:
            AdaptationError: it cannot be, or the budget is too small.
            ConfigurationError: a package that it needs is missing.
        """

    def adapted(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """The parameters that may be adapted, by name."""
        first = first_names(model)
        whole = {first[name] for name in self.whole(model)}
        found = prunable(model, self.include, self.exclude, frozen=True)
        return {name: parameter for name, parameter in found.items() if first[name] not in whole}

    def whole(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """The parameters that are trained as a whole."""
        return {} if self.dense is None else prunable(model, include=self.dense, frozen=True)

    def size(self, parameters: Mapping[str, Tensor]) -> Budget:
        """The budget, of what may be adapted."""
        (budget,) = self.budgets
        assert budget is not None
        return parse_budget(budget, parameters)


def _is_rate(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
