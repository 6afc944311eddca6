"""Intervals against first principles and SciPy's own test; summaries against numbers worked out by hand."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import integrate
from scipy import stats as scipy_stats

from experiments.results.intervals import Interval, mean_interval
from experiments.results.statistics import dense, natural, summarise
from pruning.errors import RecordsError
from tests.experiments.rows import frame, row, start

T_2 = 4.302652729749464  # 97.5 % of Student's t with 2 degrees of freedom: printed in every table as 4.303


# Intervals


def test_three_values_by_hand():
    found = mean_interval([0.9, 0.92, 0.94])
    assert (found.mean, found.std, found.n) == (pytest.approx(0.92), pytest.approx(0.02), 3)
    assert found.high - found.mean == pytest.approx(T_2 * 0.02 / math.sqrt(3))
    assert found.mean - found.low == pytest.approx(T_2 * 0.02 / math.sqrt(3))


def test_the_interval_from_first_principles():
    """Integrate Student's density between the interval's ends, in units of the standard error: 95 % and 80 %."""
    values = [0.1, 0.4, 0.35, 0.8, 0.77]
    n = len(values)
    mean = sum(values) / n
    error = math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1)) / math.sqrt(n)
    constant = math.gamma(n / 2) / (math.sqrt((n - 1) * math.pi) * math.gamma((n - 1) / 2))
    for confidence in (0.95, 0.8):
        found = mean_interval(values, confidence)
        ends = (found.low - mean) / error, (found.high - mean) / error
        mass, _ = integrate.quad(lambda t: constant * (1 + t * t / (n - 1)) ** (-n / 2), *ends)
        assert mass == pytest.approx(confidence, abs=1e-9)
        assert ends[0] == pytest.approx(-ends[1])


@given(
    values=st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=30),
    confidence=st.floats(0.01, 0.999),
)
def test_as_scipy_for_any_values(values, confidence):
    assume(np.std(values) > 1e-9 * (1 + np.max(np.abs(values))))
    found = mean_interval(values, confidence)
    expected = scipy_stats.ttest_1samp(values, 0).confidence_interval(confidence)
    wide = max(1.0, *map(abs, values))
    assert found.low == pytest.approx(expected.low, rel=1e-9, abs=1e-9 * wide)
    assert found.high == pytest.approx(expected.high, rel=1e-9, abs=1e-9 * wide)
    assert found.low <= found.mean <= found.high
    assert found.n == len(values)


def test_the_interval_holds_the_true_mean_as_often_as_it_says():
    """Of 2,000 samples of 3, about 95 % (standard error 0.5 %); a normal or a population interval would reach 86 %."""
    samples = np.random.default_rng(0).normal(5, 2, size=(2000, 3))
    held = [interval.low <= 5 <= interval.high for interval in map(mean_interval, samples)]
    assert 0.93 < np.mean(held) < 0.97


def test_one_value_has_no_interval_and_equal_values_have_one_of_no_width():
    found = mean_interval([0.9])
    assert (found.mean, found.n) == (0.9, 1)
    assert all(math.isnan(value) for value in (found.low, found.high, found.std))
    assert mean_interval([0.5, 0.5]) == Interval(0.5, 0.5, 0.5, 0.0, 2)


@pytest.mark.parametrize("values", [[], [0.9, math.nan], [math.nan], [math.inf, 0.1], [[0.1, 0.2]], 0.3])
def test_what_has_no_mean_is_refused(values):
    with pytest.raises(RecordsError, match="no mean of"):
        mean_interval(values)


@pytest.mark.parametrize("confidence", [0, 1, 95, -0.1, math.nan])
def test_a_confidence_is_a_share(confidence):
    with pytest.raises(ValueError, match="between 0 and 1"):
        mean_interval([0.1, 0.2], confidence)


# Summaries


def test_a_summary_by_hand():
    rows = [
        *(row("magnitude", seed, 1, 0.5, 0.96) for seed in (0, 1, 2)),
        *(row("magnitude", seed, 2, 0.1, value) for seed, value in ((2, 0.94), (0, 0.9), (1, 0.92))),
        row("snip", 4, 1, 0.1, 0.8, kept=150),
        row("snip", 5, 1, 0.1, 0.9, kept=100),
    ]
    found = summarise(frame(*rows, *(start(seed=seed) for seed in range(3))))

    assert list(found.columns) == [
        *("method", "requested_density", "density", "sparsity", "compression"),
        *("n", "mean", "std", "low", "high", "median", "collapsed", "seeds", "macs", "latency_ms", "total_epochs"),
    ]
    assert found["latency_ms"].isna().all()
    assert found["method"].tolist() == ["magnitude", "magnitude", "snip"]
    assert found["requested_density"].tolist() == [0.5, 0.1, 0.1]  # dense first
    assert found["density"].tolist() == pytest.approx([0.5, 0.1, 0.125])  # realised: the mean of .15 and .1
    assert found["sparsity"].tolist() == pytest.approx([0.5, 0.9, 0.875])
    assert found["compression"].tolist() == pytest.approx([2, 10, 8])
    assert found["n"].tolist() == [3, 3, 2]
    assert found["seeds"].tolist() == [(0, 1, 2), (0, 1, 2), (4, 5)]
    assert found["mean"].tolist() == pytest.approx([0.96, 0.92, 0.85])
    assert found["std"].tolist() == pytest.approx([0, 0.02, 0.05 * math.sqrt(2)])
    half = T_2 * 0.02 / math.sqrt(3)
    assert found["low"].tolist()[:2] == pytest.approx([0.96, 0.92 - half])
    assert found["high"].tolist()[:2] == pytest.approx([0.96, 0.92 + half])
    # n = 2: t is the tangent of 0.475 pi (Cauchy), the standard error half of the difference.
    assert found["high"][2] - found["mean"][2] == pytest.approx(math.tan(0.475 * math.pi) * 0.05)


def test_one_seed_has_no_interval():
    found = summarise(frame(row())).iloc[0]
    assert (found["n"], found["mean"]) == (1, 0.9)
    assert np.isnan(found[["low", "high", "std"]].astype(float)).all()


def test_only_the_last_round_of_a_chain_counts():
    rows = [
        row(level=1, round=1, rounds=3, requested=0.1, accuracy=0.1),  # a round that happens to ask for the same
        row(level=2, round=2, rounds=3, requested=0.2, accuracy=0.2),
        row(level=3, round=3, rounds=3, requested=0.1, accuracy=0.3),
    ]
    found = summarise(frame(start(), *rows))
    assert found[["requested_density", "n", "mean"]].values.tolist() == [[0.1, 1, 0.3]]
    with pytest.raises(RecordsError, match="last round"):
        summarise(frame(start(), *rows[:2]))


def test_other_values_than_accuracy():
    rows = [row(seed=seed, test_loss=loss) for seed, loss in ((0, 1.0), (1, 3.0))]
    assert summarise(frame(*rows), "test_loss")["mean"].tolist() == [2.0]
    assert summarise(frame(*rows), "kept")["mean"].tolist() == [100.0]


def test_nothing_kept_is_an_infinite_compression():
    found = summarise(frame(row(kept=0))).iloc[0]
    assert (found["density"], found["sparsity"], found["compression"]) == (0, 1, math.inf)


@pytest.mark.parametrize(
    "other",
    [{"training": {"epochs": 20}}, {"recovery": None}, {"when": "init"}, {"training": {"epochs": 10.0}}],
)
def test_two_configurations_are_never_averaged(other):
    """The trap: same scorer, same density, other seeds, and something else that differs."""
    config = {"training": {"epochs": 10}, "recovery": {"epochs": 5}, "when": "trained"}
    rows = [row(seed=0, accuracy=0.9, config=config), row(seed=1, accuracy=0.5, config={**config, **other})]
    found = summarise(frame(*rows))
    assert found["n"].tolist() == [1, 1]
    assert sorted(found["mean"]) == [0.5, 0.9]


@pytest.mark.parametrize("key", ["model", "data"])
def test_two_models_or_data_sets_are_never_averaged(key):
    found = summarise(frame(row(seed=0), row(seed=1, **{key: "other"})))
    assert found["n"].tolist() == [1, 1]
    assert all(f"{key}=" in method for method in found["method"])


def test_a_seed_counts_once():
    """Two sweeps that share a density: the same measurement under two names, once quicker, with other versions."""
    again = {"run": "again", "level": 4, "seconds": 9.0, "threads": 2, "device": "cuda", "versions": {"torch": "3"}}
    first = {"threads": 1, "device": "cpu", "versions": {"torch": "2"}}
    rows = [row(seed=0, accuracy=0.9, **first), row(seed=0, accuracy=0.9, **again), row(seed=1, accuracy=0.8, **first)]
    found = summarise(frame(*rows)).iloc[0]
    assert (found["n"], found["seeds"], found["mean"]) == (2, (0, 1), pytest.approx(0.85))


@pytest.mark.parametrize("differs", [{"accuracy": 0.91}, {"kept": 101}, {"layers": [{"kept": 2}]}, {"dense": "other"}])
def test_a_seed_that_was_measured_twice_with_two_results_is_refused(differs):
    rows = [row(layers=[{"kept": 1}]), row(**{"layers": [{"kept": 1}], "run": "again", **differs})]
    with pytest.raises(RecordsError, match=r"magnitude-0 and again have the same seed \(0\) but not the same"):
        summarise(frame(*rows))


def test_methods_are_in_the_order_of_the_numbers_in_them():
    rows = [row(config={"training": {"lr": lr}}) for lr in (0.1, 10, 0.05, 2)]
    for order in (rows, rows[::-1]):
        found = summarise(frame(*order))["method"].tolist()
        assert found == [f"magnitude (training.lr={lr})" for lr in (0.05, 0.1, 2, 10)]
    assert natural("a 1e-3") < natural("a 0.01") < natural("b")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "not a finite"),
        (math.nan, "not a finite"),
        (math.inf, "not a finite"),
        ("0.9", "not a finite"),
        (True, "not"),
    ],
)
def test_a_value_that_is_no_number_is_named(value, reason):
    rows = [row(seed=0), row(seed=1, accuracy=value)]
    with pytest.raises(RecordsError, match=f"run magnitude-1, level 1: test_accuracy is .*{reason}"):
        summarise(frame(*rows))
    with pytest.raises(RecordsError, match=f"run magnitude-1, level 0: test_accuracy is .*{reason}"):
        dense(frame(start(seed=0), start(seed=1, accuracy=value)))


def test_an_unknown_value_names_those_there_are():
    with pytest.raises(RecordsError, match=r'no column "accuracy".*density.*kept, level.*test_accuracy') as caught:
        summarise(frame(row(), start()), "accuracy")
    assert "scorer" not in str(caught.value)
    with pytest.raises(RecordsError, match='no column "accuracy"'):
        dense(frame(start()), "accuracy")


@pytest.mark.parametrize("lacking", ["level", "round", "rounds", "requested_density", "density", "seed", "config"])
def test_a_frame_without_what_is_needed_is_refused(lacking):
    with pytest.raises(RecordsError, match=f'"{lacking}"'):
        summarise(frame(row()).drop(columns=lacking))


def test_dense_networks_alone_are_no_summary():
    with pytest.raises(RecordsError, match="no pruned level"):
        summarise(frame(start()))
    with pytest.raises(RecordsError, match="no dense network"):
        dense(frame(row()))


# Dense networks


def test_every_dense_network_counts_once_however_many_scorers_started_from_it():
    scorers = ("magnitude", "taylor", "snip", "random")
    accuracies = {0: 0.96, 1: 0.97, 2: 0.98}
    rows = [start(scorer, seed, value, emptied=[scorer]) for scorer in scorers for seed, value in accuracies.items()]
    found = dense(frame(*rows, row(accuracy=0.1)))
    assert found == {"dense": mean_interval([0.96, 0.97, 0.98])}
    assert found["dense"].n == 3


def test_dense_networks_of_other_set_ups_are_apart():
    rows = [start(seed=seed, accuracy=0.9, dense=f"a{seed}", config={"training": {"epochs": 5}}) for seed in (0, 1)]
    rows += [start(seed=seed, accuracy=0.8, dense=f"b{seed}", config={"training": {"epochs": 10}}) for seed in (0, 1)]
    found = dense(frame(*rows))
    assert {name: (interval.n, interval.mean) for name, interval in found.items()} == {
        "dense (training.epochs=5)": (2, pytest.approx(0.9)),
        "dense (training.epochs=10)": (2, pytest.approx(0.8)),
    }
    assert list(found) == ["dense (training.epochs=5)", "dense (training.epochs=10)"]


def test_a_pretrained_network_is_one_for_all_seeds():
    rows = [start(scorer, seed, 0.9, dense="pretrained") for scorer in ("magnitude", "wanda") for seed in range(3)]
    found = dense(frame(*rows))
    assert (found["dense"].n, found["dense"].mean) == (1, 0.9)


def test_one_network_with_two_values_and_two_networks_of_one_seed_are_refused():
    with pytest.raises(RecordsError, match=r"same dense \(network-0\) but not the same test_accuracy"):
        dense(frame(start(accuracy=0.9), start("snip", accuracy=0.91)))
    with pytest.raises(RecordsError, match=r"same seed \(0\) but not the same dense"):
        dense(frame(start(), start("snip", dense="trained elsewhere")))


def test_rounds_of_one_target_are_points_and_of_several_are_not():
    def chain(target: float, seed: int) -> list[dict]:
        shared = {"rounds": 2, "target_density": target, "seed": seed}
        middle = row(requested=target**0.5, accuracy=0.95, level=1, round=1, **shared)
        return [middle, row(requested=target, accuracy=0.9, level=2, round=2, **shared)]

    one = summarise(frame(*chain(0.25, 0), *chain(0.25, 1)))
    assert one["requested_density"].tolist() == [0.5, 0.25]
    assert one["n"].tolist() == [2, 2]
    other = [level | {"run": "other", "level": level["level"] + 2} for level in chain(0.04, 0)]
    several = summarise(frame(*chain(0.25, 0), *other))
    assert several["requested_density"].tolist() == [0.25, 0.04]
