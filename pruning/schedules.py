"""Pure functions from a round, or a training step, to a density. Exact at both ends.

The round schedules give the densities of all rounds, beginning with that of round 0 (the start); the last is the
target itself, not a rounded power of something.
"""

import math
from typing import Literal

from pruning.errors import ScheduleError

Shape = Literal["linear", "exponential", "cubic"]
_SHAPES = ("linear", "exponential", "cubic")


def one_shot(density: float | None, start: float = 1.0) -> tuple[float | None, ...]:
    """From `start` to `density` in one round; None is that of an allocation with a density of its own."""
    return (start, None) if density is None else _rounds("linear", density, 1, start)


def repeat(density: None, rounds: int, start: float = 1.0) -> tuple[float | None, ...]:
    """So many `rounds` of an allocation that says itself how much each removes; `density` is None.

    Raises:
        ScheduleError: a density, or no number of rounds.
    """
    if density is not None:
        raise ScheduleError(f"repeat: the allocation says where it ends, not density={density}: set density to None")
    _check_rounds("repeat", rounds)
    return (start, *(None for _ in range(rounds)))


def linear(density: float, rounds: int, start: float = 1.0) -> tuple[float, ...]:
    """Equal shares of the whole in every round."""
    return _rounds("linear", density, rounds, start)


def cubic(density: float, rounds: int, start: float = 1.0) -> tuple[float, ...]:
    """Much at first, little at the end: Zhu & Gupta 2017, equation 1, over rounds instead of steps."""
    return _rounds("cubic", density, rounds, start)


def exponential(
    density: float, rounds: int | None = None, rate: float | None = None, start: float = 1.0
) -> tuple[float, ...]:
    """The same share of what remains in every round.

    Args:
        rounds: how many; density_k = start · (density / start)^(k / rounds), as in SynFlow (Tanaka et al. 2020).
        rate: instead, the share of the remaining that a round removes (0.2 in Frankle & Carbin 2019); the number of
            rounds follows, and the last round, which may remove less, meets `density` exactly.

    Raises:
        ScheduleError: both or neither of `rounds` and `rate`, or a value out of range.
    """
    if (rounds is None) == (rate is None):
        raise ScheduleError("exponential: give either rounds or rate, and leave the other out (null)")
    if rounds is not None:
        return _rounds("exponential", density, rounds, start)
    assert rate is not None
    _check_ends(density, start)
    if not isinstance(rate, int | float) or not 0.0 < rate < 1.0:
        raise ScheduleError(f"exponential: rate={rate} is no share of the remaining: give one between 0 and 1")
    # a target that is a power of 1 - rate needs exactly that many rounds, whatever the logarithm's last digit says
    count = max(1, math.ceil(math.log(density / start) / math.log1p(-rate) - 1e-9))
    return (*(start * (1.0 - rate) ** k for k in range(count)), density)


def during_training(
    step: int, *, density: float, begin: int, end: int, every: int = 1, start: float = 1.0, shape: Shape = "cubic"
) -> float:
    """The density that holds from training step `step` on, until the next update.

    Updates happen at `begin`, `begin + every`, … and at `end`; before `begin` it is `start`, from `end` on `density`.
    With the cubic shape: Zhu & Gupta 2017, equation 1, written for densities.
    """
    _check_ends(density, start)
    if shape not in _SHAPES:
        raise ScheduleError(f"shape {shape!r} is unknown: choose one of {', '.join(_SHAPES)}")
    if every < 1 or not 0 <= begin < end:
        raise ScheduleError(f"begin={begin}, end={end}, every={every}: need 0 <= begin < end and every >= 1")
    if step >= end:
        return density
    updates = max(0, step - begin) // every
    return _between(shape, updates * every / (end - begin), density, start)


def _rounds(shape: Shape, density: float, rounds: int, start: float) -> tuple[float, ...]:
    _check_ends(density, start)
    _check_rounds(shape, rounds)
    return tuple(_between(shape, k / rounds, density, start) for k in range(rounds + 1))


def _check_rounds(name: str, rounds: int) -> None:
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
        raise ScheduleError(f"{name}: rounds={rounds} is no number of rounds: give an integer of at least 1")


def _between(shape: Shape, progress: float, density: float, start: float) -> float:
    if progress <= 0.0:
        return start
    if progress >= 1.0:
        return density
    if shape == "linear":
        return start + (density - start) * progress
    if shape == "exponential":
        return start * math.pow(density / start, progress)
    return density + (start - density) * (1.0 - progress) ** 3


def _check_ends(density: float | None, start: float) -> None:
    if density is None:
        raise ScheduleError("no density to head for: give one, or use one_shot, or repeat with an allocation's own")
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (density, start))
    if not numbers or not 0.0 < density <= start <= 1.0:
        raise ScheduleError(
            f"cannot go from density {start!r} to {density!r}: need 0 < density <= start <= 1 (shares that are kept)"
        )
