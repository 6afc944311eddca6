"""Rows come back as they were written, damage is named, and no two configurations ever share a label by accident."""

import copy
import json
import os
import shutil
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments import records
from pruning.errors import RecordsError


def row(run: str = "run", level: int = 0, **more) -> dict:
    return {"format": 1, "run": run, "level": level, **more}


def configured(config: dict, *, scorer: str = "magnitude", model: str = "lenet", data: str = "mnist5k", seed: int = 0):
    """A row as `methods` needs it."""
    return row(scorer=scorer, model=model, data=data, seed=seed, config={"seed": seed, **config})


def labels(*rows: dict) -> list[str]:
    return records.methods(pd.DataFrame(list(rows))).tolist()


# Writing and reading


def test_rows_come_back_as_they_were_written(tmp_path):
    first = [row("a", 0, accuracy=0.97, config={"x": {"y": [1, 2]}}), row("a", 1, accuracy=0.91, emptied=["fc1"])]
    second = [row("b", 0, accuracy=0.5, unheard_of="kept")]
    records.write(tmp_path / "sweep" / "a", first)
    records.write(tmp_path / "b", second)

    frame = records.read(tmp_path)

    assert list(frame["run"]) == ["b", "a", "a"]  # the order of the paths
    assert frame["config"][1] == {"x": {"y": [1, 2]}}
    assert frame["emptied"][2] == ["fc1"]
    assert frame["unheard_of"][0] == "kept"
    assert frame["unheard_of"].isna().tolist() == [False, True, True]
    for written, (_, found) in zip([*second, *first], frame.iterrows(), strict=True):
        assert {key: found[key] for key in written} == written


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=8,
)


@given(extra=st.dictionaries(st.text(), json_values, max_size=4))
def test_any_json_value_survives_in_one_line(extra, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    written = {**extra, **row("a", 3)}
    path = records.write(folder, [written])
    assert path.read_bytes().count(b"\n") == 1
    found = records.read(folder)
    assert set(found.columns) == set(written)
    assert records._rows(path) == [written]


def test_what_is_not_finite_is_written_as_null(tmp_path):
    loss = {"loss": float("nan"), "nested": {"deep": [1.0, float("inf"), -float("inf")]}, "whole": 3}
    path = records.write(tmp_path, [row(**loss)])
    found = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert found == row(loss=None, nested={"deep": [1.0, None, None]}, whole=3)
    assert records.read(tmp_path)["loss"].isna().all()


@pytest.mark.parametrize("broken", ["fsync", "replace", "row"])
def test_a_failed_write_leaves_the_old_rows_and_nothing_else(tmp_path, monkeypatch, broken):
    records.write(tmp_path, [row(accuracy=0.1)])
    before = (tmp_path / "rows.jsonl").read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    if broken == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    elif broken == "replace":
        monkeypatch.setattr(Path, "replace", fail)
    unwritable = {"value": object()} if broken == "row" else {}
    with pytest.raises((OSError, TypeError)):
        records.write(tmp_path, [row(), row(level=1, **unwritable)])

    assert os.listdir(tmp_path) == ["rows.jsonl"]
    assert (tmp_path / "rows.jsonl").read_bytes() == before


def test_the_file_may_be_read_by_whom_the_umask_lets(tmp_path):
    (tmp_path / "plain").write_text("")
    assert records.write(tmp_path, [row()]).stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [{"run": "a", "level": 0}],
        [row(level=-1)],
        [row(level=True)],
        [row(level=1.0)],
        [{**row(), "run": 3}],
        [row(level=1), row(level=1)],
        [[1, 2]],
    ],
)
def test_what_could_not_be_read_is_not_written(tmp_path, rows):
    with pytest.raises(RecordsError):
        records.write(tmp_path, rows)
    assert os.listdir(tmp_path) == []


def test_a_file_cut_at_any_byte_is_refused_or_ends_with_a_whole_row(tmp_path):
    rows = [row(level=0, text="é"), row(level=1, config={"a": 1})]
    path = records.write(tmp_path, rows)
    whole = path.read_bytes()
    lengths = set()
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        try:
            found = records._rows(path)
        except RecordsError:
            continue
        assert found == rows[: len(found)]
        lengths.add(end)
    first = whole.index(b"\n")
    assert lengths == {first, first + 1, len(whole) - 1}


good = json.dumps(row()).encode()


@pytest.mark.parametrize(
    ("content", "line", "reason"),
    [
        (b"", None, "empty"),
        (b"\n \n", None, "empty"),
        (good + b"\n" + good[:-4], 2, "cut or not JSON"),
        (b"__import__('os').abort()", 1, "not JSON"),
        (b"{'run': 'a'}", 1, "not JSON"),
        (b"\x80\x04\x95", 1, "not JSON"),
        (b"[" * 100_000, 1, "not JSON"),
        (good.replace(b"0}", b'0, "loss": NaN}'), 1, "NaN is not JSON"),
        (good.replace(b"0}", b'0, "loss": -Infinity}'), 1, "-Infinity is not JSON"),
        (b"[1, 2]", 1, "JSON object"),
        (b"null", 1, "JSON object"),
        (good.replace(b'"format": 1', b'"format": 2'), 1, "format 2"),
        (good.replace(b'"format": 1', b'"format": true'), 1, "format True"),
        (good.replace(b'"format": 1', b'"format": 1.0'), 1, "format 1.0"),
        (good.replace(b'"format": 1, ', b""), 1, "format None"),
        (good.replace(b'"run": "run", ', b""), 1, '"run"'),
        (good.replace(b'"level": 0', b'"level": "0"'), 1, '"level"'),
        (good + b"\n\n" + good, 3, "was in line 1"),
    ],
)
def test_damage_is_named_in_one_line_with_file_and_line(tmp_path, content, line, reason):
    path = tmp_path / "some" / "run" / "rows.jsonl"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(RecordsError) as caught:
        records.read(tmp_path)
    message = str(caught.value)
    assert reason in message
    assert "\n" not in message
    assert message.startswith(f"{path}, line {line}: " if line else f"{path}: ")


def test_no_folder_and_no_rows(tmp_path):
    with pytest.raises(RecordsError, match="no such folder"):
        records.read(tmp_path / "missing")
    with pytest.raises(RecordsError, match=r"no rows\.jsonl"):
        records.read(tmp_path)
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(RecordsError, match="no such folder"):
        records.read(file)


def test_a_folder_that_cannot_be_listed_is_not_passed_over(tmp_path, monkeypatch):
    records.write(tmp_path / "a", [row("a")])
    records.write(tmp_path / "b", [row("b")])
    listed = os.scandir

    def scandir(path):
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(PermissionError):
        records.read(tmp_path)


def test_a_copied_run_counts_once_and_two_runs_of_one_name_are_refused(tmp_path):
    records.write(tmp_path / "a", [row(accuracy=0.1), row(level=1, accuracy=0.2)])
    shutil.copytree(tmp_path / "a", tmp_path / "backup" / "a")
    assert len(records.read(tmp_path)) == 2

    records.write(tmp_path / "backup" / "a", [row(accuracy=0.1), row(level=1, accuracy=0.3)])
    with pytest.raises(RecordsError, match=r"run run is also in .*other rows"):
        records.read(tmp_path)
    records.write(tmp_path / "backup" / "a", [row(accuracy=0.1)])
    with pytest.raises(RecordsError, match="run run is also in"):
        records.read(tmp_path)


# Labels


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
    assert records.baselines(pd.DataFrame(rows)).tolist() == ["dense"] * 2
    rows.append(run(20))
    assert records.baselines(pd.DataFrame(rows)).tolist() == [f"dense (training.epochs={n})" for n in (10, 10, 20)]


@pytest.mark.parametrize("lacking", ["scorer", "model", "data", "seed", "config"])
def test_a_row_without_its_identity_has_no_method(lacking):
    rows = [configured({}), configured({})]
    del rows[1][lacking]
    with pytest.raises(RecordsError, match=f'run run, level 0: no "{lacking}"'):
        records.methods(pd.DataFrame(rows))
    with pytest.raises(RecordsError, match=f'no row has "{lacking}"'):
        records.methods(pd.DataFrame(rows[1:]))
    with pytest.raises(RecordsError, match="not a mapping"):
        records.methods(pd.DataFrame([{**configured({}), "config": "seed: 0"}]))


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
