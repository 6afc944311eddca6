"""Movement pruning: the masks follow scores that are learned beside the weights."""

from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer

from pruning.allocation import Allocation
from pruning.dynamic.gradients import DenseGradients
from pruning.dynamic.regime import Regime, moment, starting
from pruning.errors import ScheduleError
from pruning.evidence import Evidence
from pruning.granularity import Granularity
from pruning.masks import Masks
from pruning.schedules import during_training
from pruning.scorers import Movement as Learned


class Movement(Regime):
    """Scores S learn straight through the mask, ∂L/∂S = ∂L/∂W' ⊙ W. Sanh et al. 2020 (movement pruning), section 4.

    Hard: the highest-scored share of units is kept, along a cubic to `density`. Soft: units with σ(S) > `threshold`,
    and a penalty draws S down. Removed weights rest, without decay, and return as they were if their scores rise: S of
    all positions learns at every step, so that the gradient of all of them is read at every step until `end`.
    """

    def __init__(
        self,
        evidence: Evidence,
        optimizer: Optimizer,
        *,
        steps: int,
        density: float | None = None,
        threshold: float | None = None,
        seed: int = 0,
        rate: float = 1.0,
        penalty: float = 0.0,
        granularity: Granularity | None = None,
        allocation: Allocation | None = None,
        begin: float = 0.1,
        end: float = 0.75,
        every: int = 1,
    ):
        """Hold what `evidence` says is alive, and choose again among it every `every` steps from `begin` on.

        Args:
            evidence: model, prunable parameters and what lives at first.
            optimizer: of the weights.
            steps: optimizer steps of the whole training.
            density: hard: of all units at `end`, in (0, 1].
            threshold: soft, instead: in [0, 1). How much stays follows from training.
            seed: taken for the sake of a common form; nothing here is random.
            rate: learning rate of S, by plain descent.
            penalty: soft: λ of λ·Σ σ(S) over units; it grows along the cubic from 0 at `begin` to λ at `end`.
            granularity, allocation: of the masks, as in `prune`; a unit's score is the sum over its weights.
            begin: end of the warm-up, in which S learns and nothing is removed, as a share of the training.
            end: begin of the cool-down, in which the masks stay and the weights train on.
            every: steps between two choices.

        Raises:
            ScheduleError: both or neither of `density` and `threshold`, or no room between `begin` and `end`.
            ScoreError: a unit's score would not be a sum.
        """
        self._begin, self._end = moment(begin, steps, "begin"), moment(end, steps, "end")
        if (density is None) == (threshold is None):
            raise ScheduleError("movement: give either a density (hard) or a threshold (soft), and leave out the other")
        if threshold is not None and not 0.0 <= threshold < 1.0:
            raise ScheduleError(f"movement: threshold={threshold}: give one in [0, 1)")
        if self._begin >= self._end:
            raise ScheduleError(f"begin={begin}, end={end}: no step of {steps} lies between them: set them apart")
        self._alive = starting(evidence)
        self._density, self._threshold, self._every = density, threshold, every
        self._penalty, self._allocation = penalty, allocation
        if density is not None:
            self._wanted(0)
        self.learned = Learned(evidence.parameters, rate, 0.0, granularity, evidence.layouts)
        if threshold is not None:
            self.learned.soft(threshold)  # says now what is wrong with the granularity
        super().__init__(evidence.model, optimizer, self._alive, resting=True)
        self._gradients = DenseGradients(self.model, self.parameters)
        self._gradients.collect()

    @property
    def needs_dense(self) -> bool:
        """As long as scores learn, and masks may change."""
        return self.step < self._end

    def before_step(self) -> None:
        """The scores learn."""
        if self.step < self._end:
            self.learned.penalty = self._penalty * self._progress(self.step)
            self.learned.observe(self._gradients.take(), self.whole())

    def after_step(self) -> None:
        """Choose what is kept, and read the next step's gradients."""
        super().after_step()
        if self.step <= self._end and self._changes():
            if self._threshold is not None:
                self.replace(self.learned.soft(self._threshold) & self._alive)
            else:
                self.replace(self.learned.hard(self._wanted(self.step), self._allocation, within=self._alive))
        if self.step < self._end:
            self._gradients.collect()

    def finish(self) -> Masks:
        self._gradients.stop()
        return super().finish()

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"scores": self.learned.scores}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        for name, score in self.learned.scores.items():
            score.copy_(state["scores"][name])
        self._gradients.stop()
        if self.step < self._end:
            self._gradients.collect()

    def _changes(self) -> bool:
        return self.step == self._end or (self.step > self._begin and (self.step - self._begin) % self._every == 0)

    def _wanted(self, step: int) -> float:
        assert self._density is not None
        return during_training(
            step,
            density=self._density,
            begin=self._begin,
            end=self._end,
            every=self._every,
            start=self._alive.density,
        )

    def _progress(self, step: int) -> float:
        """From 0 at `begin` to 1 at `end`, along the cubic."""
        done = (step - self._begin) / (self._end - self._begin)
        return 1.0 - (1.0 - min(max(done, 0.0), 1.0)) ** 3
