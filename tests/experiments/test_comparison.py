"""Paired differences against SciPy, Holm's correction against closed testing, and what must not be compared."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.integrate import trapezoid

from experiments.results.comparison import by_setup, comparisons, differences, overall, resolved
from experiments.results.significance import holm, smallest_p
from pruning.errors import RecordsError
from tests.experiments.rows import frame, row, start

DENSITIES = (0.5, 0.1, 0.02)


def sweep(accuracies: dict[str, list[list[float]]], **more):
    """A frame of runs: for each scorer, for each seed, the accuracies at DENSITIES."""
    rows = []
    for scorer, seeds in accuracies.items():
        for seed, curve in enumerate(seeds):
            rows.append(start(scorer, seed, **more))
            for level, (density, accuracy) in enumerate(zip(DENSITIES, curve, strict=True), start=1):
                rows.append(row(scorer, seed, level, density, accuracy, **more))
    return frame(*rows)


GOOD = [[0.95, 0.93, 0.90], [0.94, 0.94, 0.88], [0.96, 0.92, 0.89]]
BAD = [[0.95, 0.80, 0.30], [0.95, 0.78, 0.33], [0.955, 0.81, 0.35]]


def test_differences_are_scipys_paired_test():
    found = differences(sweep({"magnitude": GOOD, "random": BAD}), "magnitude").query("method == 'random'")
    good, bad = np.array(GOOD), np.array(BAD)
    assert found["requested_density"].tolist() == list(DENSITIES)
    for place, line in enumerate(found.itertuples()):
        expected = stats.ttest_rel(bad[:, place], good[:, place])
        interval = expected.confidence_interval(0.95)
        assert (line.n, line.mean) == (3, pytest.approx((bad - good)[:, place].mean()))
        assert (line.low, line.high) == (pytest.approx(interval.low), pytest.approx(interval.high))
        assert line.p == pytest.approx(expected.pvalue)
    assert found["p_holm"].tolist() == holm(found["p"])
    assert found["verdict"].tolist() == ["", "lower", "lower"]


def test_the_other_way_round_has_the_other_sign_and_the_same_p():
    table = sweep({"magnitude": GOOD, "random": BAD})
    one = differences(table, "magnitude").query("method == 'random'").reset_index()
    other = differences(table, "random").query("method == 'magnitude'").reset_index()
    assert one["mean"].tolist() == pytest.approx((-other["mean"]).tolist())
    assert one["p_holm"].tolist() == pytest.approx(other["p_holm"].tolist())
    assert other["verdict"].tolist() == ["", "higher", "higher"]


@pytest.mark.parametrize("test", ["t", "wilcoxon"])
def test_a_method_against_itself_is_the_same(test):
    table = sweep({"magnitude": GOOD, "random": BAD})
    found = differences(table, "magnitude", test=test).query("method == 'magnitude'")
    assert found["mean"].tolist() == [0, 0, 0]
    assert found["p"].tolist() == [1, 1, 1]
    assert found["verdict"].tolist() == ["", "", ""]
    whole = overall(table, "magnitude", test=test).set_index("method").loc["magnitude"]
    assert (whole["mean"], whole["p"], whole["verdict"]) == (0, 1, "")


def test_pairing_sees_what_means_do_not():
    """Seeds that differ by ten points, methods by a tenth of one: apart, the means say nothing; in pairs, they do."""
    base = [[0.80, 0.80, 0.8], [0.85, 0.85, 0.85], [0.90, 0.90, 0.9], [0.7, 0.7, 0.7]]
    less = [[a - 0.0010 - 0.0001 * seed for a in curve] for seed, curve in enumerate(base)]
    found = differences(sweep({"magnitude": base, "random": less}), "magnitude").query("method == 'random'")
    assert found["verdict"].tolist() == ["lower"] * 3
    assert stats.ttest_ind([c[0] for c in base], [c[0] for c in less]).pvalue > 0.9


def test_equal_differences_have_no_p_although_their_floats_differ():
    base = [[0.9, 0.9, 0.9], [0.3, 0.9, 0.9], [0.5, 0.9, 0.9]]
    more = [[0.7, 0.9, 0.8], [0.1, 0.9, 0.8], [0.3, 0.9, 0.8]]
    assert len({b[0] - m[0] for b, m in zip(base, more, strict=True)}) > 1
    found = differences(sweep({"magnitude": base, "random": more}), "magnitude").query("method == 'random'")
    assert found["p"].isna().tolist() == [True, False, True]
    assert found["p"].tolist()[1] == 1.0
    assert found["verdict"].tolist() == ["", "", ""]


def test_one_pair_has_no_p():
    found = differences(sweep({"magnitude": GOOD[:1], "random": BAD[:1]}), "magnitude").query("method == 'random'")
    assert (found["n"] == 1).all()
    assert found["p"].isna().all()


def test_signed_ranks_by_counting():
    """p is the share of the 2ⁿ choices of signs whose smaller rank sum is not above the one seen."""
    base = [[0.9, 0.9, 0.9]] * 5
    other = [[0.9 + d / 100] * 3 for d in (1, 2, -3, 4, 5)]
    found = differences(sweep({"magnitude": base, "random": other}), "magnitude", test="wilcoxon")
    seen = min(3, 1 + 2 + 4 + 5)
    sums = [
        sum(r for r, plus in zip(range(1, 6), signs, strict=True) if plus)
        for signs in itertools.product((0, 1), repeat=5)
    ]
    share = np.mean([min(total, 15 - total) <= seen for total in sums])
    assert found.query("method == 'random'")["p"].tolist() == pytest.approx([share] * 3)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_bonferroni_on_every_set_of_hypotheses(p_values):
    """Closed testing: a hypothesis falls where Bonferroni rejects every set that holds it; so its corrected p is the
    largest, over those sets, of the smallest p in the set times its size.
    """
    places = range(len(p_values))
    sets = [s for size in range(1, len(p_values) + 1) for s in itertools.combinations(places, size)]
    expected = [max(min(1.0, len(s) * min(p_values[i] for i in s)) for s in sets if place in s) for place in places]
    assert holm(p_values) == pytest.approx(expected)


def test_holm_leaves_out_what_has_no_p():
    assert holm([0.01, math.nan, 0.02]) == [
        pytest.approx(0.02),
        pytest.approx(math.nan, nan_ok=True),
        pytest.approx(0.02),
    ]
    assert holm([]) == []


@pytest.mark.parametrize(("n", "least"), [(3, 0.25), (6, 0.03125)])
def test_the_least_p_of_signed_ranks(n, least):
    assert smallest_p(n, "wilcoxon") == least == stats.wilcoxon(np.arange(1, n + 1)).pvalue


def test_the_whole_curve_is_one_test_a_method():
    table = sweep({"magnitude": GOOD, "random": BAD, "taylor": GOOD})
    found = overall(table, "magnitude", within=0.05).set_index("method")

    def area(curve):
        x = np.log(DENSITIES[::-1])
        return trapezoid(curve[::-1], x) / (x[-1] - x[0])

    apart = [area(bad) - area(good) for bad, good in zip(BAD, GOOD, strict=True)]
    assert found.loc["random", "mean"] == pytest.approx(np.mean(apart))
    assert found.loc["random", "p"] == pytest.approx(stats.ttest_1samp(apart, 0).pvalue)
    assert found.loc["random", "p_holm"] == pytest.approx(2 * found.loc["random", "p"])  # of two methods, the smaller
    assert found["verdict"].to_dict() == {"magnitude": "", "random": "lower", "taylor": ""}
    assert found["area"].to_dict() == pytest.approx(
        {
            name: np.mean([area(c) for c in curves])
            for name, curves in (("magnitude", GOOD), ("random", BAD), ("taylor", GOOD))
        }
    )
    assert found["critical"].to_dict() == {"magnitude": 0.9, "random": 0.5, "taylor": 0.9}  # dense has 0.97


def test_only_runs_of_the_same_dense_network_are_compared():
    table = sweep({"magnitude": GOOD, "random": BAD})
    table.loc[(table["scorer"] == "random") & (table["seed"] == 1), "dense"] = "another"
    with pytest.raises(
        RecordsError, match=r"random-1 and magnitude-1 have the same seed .* not the same dense network"
    ):
        differences(table, "magnitude")


def test_only_runs_with_common_seeds_are_compared():
    table = sweep({"magnitude": GOOD, "random": BAD})
    table.loc[table["scorer"] == "random", "seed"] += 10
    with pytest.raises(RecordsError, match="magnitude: no method shares a seed and a density with it"):
        differences(table, "magnitude")


def test_one_that_shares_nothing_does_not_stop_the_others():
    table = sweep({"magnitude": GOOD, "random": BAD, "snip": GOOD})
    table.loc[table["scorer"] == "snip", "seed"] += 10
    assert set(differences(table, "magnitude")["method"]) == {"magnitude", "random"}
    (found,), refused = comparisons(table, "magnitude")
    assert (found.unpaired, refused) == (("snip",), [])


def test_an_unfinished_seed_has_no_area_and_takes_none_away():
    table = sweep({"magnitude": GOOD, "random": BAD})
    cut = table[~((table["run"] == "random-1") & (table["level"] > 1))]
    whole, left = (overall(of, "magnitude").set_index("method") for of in (table, cut))
    assert whole["span"].tolist() == left["span"].tolist()
    assert (left.loc["random", "seeds"], left.loc["random", "n"]) == (2, 2)
    assert left.loc["magnitude", "area"] == whole.loc["magnitude", "area"]


def test_a_method_of_one_density_has_no_area_and_takes_none_away():
    table = sweep({"magnitude": GOOD, "random": BAD, "snip": GOOD})
    cut = table[~((table["scorer"] == "snip") & (table["level"] > 1))]
    found = overall(cut, "magnitude").set_index("method")
    assert math.isnan(found.loc["snip", "area"])
    assert found.loc["random", "p"] == overall(table, "magnitude").set_index("method").loc["random", "p"]


def test_a_method_that_is_apart_does_not_set_the_span():
    table = sweep({"magnitude": GOOD, "random": BAD, "snip": GOOD})
    apart = table.assign(requested_density=table["requested_density"].where(table["scorer"] != "snip", 0.9))
    apart.loc[(apart["scorer"] == "snip") & (apart["level"] > 0), "density"] += 0.3
    apart.loc[apart["scorer"] == "snip", "requested_density"] += apart["level"] / 100
    found = overall(apart, "magnitude").set_index("method")
    assert found.loc["random", "p"] == overall(table, "magnitude").set_index("method").loc["random", "p"]
    assert math.isnan(found.loc["snip", "area"])


def test_set_ups_by_themselves_and_by_any_of_their_names():
    short, long = {"training": {"epochs": 1}}, {"training": {"epochs": 9}}
    rows = [
        *sweep({"magnitude": GOOD, "random": BAD}, config=short).to_dict("records"),
        *[
            r | {"run": f"{r['run']}-long", "dense": f"{r['dense']}-long"}
            for r in sweep({"magnitude": BAD, "random": GOOD}, config=long).to_dict("records")
        ],
    ]
    table = frame(*rows)
    found, refused = comparisons(table, "magnitude")
    assert [(one.setup, one.baseline) for one in found] == [
        ("dense (training.epochs=1)", "magnitude"),
        ("dense (training.epochs=9)", "magnitude"),
    ]
    verdicts = [one.overall.set_index("method").loc["random", "verdict"] for one in found]
    assert (verdicts, refused) == (["lower", "higher"], [])
    (one,), (reason,) = comparisons(table, "magnitude (training.epochs=9)")
    assert (one.setup, one.baseline) == ("dense (training.epochs=9)", "magnitude")
    assert reason.startswith("dense (training.epochs=1): no method is called magnitude (training.epochs=9)")


def test_a_seed_that_one_of_them_lacks_is_left_out():
    found = differences(sweep({"magnitude": GOOD, "random": BAD[:2]}), "magnitude").query("method == 'random'")
    assert (found["n"] == 2).all()


def test_set_ups_are_apart():
    short, long = {"training": {"epochs": 1}}, {"training": {"epochs": 9}}
    rows = [
        *sweep({"magnitude": GOOD}, config=short).to_dict("records"),
        *[r | {"run": f"{r['run']}-long"} for r in sweep({"random": BAD}, config=long).to_dict("records")],
    ]
    found = by_setup(frame(*rows))
    assert {name: set(part["scorer"]) for name, part in found.items()} == {
        "dense (training.epochs=1)": {"magnitude"},
        "dense (training.epochs=9)": {"random"},
    }
    with pytest.raises(RecordsError, match=r"no method is called magnitude: .* random"):
        differences(found["dense (training.epochs=9)"], "magnitude")


@pytest.mark.parametrize(
    ("name", "methods", "found"),
    [
        ("taylor", ["taylor", "taylor (form=abs)"], "taylor"),
        ("taylor", ["magnitude", "taylor (form=abs)"], "taylor (form=abs)"),
        ("magnitude", ["magnitude, reinit", "magnitude"], "magnitude"),
    ],
)
def test_names_of_baselines(name, methods, found):
    assert resolved(name, methods) == found


@pytest.mark.parametrize("methods", [["taylor (form=a)", "taylor (form=b)"], ["magnitude"], ["taylors"]])
def test_a_name_of_none_or_several_is_refused(methods):
    with pytest.raises(RecordsError, match="choose a whole name among: "):
        resolved("taylor", methods)


def test_what_is_not_known_of_one_seed_is_not_averaged_over_the_others():
    """Of a seed whose dense network diverged it is not known how much was lost."""
    table = sweep({"magnitude": GOOD, "random": BAD}, config={"data": {"classes": 10}}).assign(diverged=math.nan)
    assert not overall(table, "magnitude")[["critical", "collapsed"]].isna().any(axis=None)
    table.loc[(table["level"] == 0) & (table["seed"] == 1), "diverged"] = 3.0
    assert overall(table, "magnitude")[["critical", "collapsed"]].isna().all(axis=None)
