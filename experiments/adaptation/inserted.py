"""Small modules inside a model: bottleneck adapters, prefixes, and prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from experiments.adaptation.method import Attached, Method
from experiments.adaptation.peft_layers import imported
from experiments.adaptation.whole import freeze, thaw
from pruning import Masks
from pruning.adaptation import Adapters, Prefixes, Prompt, largest
from pruning.adaptation.adapters import Kind
from pruning.errors import ConfigurationError


@dataclass(frozen=True, kw_only=True)
class Bottlenecks(Method):
    """Adapters in feed-forward layers, as wide as the budget allows; see `pruning.adaptation.Adapters`.

    Attributes:
        kind: `parallel` or `sequential`.
        scale: of what they add.
        where: see there.
    """

    kind: Kind = "parallel"
    scale: float = 1.0
    where: Mapping[str, str] | None = None

    def attach(self, model: nn.Module, masks: Masks | None, support: Masks | None = None) -> Attached:
        """Put an adapter into every feed-forward layer."""

        def make(width: int) -> Adapters:
            return Adapters(model, width, self.kind, self.where, scale=self.scale, seed=self.seed)

        return _fitted(self, model, masks, make, "adapters of width 1")


@dataclass(frozen=True, kw_only=True)
class Prefix(Method):
    """Learned keys and values before those of the input, in every self-attention, as many as the budget allows.

    Those of encoders are `pruning.adaptation.Prefixes`, those of decoders peft's.
    """

    def attach(self, model: nn.Module, masks: Masks | None, support: Masks | None = None) -> Attached:
        """Put a prefix into every self-attention."""
        kind: Any = _OfDecoder if hasattr(model, "prepare_inputs_for_generation") else Prefixes
        return _fitted(self, model, masks, lambda length: kind(model, length, self.seed), "prefixes of 1 position")


@dataclass(frozen=True, kw_only=True)
class PromptTuning(Method):
    """Learned embeddings before those of the input, as many as the budget allows; see `pruning.adaptation.Prompt`.

    Attributes:
        longest: positions at most, whatever the budget, as every one costs time at every other.
    """

    longest: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.longest, int) or self.longest < 1:
            raise ConfigurationError(f"adaptation.longest={self.longest}: give a whole number, at least 1")

    def attach(self, model: nn.Module, masks: Masks | None, support: Masks | None = None) -> Attached:
        """Put a prompt before the input."""
        return _fitted(
            self, model, masks, lambda n: Prompt(model, n, self.seed), "a prompt of 1 position", self.longest
        )


class _OfDecoder:
    """peft's prefixes in a decoder, in the form of those for encoders."""

    def __init__(self, model: nn.Module, length: int, seed: int):
        peft = imported()
        required = {parameter: parameter.requires_grad for parameter in model.parameters()}
        config = peft.PrefixTuningConfig(num_virtual_tokens=length, task_type="CAUSAL_LM")
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.model: nn.Module = peft.get_peft_model(model, config)
        self._required = required

    def parameters(self) -> Iterator[nn.Parameter]:
        base = set(map(id, self._required))
        yield from (parameter for parameter in self.model.parameters() if id(parameter) not in base)

    def detach(self) -> None:
        thaw(self._required)


class _Attached(Attached):
    merges = False

    def __init__(self, model: nn.Module, masks: Masks | None, dense: dict[str, nn.Parameter], inserted: Any):
        super().__init__(inserted.model, masks, dense)
        self._base, self._inserted = model, inserted
        chosen = {id(parameter) for parameter in inserted.parameters()}
        self._own = {name: p for name, p in self.model.named_parameters() if id(p) in chosen}
        self._required = freeze(self.model, [*self._own.values(), *dense.values()])

    def own(self) -> dict[str, nn.Parameter]:
        return self._own

    def finish(self) -> nn.Module:
        super().finish()
        thaw(self._required)
        self._inserted.detach()
        return self._base


def _fitted(
    method: Method, model: nn.Module, masks: Masks | None, make: Any, smallest: str, most: int = 1 << 20
) -> Attached:
    """The largest of what `make` gives, by one number, within the budget: the count grows by the same with each."""

    def count(size: int) -> int:
        inserted = make(size)
        found: int = sum(parameter.numel() for parameter in inserted.parameters())
        inserted.detach()
        return found

    dense = method.whole(model)
    one, two = count(1), count(2)
    within = method.size(method.adapted(model))
    size = largest(within, smallest, lambda number: (one + (number - 1) * (two - one), None), most)
    return _Attached(model, masks, dense, make(size))
