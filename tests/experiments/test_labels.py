"""No two configurations ever share a label by accident."""

import copy
import json

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.results.labels import methods, setups
from pruning.errors import RecordsError


def row(run: str = "run", level: int = 0, **more) -> dict:
    return {"format": 1, "run": run, "level": level, **more}


def configured(config: dict, *, scorer: str = "magnitude", model: str = "lenet", data: str = "mnist5k", seed: int = 0):
    """A row as `methods` needs it."""
    return row(scorer=scorer, model=model, data=data, seed=seed, config={"seed": seed, **config})


def labels(*rows: dict) -> list[str]:
    return methods(pd.DataFrame(list(rows))).tolist()


def test_one_method_is_its_scorer():
    assert labels(configured({}), configured({}, seed=1), configured({}, scorer="snip")) == ["magnitude"] * 2 + ["snip"]


def test_seed_densities_and_bookkeeping_make_no_other_method():
    one = {
        "density": [0.5],
        "folder": "a",
        "store": "b",
        "threads": 1,
        "device": "cpu",
        "name": "x",
        "tracker": {"a": 1},
        "experiment": "quickstart",
        "progress": True,
    }
    two = {
        "density": 0.1,
        "folder": "c",
        "store": "d",
        "threads": "auto",
        "device": "cuda",
        "name": "y",
        "tracker": None,
        "experiment": None,
        "progress": False,
    }
    assert labels(configured(one, seed=0), configured(two, seed=1)) == ["magnitude"] * 2


def test_scorers_of_one_name_are_told_apart_by_what_differs_only():
    def taylor(form, batches=1):
        scorer = {"_target_": "pruning.scorers.taylor", "_partial_": True, "form": form, "batches": batches}
        return configured({"scorer": scorer, "when": "trained"}, scorer="taylor")

    assert labels(taylor("abs"), taylor("squared")) == ["taylor (form=abs)", "taylor (form=squared)"]
    # Both of two options that changed together are shown: the reader must see that they are confounded.
    assert labels(taylor("abs", 1), taylor("squared", 8)) == [
        "taylor (batches=1, form=abs)",
        "taylor (batches=8, form=squared)",
    ]
    assert labels(taylor("abs"), configured({"when": "init"})) == ["taylor", "magnitude"]


def test_the_scorers_own_options_come_first():
    def run(form, allocation):
        return configured({"allocation": allocation, "scorer": {"form": form}})

    assert labels(run("abs", "erk"), run("squared", "global"))[0] == "magnitude (form=abs, allocation=erk)"


def test_other_parts_of_the_configuration_appear_by_their_path_and_targets_by_their_name():
    weights = {"granularity": {"_target_": "pruning.granularity.Weights"}, "recovery": {"epochs": 20}}
    blocks = {"granularity": {"_target_": "pruning.granularity.Blocks", "shape": [4, 4]}, "recovery": {"epochs": 20}}
    assert labels(configured(weights), configured(blocks)) == [
        "magnitude (granularity=Weights)",
        "magnitude (granularity=Blocks)",
    ]
    wide = {"granularity": {"_target_": "pruning.granularity.Blocks", "shape": [8, 8]}, "recovery": {"epochs": 20}}
    assert labels(configured(weights), configured(blocks), configured(wide)) == [
        "magnitude (granularity=Weights)",
        "magnitude (granularity=Blocks, granularity.shape=[4, 4])",
        "magnitude (granularity=Blocks, granularity.shape=[8, 8])",
    ]
    longer = {**weights, "recovery": {"epochs": 40}}
    assert labels(configured(weights), configured(longer)) == [
        "magnitude (recovery.epochs=20)",
        "magnitude (recovery.epochs=40)",
    ]


def test_import_paths_that_end_alike_are_shown_whole():
    one, two = ({"schedule": {"_target_": f"{package}.cubic"}} for package in ("pruning.schedules", "mine"))
    assert labels(configured(one), configured(two)) == [
        "magnitude (schedule=pruning.schedules.cubic)",
        "magnitude (schedule=mine.cubic)",
    ]


def test_models_and_data_appear_where_there_are_several_and_stand_for_their_options():
    def run(model, data, inputs):
        config = {"model": {"_target_": f"models.{model}", "inputs": inputs}, "data": {"name": data}}
        return configured(config, model=model, data=data)

    assert labels(run("lenet", "digits", 8), run("conv", "digits", 8)) == [
        "magnitude (model=lenet)",
        "magnitude (model=conv)",
    ]
    assert labels(run("lenet", "digits", 8), run("lenet", "mnist", 28)) == [
        "magnitude (data=digits)",
        "magnitude (data=mnist)",
    ]
    # ... unless the name does not say it all.
    assert labels(run("lenet", "digits", 8), run("lenet", "digits", 9)) == [
        "magnitude (model.inputs=8)",
        "magnitude (model.inputs=9)",
    ]


def test_nested_names_are_options():
    """The name of a torchvision model is no bookkeeping, though "name" at the top is."""
    small, large = ({"name": "sweep", "model": {"name": name}} for name in ("resnet18", "resnet50"))
    one, two = labels(configured(small, model="torchvision"), configured(large, model="torchvision"))
    assert (one, two) == ("magnitude (model.name=resnet18)", "magnitude (model.name=resnet50)")


@pytest.mark.parametrize(
    ("one", "two"),
    [(1, 1.0), (1, True), (1, "1"), (None, "null"), (None, {}), ([], {}), ("a, b=c", "a"), ("a", '"a"'), (0.1, "0.1")],
)
def test_values_that_look_alike_are_different_methods(one, two):
    first, second = labels(configured({"recovery": {"k": one}}), configured({"recovery": {"k": two}}))
    assert first != second


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ({"x": {"k": "a, x.m=b"}}, {"x": {"k": "a", "m": "b"}}),
        ({"scorer": {"form": "abs"}}, {"form": "abs"}),
        ({"scorer": {"granularity": "Weights"}}, {"granularity": {"_target_": "pruning.granularity.Weights"}}),
    ],
)
def test_labels_cannot_be_forged(one, two):
    """Without quotes, or without the path in front, each of these pairs would read the same."""
    first, second = labels(configured(one), configured(two))
    assert first != second


def test_a_key_that_one_lacks_is_a_difference():
    found = labels(configured({}), configured({"recovery": {"k": None}}))
    assert found == ["magnitude", "magnitude (recovery.k=null)"]


def test_nested_seeds_that_follow_the_run_are_no_option_and_fixed_ones_are():
    def run(seed, nested):
        return configured(
            {"scorer": {"seed": nested}, "data": {"load": {"seed": 0, "folder": f"/data/{seed}"}}}, seed=seed
        )

    assert labels(run(0, 0), run(1, 1), run(2, 2)) == ["magnitude"] * 3
    assert labels(run(0, 7), run(1, 7)) == ["magnitude"] * 2
    # Seeds 0 and 1 with their own scorer seed, and again with a fixed one: seed 0 alone cannot tell which it is.
    assert len(set(labels(run(0, 0), run(1, 1), run(1, 0)))) == 2
    assert labels(run(0, 5), run(0, 6)) == ["magnitude (scorer.seed=5)", "magnitude (scorer.seed=6)"]


def test_the_dense_network_is_set_up_by_what_comes_before_pruning():
    def run(training, **pruning):
        return configured({"training": {"epochs": training}, **pruning})

    rows = [
        run(10, when="init", recovery={"epochs": 1}, scoring={"examples": 100}, include=["*"]),
        run(10, when="trained", scorer={"form": "abs"}, scoring={"examples": None}, exclude=["fc3.*"]),
    ]
    assert setups(pd.DataFrame(rows)).tolist() == ["dense"] * 2
    rows.append(run(20))
    assert setups(pd.DataFrame(rows)).tolist() == [f"dense (training.epochs={n})" for n in (10, 10, 20)]


@pytest.mark.parametrize("lacking", ["scorer", "model", "data", "seed", "config"])
def test_a_row_without_its_identity_has_no_method(lacking):
    rows = [configured({}), configured({})]
    del rows[1][lacking]
    with pytest.raises(RecordsError, match=f'run run, level 0: no "{lacking}"'):
        methods(pd.DataFrame(rows))
    with pytest.raises(RecordsError, match=f'no row has "{lacking}"'):
        methods(pd.DataFrame(rows[1:]))
    with pytest.raises(RecordsError, match="not a mapping"):
        methods(pd.DataFrame([{**configured({}), "config": "seed: 0"}]))


values = st.sampled_from([0, 1, 1.0, True, None, "1", "a", "a=b", "a, training.k=1", [], [1], {}, {"j": 1}])
configs = st.fixed_dictionaries(
    {},
    optional={
        "scorer": st.fixed_dictionaries({}, optional={"k": values, "_target_": st.sampled_from(["a.f", "b.f", "a.g"])}),
        "training": st.fixed_dictionaries({}, optional={"k": values}),
        "model": st.fixed_dictionaries({}, optional={"k": values}),
        "k": values,
        "when": values,
    },
)
cases = st.tuples(configs, st.sampled_from(["magnitude", "snip"]), st.sampled_from(["lenet", "conv"]))


@given(chosen=st.lists(cases, min_size=2, max_size=6), order=st.randoms(use_true_random=False))
def test_two_rows_share_a_label_exactly_where_their_configurations_agree(chosen, order):
    rows = [
        configured({**copy.deepcopy(config), "density": [place]}, scorer=scorer, model=model, seed=place)
        for place, (config, scorer, model) in enumerate(chosen)
    ]
    found = labels(*rows)
    for one, left in zip(chosen, found, strict=True):
        for two, right in zip(chosen, found, strict=True):
            same = json.dumps(one, sort_keys=True) == json.dumps(two, sort_keys=True)
            assert (left == right) == same, (one, two)

    shuffled = list(range(len(rows)))
    order.shuffle(shuffled)
    assert labels(*(rows[place] for place in shuffled)) == [found[place] for place in shuffled]


def test_a_papers_method_names_its_rows_and_what_differs_within_it():
    assert labels(
        configured({"method": "wanda", "allocation": {"_target_": "a.PerRow"}}, scorer="wanda"),
        configured({"method": "wanda_2of4", "allocation": {"_target_": "a.NofM"}}, scorer="wanda"),
        configured({"method": "sparsegpt", "compensate": {"columns": 128}}, scorer="obs"),
        configured({"method": "sparsegpt", "compensate": {"columns": 64}}, scorer="obs"),
        configured({"method": None}, scorer="obs"),
    ) == ["wanda", "wanda_2of4", "sparsegpt (compensate.columns=128)", "sparsegpt (compensate.columns=64)", "obs"]
