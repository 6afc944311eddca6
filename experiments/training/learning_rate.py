"""Learning-rate schedules: pure functions from progress, in [0, 1], to a factor of the optimizer's own rate."""

import math
from collections.abc import Sequence

from pruning.errors import ConfigurationError


def constant(progress: float) -> float:
    """Always 1."""
    return 1.0


def step(progress: float, milestones: Sequence[float] = (0.5, 0.75), gamma: float = 0.1) -> float:
    """gamma^(milestones passed): the rate is multiplied by `gamma` at each share of training in `milestones`."""
    if not all(isinstance(milestone, int | float) and 0 <= milestone < 1 for milestone in milestones):
        raise ConfigurationError(f"learning_rate.milestones={list(milestones)}: give shares of training, in [0, 1)")
    if not isinstance(gamma, int | float) or gamma < 0:
        raise ConfigurationError(f"learning_rate.gamma={gamma}: give a factor of at least 0")
    return math.prod(gamma for milestone in milestones if progress >= milestone)


def cosine(progress: float, final: float = 0.01) -> float:
    """Half a cosine from 1 to `final` (Loshchilov & Hutter 2017); above 0, as fine-tuning goes on at the last rate."""
    if not isinstance(final, int | float) or final < 0:
        raise ConfigurationError(f"learning_rate.final={final}: give a factor of at least 0")
    return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * progress))


def linear(progress: float, warmup: float = 0.1, final: float = 0.0) -> float:
    """From 0 to 1 over the share `warmup` of training, then to `final`, both in a line (Devlin et al. 2019)."""
    if not isinstance(warmup, int | float) or not 0 <= warmup < 1:
        raise ConfigurationError(f"learning_rate.warmup={warmup}: give a share of training, in [0, 1)")
    if not isinstance(final, int | float) or final < 0:
        raise ConfigurationError(f"learning_rate.final={final}: give a factor of at least 0")
    if progress < warmup:
        return progress / warmup
    return 1.0 + (final - 1.0) * (progress - warmup) / (1.0 - warmup)
