"""Rows that count in no mean: all else comes out as if they were not there, and each is named."""

import json
import math
import re

import pandas as pd
import pytest

from experiments import compare, records, report
from experiments import run as app
from experiments.records.losses import failed_training
from experiments.records.values import resolve, resolve_metric
from experiments.results.comparison import comparisons, differences, overall
from experiments.results.exclusions import counted, exclusions, measured
from experiments.results.gallery import FigureOptions, gallery
from experiments.results.statistics import dense, points, summarise
from experiments.results.tracked import results
from experiments.tasks import Classification, LanguageModelling, Regression
from pruning.errors import RecordsError
from tests.experiments.rows import frame, row
from tests.experiments.running import setting_of
from tests.experiments.test_metrics import described, written

DENSITIES = (0.5, 0.2)
ACCURACIES = {
    "magnitude": [[0.95, 0.90], [0.94, 0.91], [0.93, 0.92]],
    "random": [[0.80, 0.50], [0.81, 0.55], [0.79, 0.58]],
    "snip": [[0.90, 0.71], [0.92, 0.75], [0.91, 0.78]],
}
METRICS = {"accuracy": described(Classification(classes=10)), "r2": described(Regression())}


def sweep(name: str = "accuracy", **more) -> pd.DataFrame:
    rows = []
    for scorer, seeds in ACCURACIES.items():
        for seed, values in enumerate(seeds):
            shared = {"metrics": METRICS[name], "format": 2, "diverged": None, **more}
            levels = [(1.0, 0.97 + seed / 1000), *zip(DENSITIES, values, strict=True)]
            for level, (density, value) in enumerate(levels):
                made = row(scorer, seed, level, density, None, **shared) | {f"test_{name}": value}
                rows.append(made if name == "accuracy" else {k: v for k, v in made.items() if k != "test_accuracy"})
    return frame(*rows)


def diverged(table: pd.DataFrame, *places: tuple[str, int], column: str = "test_accuracy", cell=0.1) -> pd.DataFrame:
    """The table in which the networks of these runs and levels diverged; outputs that are NaN have an accuracy too."""
    table = table.astype({"diverged": object})
    for run, level in places:
        table.loc[(table["run"] == run) & (table["level"] == level), ["diverged", column]] = 10 + level, cell
    return table


LOST = ("random-1", 2), ("magnitude-2", 1), ("snip-0", 1), ("snip-1", 1), ("snip-2", 1)


@pytest.mark.parametrize("cell", [0.1, math.nan])
def test_means_and_pairs_are_those_of_the_rows_that_are_left(cell):
    whole = diverged(sweep(), *LOST, cell=cell)
    left = whole[whole["diverged"].isna()]
    assert len(left) == len(whole) - len(LOST)
    pd.testing.assert_frame_equal(summarise(whole), summarise(left))
    for function in (differences, overall):
        pd.testing.assert_frame_equal(function(whole, "magnitude"), function(left, "magnitude"))
    n = summarise(whole).set_index(["method", "requested_density"])["n"].to_dict()
    assert n == {("magnitude", 0.5): 2, ("magnitude", 0.2): 3, ("random", 0.5): 3, ("random", 0.2): 2, ("snip", 0.2): 3}


def test_pairs_with_one_that_diverged_are_counted_as_unpaired():
    whole = diverged(sweep(), ("random-1", 2), ("magnitude-2", 1), ("random-2", 1), ("random-0", 1))
    found = differences(whole, "magnitude").set_index(["method", "requested_density"])[["n", "unpaired"]]
    assert found.loc["random"].values.tolist() == [[1, 1], [2, 1]]  # seed 2 diverged in both at 0.5
    assert found.loc["snip"].values.tolist() == [[2, 1], [3, 0]]
    (comparison,), refused = comparisons(whole, "magnitude")
    (one, other) = compare.words(comparison)
    assert "random against magnitude" in one
    assert "1 seed has no pair at density 0.5, 0.2." in one
    assert "1 seed has no pair at density 0.5." in other
    assert refused == []


def test_every_run_is_named_with_its_steps_and_levels():
    table = diverged(sweep(), ("random-1", 1), ("random-1", 2), ("snip-0", 0))
    assert exclusions(table, resolve(table)) == [
        "run random-1: diverged at step 11 (level 1), diverged at step 12 (level 2)",
        "run snip-0: diverged at step 10 (level 0)",
    ]
    assert exclusions(table.assign(control="reinit"), resolve(table))[1].endswith("step 10 (level 0 reinit)")


def test_a_dense_network_that_diverged_is_no_line_of_reference():
    places = [(f"{scorer}-{seed}", 0) for scorer in ACCURACIES for seed in (0, 1)]
    table = diverged(sweep(), *places, cell=0.3)
    assert (dense(table)["dense"].n, dense(table)["dense"].mean) == (1, pytest.approx(0.972))
    assert summarise(table)["collapsed"].isna().all()  # of two seeds it is not known what they had to lose
    assert dense(diverged(sweep(), *places, *((f"{scorer}-2", 0) for scorer in ACCURACIES))) == {}


def test_a_method_without_any_network_left_is_named_and_is_no_baseline():
    lost = [(f"snip-{seed}", level) for seed in range(3) for level in (1, 2)]
    table = diverged(sweep(), *lost)
    (found,), _ = comparisons(table, "magnitude")
    assert found.left_out == ("snip",)
    assert compare.words(found)[-1] == "snip is not compared: none of its networks counts."
    assert comparisons(table, "snip") == (
        [],
        ["snip: none of its networks counts: choose a baseline among: magnitude; random"],
    )
    more = [(f"random-{seed}", level) for seed in range(3) for level in (1, 2)]
    assert comparisons(diverged(table, *more), "magnitude")[1] == [
        "magnitude is the only method, as nothing is left of random; snip, so there is nothing to compare: run another "
        "scorer"
    ]


def test_a_set_up_without_any_network_left_does_not_stop_the_others(tmp_path, capsys):
    other = sweep(config={"optimizer": {"lr": 1e9}}).assign(run=lambda rows: rows["run"] + "-wild", dense="wild")
    other = other.assign(dense=other["dense"] + other["seed"].astype(str))
    places = [(run, level) for run in other["run"].unique() for level in range(3)]
    table = pd.concat([sweep(config={"optimizer": {"lr": 0.1}}), diverged(other, *places)], ignore_index=True)
    folder = written(table, tmp_path)
    assert compare.main([str(folder), "--baseline", "magnitude"]) == 0
    streams = capsys.readouterr()
    text = " ".join(streams.out.split())
    assert text.count("random against magnitude:") == 1
    assert "left out: run snip-2-wild: diverged at step 10 (level 0), diverged at step 11 (level 1)" in text
    assert compare.main([str(folder), "--baseline", "magnitude", "--format", "latex"]) == 0
    streams = capsys.readouterr()
    assert "left out" not in streams.out  # a table for a paper
    assert streams.err.count("left out: ") == 9


def test_only_networks_that_diverged_are_one_line(tmp_path, capsys):
    table = sweep().query("scorer != 'snip' and seed == 0")
    places = [(f"{scorer}-0", level) for scorer in ("magnitude", "random") for level in range(3)]
    table = diverged(table, *places)
    for part in (table, table[table["level"] == 0]):
        folder = written(part, tmp_path / str(len(part)))
        for main, more in ((report.main, []), (compare.main, ["--baseline", "magnitude"])):
            assert main([str(folder), *more]) == 1
            streams = capsys.readouterr()
            assert streams.out == ""
            assert re.fullmatch(
                r"error: no pruned network counts: run magnitude-0: diverged at step 10 \(level 0\).*; run random-0: "
                r"diverged .*: lower optimizer.lr, or set training.clip\n",
                streams.err,
            )


def test_a_metric_that_is_not_finite_is_left_out_as_what_it_is(tmp_path, capsys):
    """A perplexity that overflows, of a network whose training went well."""
    metrics = described(LanguageModelling())
    table = sweep().drop(columns="test_accuracy").assign(test_perplexity=9.0, metrics=[metrics] * len(sweep()))
    table.loc[(table["run"] == "snip-1") & (table["level"] == 2), "test_perplexity"] = math.nan
    assert exclusions(table, resolve(table)) == ["run snip-1: test_perplexity is not finite (level 2)"]
    assert counted(table, resolve(table, "density")).equals(table)
    assert report.main([str(written(table, tmp_path))]) == 0
    assert "left out: run snip-1: test_perplexity is not finite (level 2)" in capsys.readouterr().out.splitlines()
    with pytest.raises(RecordsError, match=r"test_perplexity is not finite .*: choose another --metric"):
        points(table.assign(test_perplexity=math.nan))


# Other tasks


def mixed() -> pd.DataFrame:
    regression = sweep("r2", data="diabetes", config={"task": {"_target_": "experiments.tasks.Regression"}})
    regression = regression.assign(run=regression["run"] + "-r", dense=regression["dense"] + "-r")
    return pd.concat([sweep(), regression], ignore_index=True)


@pytest.mark.parametrize("option", [["--metric", "accuracy"], ["--value", "test_accuracy"]])
def test_runs_of_another_task_are_left_out_with_a_line(tmp_path, capsys, option):
    alone, both = written(sweep(), tmp_path / "alone"), written(mixed(), tmp_path / "both")
    line = "left out: 9 runs of Regression on diabetes: no test_accuracy, but r2, mse, mae and loss"
    for main, more in ((report.main, ["--output"]), (compare.main, ["--baseline", "magnitude"])):
        texts = []
        for folder in (alone, both):
            assert main([str(folder), *option, *more, *([str(tmp_path / "out")] if more[0] == "--output" else [])]) == 0
            texts.append(capsys.readouterr().out.splitlines())
        assert line in texts[1]
        assert [text for text in texts[1] if text != line] == texts[0]


def test_the_other_way_round_and_a_metric_that_none_has(tmp_path, capsys):
    table = mixed()
    left, lines = measured(table, resolve_metric(table, "r2"))
    assert set(left["data"]) == {"diabetes"}
    assert lines == ["9 runs of digits: no test_r2, but accuracy and loss"]
    assert measured(table, resolve(table, "density"))[1] == []
    folder = written(table, tmp_path)
    assert report.main([str(folder), "--metric", "f1"]) == 1
    assert capsys.readouterr().err == (
        "error: no metric 'f1' in these rows; choose among accuracy, loss, r2, mse, mae\n"
    )


def test_a_column_that_dense_networks_lack_is_averaged_without_them(tmp_path, capsys):
    table = sweep()
    table["removed_bytes"] = [
        None if level == 0 else 100.0 + seed for level, seed in zip(table["level"], table["seed"], strict=True)
    ]
    control = [row | {"run": row["run"], "control": "small_dense", "removed_bytes": None} for row in as_rows(table)]
    folder = written(pd.concat([table.assign(control=None), frame(*control)], ignore_index=True), tmp_path)
    assert report.main([str(folder), "--value", "removed_bytes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "left out: 18 rows of 9 runs: no removed_bytes" in lines
    assert not any(" dense " in line for line in lines)
    assert sum("101.0000" in line for line in lines) == 6


def as_rows(table: pd.DataFrame) -> list[dict]:
    return table[table["level"] > 0].to_dict("records")


# Runs


@pytest.mark.parametrize(
    ("first", "last", "failed"),
    [(2.3, 23.1, True), (2.3, 22.9, False), (None, 5e28, False), (0.0, 1.0, False), (2.3, None, False)],
)
def test_a_training_failed_if_its_loss_grew_tenfold(first, last, failed):
    text = failed_training({"first_loss": first, "losses": [[0.5, 1.0], [1.0, last]]})
    assert text == (f"training loss grew from {first:.3g} to {last:.3g}" if failed else "")
    assert failed_training({"losses": [[1.0, 5.0]]}) == ""  # as of earlier runs


def test_a_training_that_made_its_network_worse_counts_but_is_named(tmp_path, capsys, caplog):
    options = ("scorer=magnitude", "optimizer.lr=1e9", "density=[0.5]", "training.epochs=1", "recovery=none")
    rows = app.run(setting_of(tmp_path, *options), tmp_path / "runs" / "high", "high")
    assert [row["diverged"] for row in rows] == [None, None]
    assert "training loss grew from" in caplog.text
    assert report.main([str(tmp_path / "runs")]) == 0
    said = rf"run high: training loss grew from {rows[0]['first_loss']:.3g} to \S+ \(level 0\)"
    assert re.search(f"^counted, but check optimizer.lr: {said}$", capsys.readouterr().out, re.MULTILINE)
    assert "training loss grew" in (tmp_path / "runs" / "report.html").read_text()


def test_a_sweep_with_runs_that_diverged_is_reported(tmp_path, capsys):
    """Everything is drawn of the others; channels are not removed from a network that has no outputs to compare."""
    rows = []
    for name, *more in (
        ("a", "optimizer.lr=0.1", "seed=0"),
        ("b", "optimizer.lr=0.1", "seed=1"),
        ("c", "optimizer.lr=1e12", "seed=0"),
    ):
        setting = setting_of(
            tmp_path,
            "scorer=random",
            "optimizer=sgd",
            "granularity=channels",
            "density=[0.5]",
            "training.epochs=1",
            *more,
        )
        rows.append(app.run(setting, tmp_path / "runs" / name, name))
    assert [one["diverged"] for one in rows[2]] == [3, 23]
    assert rows[2][1]["removed_difference"] is None
    assert rows[0][1]["removed_difference"] < 1e-3
    assert report.main([str(tmp_path / "runs"), "--store", str(tmp_path / "store")]) == 0
    printed = capsys.readouterr().out
    assert "left out: run c: diverged at step 3 (level 0), diverged at step 23 (level 1)" in printed.splitlines()
    assert "not drawn" not in printed
    page = (tmp_path / "runs" / "report.html").read_text()
    assert "<li>run c: diverged at step 3 (level 0), diverged at step 23 (level 1)</li>" in page
    embedded = json.loads(re.search(r'id="data">(.*?)</script>', page)[1])
    assert {point["run"] for point in embedded["points"]} == {"a", "b"}
    assert len(embedded["dense"]) == 2
    assert list(results(rows[0], tmp_path / "store")[0]) == ["accuracy"]
    drawn, masks = results(rows[2], tmp_path / "store")
    assert (drawn, list(masks)) == ({}, ["level1"])

    table = records.read(tmp_path / "runs").query("run != 'c'").astype({"diverged": object})
    table.loc[table["level"] == 0, "diverged"] = 3  # as of dense networks that diverged, and tickets that did not
    assert gallery(table, FigureOptions(store=tmp_path / "store"), tmp_path / "out")[1] == []
    assert "dense" not in pd.read_csv(tmp_path / "out" / "weights.csv")["method"].tolist()


def test_a_metric_of_outputs_whose_loss_is_not_finite_does_not_count():
    """Outputs that are NaN, as of NaN in a Dataset, have an accuracy too."""
    table = sweep().assign(test_loss=0.3, validation_loss=0.2)
    table.loc[(table["run"] == "snip-1") & (table["level"] == 2), "test_loss"] = math.nan
    value = resolve(table)
    assert exclusions(table, value) == ["run snip-1: test_loss is not finite (level 2)"]
    assert len(counted(table, value)) == len(table) - 1
