"""Sparse from the first step to the last: at some steps a layer drops its smallest weights and grows as many others."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from pruning.dynamic.gradients import DenseGradients
from pruning.dynamic.regime import Regime, moment
from pruning.errors import MaskError, ScheduleError
from pruning.evidence import Evidence, Scores
from pruning.masks import Masks
from pruning.seeding import generator
from pruning.selection import check_finite, top


class Exchanges:
    """When weights are exchanged, and which share of those of a layer."""

    def __init__(self, steps: int, every: int = 100, fraction: float = 0.3, end: float = 0.75):
        """See `SET`. Raises `ScheduleError` for an argument out of range."""
        self._last = moment(end, steps, "end")
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ScheduleError(f"every={every!r}: give the steps between two exchanges, at least 1")
        if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0.0 <= fraction <= 1.0:
            raise ScheduleError(f"fraction={fraction!r}: give the share that the first exchange replaces, in [0, 1]")
        self._every, self._fraction = every, fraction

    def at(self, step: int) -> bool:
        """Whether there is an exchange after `step` steps."""
        return 0 < step < self._last and step % self._every == 0

    def share(self, step: int) -> float:
        """The share that is replaced then; Evci et al. 2020, equation 1."""
        return self._fraction / 2 * (1 + math.cos(math.pi * step / self._last))


def exchange(mask: Tensor, size: Tensor, growth: Tensor, share: float, within: Tensor | None = None) -> Tensor:
    """`mask` without the `share` of smallest `size`, and with as many others of highest `growth`.

    What was just dropped may return as it was. Only what `within` has may grow; where that is too little, fewer go.
    """
    live = int(mask.sum())
    free = live if within is None else int((within & ~mask).sum())
    exchanged = min(int(share * live), free)
    (kept,) = top([size], live - exchanged, [mask])
    (grown,) = top([growth], exchanged, [~kept if within is None else within & ~kept])
    return kept | grown


class _Regrowth(Regime):
    """The exchange that SET and RigL share. The number of live weights of a layer never changes."""

    def __init__(
        self,
        evidence: Evidence,
        optimizer: Optimizer,
        *,
        steps: int,
        seed: int = 0,
        every: int = 100,
        fraction: float = 0.3,
        end: float = 0.75,
    ):
        """Hold the masks of `evidence`, and exchange weights every `every` steps.

        Args:
            evidence: its masks say where to begin (ERK, uniform, any); a DDP-wrapped model goes in as it is wrapped.
            optimizer: of the model.
            steps: optimizer steps of the whole training.
            seed: of random growth.
            every: ΔT, steps between two exchanges.
            fraction: α, the share of a layer's live weights that the first exchange replaces; it falls along half a
                cosine, α/2·(1 + cos(πt / T_end)).
            end: T_end as a share of the training, in [0, 1]; from there on the masks stay.

        Raises:
            MaskError: evidence without masks.
            ScheduleError: an argument out of range.
        """
        self._exchanges = Exchanges(steps, every, fraction, end)
        if evidence.masks is None:
            raise MaskError(f"{type(self).__name__} begins sparse: give Evidence masks, as prune makes them")
        super().__init__(evidence.model, optimizer, Masks(evidence.masks))
        self.seed = seed

    def _due(self) -> bool:
        return self._exchanges.at(self.step)

    @torch.no_grad()
    def _exchange(self, growth: Scores) -> None:
        """Drop the smallest |w|, then grow where `growth` is highest."""
        share = self._exchanges.share(self.step)
        masks = {}
        for name, mask in self.masks.items():
            check_finite(name, growth[name])
            masks[name] = exchange(mask, self.parameters[name].detach().abs(), growth[name], share)
        self.replace(Masks(masks))


class SET(_Regrowth):
    """Sparse evolutionary training: drop the smallest |w|, grow at random. Mocanu et al. 2018."""

    @property
    def needs_dense(self) -> bool:
        """At the steps after which weights are exchanged."""
        return self._exchanges.at(self.step + 1)

    def after_step(self) -> None:
        """Exchange weights after the steps ΔT, 2ΔT, …."""
        super().after_step()
        if self._due():
            self._exchange(self._random())

    def _random(self) -> Scores:
        """A function of seed and step, drawn on the CPU: the same on every device and in every process."""
        draws = generator(f"growth {self.seed} {self.step}")
        return {
            name: torch.rand(parameter.shape, generator=draws).to(parameter.device)
            for name, parameter in self.parameters.items()
        }


class RigL(_Regrowth):
    """Drop the smallest |w|, grow where the gradient is largest. Evci et al. 2020 (RigL), algorithm 1.

    The gradient of all positions is read at the steps of an exchange alone; there the exchange takes the place of the
    optimizer's step, whose gradients are set to None.
    """

    def __init__(self, evidence: Evidence, optimizer: Optimizer, **options: Any):
        """As `SET`."""
        super().__init__(evidence, optimizer, **options)
        self._gradients = DenseGradients(self.model, self.parameters)

    @property
    def needs_dense(self) -> bool:
        """At the steps whose gradients decide what grows."""
        return self._due()

    def before_step(self) -> None:
        """At the steps ΔT, 2ΔT, …: exchange weights, and leave nothing for the optimizer to do."""
        if not self._due():
            return
        self._exchange({name: gradient.abs() for name, gradient in self._gradients.take().items()})
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def after_step(self) -> None:
        super().after_step()
        if self._due():
            self._gradients.collect()

    def finish(self) -> Masks:
        self._gradients.stop()
        return super().finish()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        if self._due():
            self._gradients.collect()
