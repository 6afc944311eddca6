"""Schedules: exact at both ends, never rising, of the right length; ladders and formulas from the papers."""

import json
import math
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pruning.errors import ScheduleError
from pruning.schedules import cubic, during_training, exponential, linear, one_shot, repeat

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "selection.json").read_text())
BY_ROUNDS = (linear, cubic, exponential)
densities = st.floats(1e-6, 1.0)


def falls(values):
    return all(a >= b for a, b in pairwise(values))


@given(st.sampled_from(BY_ROUNDS), densities, densities, st.integers(1, 120))
def test_rounds_land_exactly_and_never_rise(schedule, density, start, rounds):
    density, start = min(density, start), max(density, start)
    values = schedule(density, rounds, start=start)
    assert len(values) == rounds + 1
    assert values[0] == start
    assert values[-1] == density
    assert falls(values)


@pytest.mark.parametrize("schedule", BY_ROUNDS)
@pytest.mark.parametrize("ulps", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("start", [1.0, 0.3, 0.7])
def test_ends_that_almost_meet(schedule, ulps, start):
    """Rounding must not carry a round below the target or above the start."""
    density = start
    for _ in range(ulps):
        density = math.nextafter(density, 0.0)
    values = schedule(density, 37, start=start)
    assert (values[0], values[-1]) == (start, density)
    assert falls(values)


@pytest.mark.parametrize("density", [0.1, 0.3, 0.05, 1 / 3, 0.01, 0.9, 1.0])
def test_one_shot_goes_from_the_start_to_the_target(density):
    assert one_shot(density) == (1.0, density)


def test_formulas_by_hand():
    assert linear(0.2, 4) == pytest.approx((1.0, 0.8, 0.6, 0.4, 0.2), abs=1e-15)
    # sparsity 0.9 · (1 - (1 - k/4)^3)
    assert cubic(0.1, 4) == pytest.approx([1 - 0.9 * (1 - (1 - k / 4) ** 3) for k in range(5)], abs=1e-15)
    assert exponential(0.0625, 4) == pytest.approx((1.0, 0.5, 0.25, 0.125, 0.0625), abs=1e-15)
    assert exponential(0.05, 2, start=0.2) == pytest.approx((0.2, 0.1, 0.05), abs=1e-15)


def test_exponential_reference_values():
    assert exponential(0.01, 5) == pytest.approx(VECTORS["exponential density to 0.01 in 5 rounds"], abs=1e-14)


def test_cubic_reference_values_over_steps():
    (key,) = [key for key in VECTORS if key.startswith("cubic")]
    for step, sparsity in VECTORS[key].items():
        density = during_training(int(step), density=0.1, begin=100, end=500, every=100)
        assert 1.0 - density == pytest.approx(sparsity, abs=1e-12)


@given(st.floats(0.01, 0.9), st.integers(1, 30))
def test_a_rate_that_meets_the_target_needs_no_further_round(rate, rounds):
    density = (1 - rate) ** rounds
    assume(density > 1e-12)
    values = exponential(density, rate=rate)
    assert len(values) == rounds + 1
    assert values == pytest.approx([(1 - rate) ** k for k in range(rounds + 1)], rel=1e-12)
    assert values[-1] == density


@given(densities, densities, st.floats(0.01, 0.95))
def test_the_last_round_of_a_rate_ladder_is_exact(density, start, rate):
    density, start = min(density, start), max(density, start)
    values = exponential(density, rate=rate, start=start)
    assert (values[0], values[-1]) == (start, density)
    assert falls(values)
    assert values[:-1] == pytest.approx([start * (1 - rate) ** k for k in range(len(values) - 1)], rel=1e-12)
    assert values[-1] >= values[-2] * (1 - rate) * (1 - 1e-8)  # the last round removes at most the same share


def test_the_lottery_rate():
    values = exponential(0.1, rate=0.2)
    assert values[:-1] == pytest.approx([0.8**k for k in range(len(values) - 1)], rel=1e-15)
    assert len(values) - 1 == 11  # 0.8^10 = 0.107, 0.8^11 = 0.086
    assert values[-1] == 0.1


@given(
    density=st.floats(1e-4, 1.0), start=st.floats(1e-4, 1.0), begin=st.integers(0, 50), length=st.integers(1, 60),
    every=st.integers(1, 25), shape=st.sampled_from(["linear", "exponential", "cubic"]),
)  # fmt: skip
def test_during_training_lands_exactly_and_never_rises(density, start, begin, length, every, shape):
    density, start = min(density, start), max(density, start)
    options = {"density": density, "start": start, "begin": begin, "end": begin + length, "every": every}
    values = [during_training(step, shape=shape, **options) for step in range(begin + length + 5)]
    assert all(value == start for value in values[: begin + min(every, length)])
    assert all(value == density for value in values[begin + length :])
    assert falls(values)
    changes = [step for step in range(1, len(values)) if values[step] != values[step - 1]]
    assert all((step - begin) % every == 0 or step == begin + length for step in changes)


@given(st.floats(0.01, 0.99), st.floats(0.0, 0.99), st.integers(0, 500), st.integers(1, 40), st.integers(1, 30))
def test_during_training_is_the_formula_of_zhu_and_gupta(final, initial, first, count, every):
    """s_t = s_f + (s_i - s_f)(1 - (t - t_0)/(n Δt))^3 for t = t_0, t_0 + Δt, …, t_0 + n Δt, and held in between."""
    initial, final = min(initial, final), max(initial, final)
    for k in range(count + 1):
        expected = final + (initial - final) * (1 - k / count) ** 3
        for step in {first + k * every, first + k * every + every - 1}:
            found = during_training(
                step, density=1 - final, start=1 - initial, begin=first, end=first + count * every, every=every
            )
            assert 1 - found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: one_shot(0.0), "0 < density"),
        (lambda: one_shot(-0.1), "0 < density"),
        (lambda: one_shot(1.5), "0 < density"),
        (lambda: one_shot(float("nan")), "nan"),
        (lambda: one_shot(True), "True"),
        (lambda: one_shot("0.1"), "'0.1'"),
        (lambda: one_shot(0.5, start=0.4), "0.4 to 0.5"),
        (lambda: linear(0.5, 2, start=1.1), "1.1"),
        (lambda: linear(0.5, 0), "rounds=0"),
        (lambda: cubic(0.5, -3), "rounds=-3"),
        (lambda: cubic(0.5, 2.5), "rounds=2.5"),
        (lambda: linear(0.5, True), "rounds=True"),
        (lambda: exponential(0.5), "either rounds or rate"),
        (lambda: exponential(0.5, rounds=3, rate=0.2), "either rounds or rate"),
        (lambda: exponential(0.5, rate=0.0), "rate=0.0"),
        (lambda: exponential(0.5, rate=1.0), "rate=1.0"),
        (lambda: exponential(0.5, rate=float("nan")), "rate=nan"),
        (lambda: exponential(0.5, rate=0.2, start=0.4), "0.4"),
        (lambda: during_training(0, density=0.5, begin=5, end=5), "begin=5, end=5"),
        (lambda: during_training(0, density=0.5, begin=-1, end=5), "begin=-1"),
        (lambda: during_training(0, density=0.5, begin=0, end=5, every=0), "every=0"),
        (lambda: during_training(0, density=0.0, begin=0, end=5), "density 1.0 to 0.0"),
        # a wrong shape is told at the first step, not hours later at the first update, and not only before the end
        (lambda: during_training(0, density=0.5, begin=3, end=5, shape="cosine"), "cosine"),
        (lambda: during_training(4, density=0.5, begin=3, end=5, shape="cosine"), "cosine"),
        (lambda: during_training(9, density=0.5, begin=3, end=5, shape="cosine"), "cosine"),
    ],
)
def test_impossible_schedules_are_refused(make, reason):
    with pytest.raises(ScheduleError, match=reason) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_repeat_leaves_the_densities_to_the_allocation():
    assert repeat(None, 3) == (1.0, None, None, None)
    assert one_shot(None) == (1.0, None)
    with pytest.raises(ScheduleError, match="density to None"):
        repeat(0.5, 3)
    with pytest.raises(ScheduleError, match="rounds=0"):
        repeat(None, 0)
    for schedule in BY_ROUNDS:
        with pytest.raises(ScheduleError, match="one_shot, or repeat"):
            schedule(None, 3)
