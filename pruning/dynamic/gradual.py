"""Gradual pruning: a scorer's masks grow sparser every few steps, while the network trains on."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal

import torch
from torch.optim import Optimizer

from pruning.allocation import Allocation
from pruning.dynamic.regime import Regime, moment, starting
from pruning.errors import ScheduleError
from pruning.evidence import Evidence, Scorer, untouched, with_layouts
from pruning.granularity import Granularity
from pruning.masks import Masks
from pruning.pipeline import prune
from pruning.schedules import Shape, during_training


class Gradual(Regime):
    """From the density of the start to `density`, along a cubic. Zhu & Gupta 2017, equation 1, with any scorer."""

    def __init__(
        self,
        evidence: Evidence,
        optimizer: Optimizer,
        *,
        steps: int,
        density: float,
        scorer: Scorer,
        seed: int = 0,
        granularity: Granularity | None = None,
        allocation: Allocation | None = None,
        begin: float = 0.0,
        end: float = 0.75,
        every: int = 100,
        shape: Shape = "cubic",
        regrow: bool = False,
        mode: Literal["train", "eval"] = "eval",
    ):
        """Prune at `begin`, every `every` steps, and at `end`, where exactly `density` is reached.

        Args:
            evidence: what the scorer sees; its masks, if any, are where to begin.
            optimizer: of the model.
            steps: optimizer steps of the whole training.
            density: at the end, of all units, in (0, 1].
            scorer: asked at every pruning, with the masks of the moment; of many processes the first one's count.
            seed: taken for the sake of a common form; nothing here is random.
            granularity, allocation: as in `prune`.
            begin, end: shares of the training, in [0, 1]; from `end` on the masks stay.
            every: steps between two prunings.
            shape: of the density over the steps.
            regrow: removed weights rest at the values that they had. At every pruning they are put back, scored with
                all others, and may return, as in the paper; else masks only lose.
            mode: of the model while it is scored.

        Raises:
            ScheduleError: no room between `begin` and `end`, or `density` above that of the start.
        """
        self._begin, self._end = moment(begin, steps, "begin"), moment(end, steps, "end")
        alive = starting(evidence)
        self._start, self._density, self._every, self._shape = alive.density, density, every, shape
        if self._begin >= self._end:
            raise ScheduleError(f"begin={begin}, end={end}: no step of {steps} lies between them: set them apart")
        self._wanted(0)  # whatever is wrong with the schedule is said before a step is taken
        super().__init__(evidence.model, optimizer, alive, resting=regrow)
        self._evidence, self._scorer, self._mode, self._regrow = evidence, scorer, mode, regrow
        self._granularity, self._allocation = granularity, allocation

    def _wanted(self, step: int) -> float:
        return during_training(
            step,
            density=self._density,
            begin=self._begin,
            end=self._end,
            every=self._every,
            start=self._start,
            shape=self._shape,
        )

    @property
    def needs_dense(self) -> bool:
        """At the steps after which weights are removed."""
        return self._wanted(self.step + 1) != self._wanted(self.step)

    def after_step(self) -> None:
        """Prune, if the schedule says so."""
        super().after_step()
        density = self._wanted(self.step)
        if density != self._wanted(self.step - 1):
            self.replace(self._pruned(density))

    def _pruned(self, density: float) -> Masks:
        evidence = replace(self._evidence, masks=None if self._regrow else self.masks)
        with untouched(self.model), self._all_weights():
            self.model.train(self._mode == "train")
            scores = with_layouts(self._scorer(evidence), evidence)
        return prune(scores, density, self._granularity, self._allocation, evidence.masks)

    @contextmanager
    def _all_weights(self) -> Iterator[None]:
        """What rests is in the network within; masked again afterwards."""
        with torch.no_grad():
            for name, weight in self.whole().items():
                self.parameters[name].copy_(weight)
        try:
            yield
        finally:
            self.masks.apply_(self.model)
