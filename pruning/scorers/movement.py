"""Movement: scores that are learned beside the weights while the network trains.

The network runs with W' = W ⊙ M(S). Straight through the mask, ∂L/∂S = ∂L/∂W' ⊙ W, also for removed weights, whose W
is still there: their scores go on moving, so they may come back. Sanh et al. 2020, section 4.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice

import torch
from torch import Tensor, nn

from pruning.allocation import Allocation
from pruning.batches import Batch
from pruning.errors import ScoreError
from pruning.evidence import Evidence, Scores, accumulated, laid_out, untouched
from pruning.gradients import Differentiation
from pruning.granularity import Granularity, TensorGranularity, Weights
from pruning.layouts import LaidOut, Layout, layout_of
from pruning.masks import Masks
from pruning.parameters import unwrapped
from pruning.pipeline import prune
from pruning.processes import average_, sum_of
from pruning.schedules import cubic


class Movement:
    """The scores S of one network in training; their own learning rate, in their own optimizer (plain descent)."""

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        rate: float = 1.0,
        penalty: float = 0.0,
        granularity: Granularity | None = None,
        layouts: Mapping[str, Layout] | None = None,
    ):
        """S = 0, of the parameters' shapes, in at least float32.

        Args:
            parameters: name → prunable weights.
            rate: learning rate of S. It scales S, so it changes no ranking; the thresholds of `soft` do see it.
            penalty: λ of the term λ·Σ σ(S) over units that draws scores down (soft movement).
            granularity: the units that one score stands for; `Weights()` if None. A unit's score is the sum of its
                weights' entries in S.
            layouts: of weights that have another than the standard one, by name: see `pruning.layouts.layouts`.

        Raises:
            ScoreError: a unit's score would not be a sum.
        """
        self.granularity: Granularity = Weights() if granularity is None else granularity
        if getattr(self.granularity, "pooling", "sum") != "sum":
            raise ScoreError("movement: the score of a unit is the sum over its weights: set pooling=sum")
        self.rate, self.penalty = rate, penalty
        self.scores = LaidOut({name: torch.zeros_like(accumulated(p)) for name, p in parameters.items()}, layouts or {})

    def observe(self, gradients: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
        """One step of S. `gradients` are ∂L/∂W', dense; `weights` W, with those that the mask removes."""
        for name, score in self.scores.items():
            slope = accumulated(gradients[name]) * accumulated(weights[name])
            if self.penalty:
                slope += self.penalty * self._penalty_slope(name, score)
            score -= self.rate * slope

    def hard(
        self, density: float, allocation: Allocation | None = None, within: Mapping[str, Tensor] | None = None
    ) -> Masks:
        """The highest-scored `density` of all units: top-v. Removed ones compete again, save those outside `within`."""
        return prune(self.scores, density, self.granularity, allocation, within)

    def soft(self, threshold: float) -> Masks:
        """The units with σ(S) > `threshold`, in [0, 1). How many stay follows from training."""
        masks, granularity = {}, self._tensorwise()
        for name, score in self.scores.items():
            layout = layout_of(self.scores, name)
            unit = granularity.units(name, score, None, layout).scores
            masks[name] = granularity.mask(unit.sigmoid() > threshold, score.shape, layout)
        return Masks(masks)

    def __call__(self, evidence: Evidence | None = None) -> Scores:
        """The scores so far: a scorer as any other. Per weight; units are their sums."""
        return LaidOut({name: score.clone() for name, score in self.scores.items()}, self.scores.layouts)

    def _penalty_slope(self, name: str, score: Tensor) -> Tensor:
        """σ'(S) of a unit in equal shares for its weights, so that the sum over the unit moves by it."""
        granularity, layout = self._tensorwise(), layout_of(self.scores, name)
        unit = granularity.units(name, score, None, layout).scores.sigmoid()
        size = granularity.units(name, torch.ones_like(score), None, layout).scores
        return granularity.mask(unit * (1 - unit) / size, score.shape, layout)

    def _tensorwise(self) -> TensorGranularity:
        if not isinstance(self.granularity, TensorGranularity):
            raise ScoreError(
                f"movement: thresholds and penalties are of units in one tensor, {type(self.granularity).__name__} "
                "reach over several: give a density instead, or Vectors(0)"
            )
        return self.granularity


@laid_out
def movement(
    evidence: Evidence,
    steps: int | None = None,
    learning_rate: float = 0.1,
    rate: float = 1.0,
    density: float | None = None,
    threshold: float | None = None,
    penalty: float = 0.0,
    granularity: Granularity | None = None,
    allocation: Allocation | None = None,
) -> Scores:
    """S = -rate·Σ_t g_t·w_t while a copy of the network trains by SGD: kept is what moves away from 0.

    Signed: weights that shrink score below 0. Sanh et al. 2020 (movement pruning), equation 6; soft: section 4, "soft
    movement pruning"; blocks: Lagunas et al. 2021. The model itself is as before when this returns.

    Args:
        steps: of SGD, one batch each, again from the first batch after the last; None: each batch once.
        learning_rate: of all weights that train; plain SGD.
        rate: of the scores; it matters for `threshold` and `penalty` alone.
        density: hard: while training, only the highest-scored share of units is kept, from what is alive at the first
            step down to this along a cubic; what it removes may come back. None (and no threshold): all that is alive
            trains.
        threshold: soft: only units with σ(S) above it are kept, in [0, 1).
        penalty: of Σ σ(S), see `Movement`.
        granularity, allocation: of the masks while training; give those of the final masks.

    Raises:
        ScoreError: no loss or data, or arguments that do not fit together.
    """
    with untouched(evidence.model):  # a loader draws from the global random state
        batches = list(evidence.batches)
    if evidence.loss is None or not batches:
        raise ScoreError("movement: trains: give Evidence a loss and batches")
    if density is not None and threshold is not None:
        raise ScoreError("movement: density (hard) and threshold (soft) exclude each other: give one")
    if density is not None and not 0.0 < density <= 1.0:
        raise ScoreError(f"movement: density={density}: give one in (0, 1]")
    if threshold is not None and not 0.0 <= threshold < 1.0:
        raise ScoreError(f"movement: threshold={threshold}: give one in [0, 1)")
    steps = len(batches) if steps is None else steps
    if steps < 1:
        raise ScoreError(f"movement: steps={steps}: give at least 1")
    if sum_of(evidence.model, 1) * sum_of(evidence.model, steps**2) != sum_of(evidence.model, steps) ** 2:
        raise ScoreError(f"movement: {steps} steps here, others in other processes: give all of them as many batches")
    learned = Movement(evidence.parameters, rate, penalty, granularity, evidence.layouts)
    alive = Masks.dense(evidence.parameters) if evidence.masks is None else Masks(evidence.masks)
    densities = None  # of every step, the last at `density`
    if density is not None and density < alive.density and steps > 1:
        densities = cubic(density, steps - 1, alive.density)
    with _copy(evidence) as copy:
        for number, batch in enumerate(islice(cycle(batches), steps)):
            masks = alive
            if threshold is not None:
                masks = learned.soft(threshold) & alive
            elif densities is not None and number:
                masks = learned.hard(densities[number], allocation, within=alive)
            gradients = copy.gradients(evidence, batch, masks)
            learned.observe(gradients, copy.weights)
            copy.descend(gradients, masks, learning_rate)
    return learned()


@dataclass(frozen=True)
class _Copy:
    """Weights W of a network apart from the network, which carries W ⊙ M while it computes."""

    parameters: dict[str, nn.Parameter]
    weights: Scores
    differentiate: Differentiation

    def gradients(self, evidence: Evidence, batch: Batch, masks: Masks) -> Scores:
        """∂L/∂W', dense, of all that trains."""
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                weight = self.weights[name]
                parameter.copy_(weight.where(masks[name], 0) if name in masks else weight)
        found = self.differentiate(batch)
        average_(evidence.model, found.values())
        return found

    def descend(self, gradients: Scores, masks: Masks, rate: float) -> None:
        """W ← W - rate·∂L/∂W: through the mask, so what is removed rests."""
        for name, gradient in gradients.items():
            kept = gradient.where(masks[name], 0) if name in masks else gradient
            self.weights[name].sub_(kept, alpha=rate)


@contextmanager
def _copy(evidence: Evidence) -> Iterator[_Copy]:
    """All that trains: the prunable weights, and what else takes gradients. Put back afterwards."""
    every = dict(unwrapped(evidence.model).named_parameters())
    parameters = dict(evidence.parameters) | {name: p for name, p in every.items() if p.requires_grad}
    before = {name: p.detach().clone() for name, p in parameters.items()}
    try:
        with untouched(evidence.model, evidence.parameters.values()):
            weights = {name: accumulated(p).clone() for name, p in parameters.items()}
            yield _Copy(parameters, weights, Differentiation(evidence, parameters))
    finally:
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(before[name])
