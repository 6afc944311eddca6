"""Each point of the list, satisfied and not."""

import pytest

from experiments.results.checklist import checklist
from tests.experiments.rows import frame, row, start

DENSITIES = (0.5, 0.2, 0.1, 0.05, 0.02)


def sweep(scorers=("magnitude", "random", "layer_shuffled"), seeds=(0, 1, 2), densities=DENSITIES, worst=0.3, **more):
    rows = []
    shared = {"versions": {"torch": "2"}, "total_epochs": 3.0, "control": None, "dense_macs": 100} | more
    for scorer in scorers:
        for seed in seeds:
            rows.append(start(scorer, seed, macs=100, **shared))
            for level, density in enumerate(densities, start=1):
                accuracy = worst if density == min(densities) else 0.95
                rows.append(row(scorer, seed, level, density, accuracy, macs=100 * density, **shared))
    return frame(*rows)


def satisfied(table) -> dict[str, bool]:
    return {check.point: check.satisfied for check in checklist(table)}


POINTS = {
    "Compared with magnitude and random pruning": {"scorers": ("magnitude", "layer_shuffled")},
    "Random masks with the same layer-wise densities": {"scorers": ("magnitude", "random")},
    "At least 5 operating points a curve": {"densities": DENSITIES[:4]},
    "Curves reach to where accuracy is lost": {"worst": 0.93},
    "At least 3 seeds a point, with their spread": {"seeds": (0, 1)},
    "Both size and theoretical speed-up": {"dense_macs": None},
}


@pytest.mark.parametrize("point", POINTS)
def test_a_sweep_that_lacks_one_thing_fails_one_point(point):
    whole = satisfied(sweep())
    assert whole[point]
    lacking = satisfied(sweep(**POINTS[point]) if point != "Both size and theoretical speed-up" else without_macs())
    assert {name for name in whole if whole[name] != lacking[name]} == {point}


def without_macs():
    return sweep().drop(columns=["macs", "dense_macs"])


def test_one_pair_of_data_and_model_is_not_three():
    one = sweep()
    assert not satisfied(one)["At least 3 pairs of data set and architecture"]
    several = [
        row | {"model": model, "run": f"{row['run']}-{model}", "dense": f"{row['dense']}-{model}"}
        for model in ("a", "b", "c")
        for row in one.to_dict("records")
    ]
    assert satisfied(frame(*several))["At least 3 pairs of data set and architecture"]


def test_another_dense_network_for_one_method_is_seen():
    table = sweep()
    table.loc[(table["scorer"] == "random") & (table["seed"] == 2), "dense"] = "another"
    found = satisfied(table)
    assert not found["All methods start from the same dense networks"]
    assert satisfied(sweep())["All methods start from the same dense networks"]


def test_more_training_for_one_method_is_seen():
    table = sweep()
    table.loc[table["scorer"] == "random", "total_epochs"] = 9.0
    check = next(check for check in checklist(table) if check.point == "Equal training for all methods")
    assert not check.satisfied
    assert "random: 9 epochs" in check.found
    assert satisfied(sweep())["Equal training for all methods"]


def test_one_method_that_loses_nothing_is_enough_to_miss_the_end():
    table = sweep()
    table.loc[(table["scorer"] == "magnitude") & (table["level"] > 0), "test_accuracy"] = 0.95
    check = next(check for check in checklist(table) if check.point == "Curves reach to where accuracy is lost")
    assert not check.satisfied
    assert "2 points or more below the dense network on average (magnitude the least)" in check.found


def test_one_bad_seed_is_no_curve_that_reaches_where_something_is_lost():
    table = sweep()
    of_magnitude = (table["scorer"] == "magnitude") & (table["level"] > 0)
    table.loc[of_magnitude, "test_accuracy"] = 0.95
    table.loc[of_magnitude & (table["seed"] == 0), "test_accuracy"] = 0.88  # of three: 4.33 points on average
    check = next(check for check in checklist(table) if check.point == "Curves reach to where accuracy is lost")
    assert not check.satisfied
    assert "4.33 points or more below the dense network on average (magnitude the least)" in check.found


def test_set_ups_may_differ_in_training_but_each_needs_its_baselines():
    one = sweep(config={"training": {"epochs": 1}})
    other = sweep(config={"training": {"epochs": 9}}, total_epochs=9.0)
    other = other.assign(run=other["run"] + "-long", dense=other["dense"] + "-long")
    both = frame(*one.to_dict("records"), *other.to_dict("records"))
    assert satisfied(both)["Equal training for all methods"]
    assert satisfied(both)["Compared with magnitude and random pruning"]
    less = both[~((both["scorer"] == "random") & (both["total_epochs"] == 9.0))]
    assert not satisfied(less)["Compared with magnitude and random pruning"]


def test_what_has_no_direction_cannot_be_lost():
    table = sweep().rename(columns={"test_accuracy": "milliseconds"})
    assert not [check for check in checklist(table, "milliseconds") if "Curves reach" in check.point]


def test_two_versions_are_seen():
    table = sweep()
    table.at[0, "versions"] = {"torch": "1"}
    assert not satisfied(table)["The same library versions for all"]
    assert satisfied(sweep())["The same library versions for all"]
