"""Learning-rate schedules: pure functions from progress, in [0, 1], to a factor of the optimizer's own rate."""

import math
from collections.abc import Sequence


def constant(progress: float) -> float:
    """Always 1."""
    return 1.0


def step(progress: float, milestones: Sequence[float] = (0.5, 0.75), gamma: float = 0.1) -> float:
    """gamma^(milestones passed): the rate is multiplied by `gamma` at each share of training in `milestones`."""
    return math.prod(gamma for milestone in milestones if progress >= milestone)


def cosine(progress: float, final: float = 0.01) -> float:
    """Half a cosine from 1 to `final` (Loshchilov & Hutter 2017); above 0, as fine-tuning goes on at the last rate."""
    return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * progress))
