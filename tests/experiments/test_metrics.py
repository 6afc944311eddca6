"""Rows of any task: what is read from them follows the direction, scale, unit, chance and axis of their metric."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from experiments import compare, records, report
from experiments.records.columns import fault_of
from experiments.records.metrics import LOSS, Metric, share
from experiments.records.values import Value, recall, resolve, resolve_metric
from experiments.results import figures, statistics
from experiments.results.checklist import checklist
from experiments.results.comparison import comparisons, differences, overall
from experiments.results.curves import collapsed
from experiments.results.figures.difference import difference
from experiments.results.gallery import FigureOptions, gallery
from experiments.results.page import data
from experiments.results.tracked import results
from experiments.running.jobs import check_directions, objectives
from experiments.tasks import Classification, LanguageModelling, Regression
from pruning.errors import ConfigurationError, RecordsError
from tests.experiments.rows import frame, row, start

DENSITIES = (0.5, 0.2, 0.1)
DENSE = (10.0, 11.0, 12.0)
PERPLEXITIES = {
    "magnitude": [[10.2, 14.0, 60.0], [11.3, 15.0, 70.0], [12.1, 15.5, 75.0]],
    "random": [[40.0, 90.0, 300.0], [42.0, 99.0, 310.0], [41.5, 95.0, 340.0]],
}
R2 = {"magnitude": [[0.45, 0.30, -0.2], [0.44, 0.33, -0.1]], "random": [[0.2, -0.4, -3.0], [0.25, -0.6, -2.0]]}


def described(task) -> list[dict]:
    return [metric.as_dict() for metric in task.all_metrics()]


TOKENS = described(LanguageModelling())
NUMBERS = described(Regression())


def rows_of(curves, dense, metrics, name, **more) -> list[dict]:
    """Format 2: a dense network and three densities for every scorer and seed."""
    found = []
    for scorer, seeds in curves.items():
        for seed, values in enumerate(seeds):
            levels = [(1.0, dense[seed]), *zip(DENSITIES, values, strict=True)]
            for level, (density, value) in enumerate(levels):
                one = row(scorer, seed, level, density, None, metrics=metrics, **{f"test_{name}": value}, **more)
                one |= {"format": 2, "diverged": None}
                found.append({key: cell for key, cell in one.items() if key != "test_accuracy" or name == "accuracy"})
    return found


def perplexities(**more) -> pd.DataFrame:
    return frame(*rows_of(PERPLEXITIES, DENSE, TOKENS, "perplexity", **more))


def regressions(**more) -> pd.DataFrame:
    return frame(*rows_of(R2, (0.5, 0.48), NUMBERS, "r2", **more))


def written(table: pd.DataFrame, folder):
    for run, rows in table.groupby("run"):
        records.write(folder / str(run), rows.to_dict("records"))
    return folder


# Which value


def test_the_headline_is_what_is_read_unless_another_is_named():
    table = perplexities()
    headline = resolve(table)
    assert headline == Value("test_perplexity", Metric("perplexity", higher_is_better=False, log=True), "test")
    assert resolve(table, "test_perplexity") == headline == resolve(table, headline)
    assert resolve_metric(table, "loss") == Value("test_loss", LOSS, "test") == resolve(table, "test_loss")
    assert resolve(table, "validation_token_accuracy").part == "validation"
    assert resolve(table, "macs") == Value("macs")
    assert resolve(frame(row())) == Value("test_accuracy", share("accuracy"), "test")


@pytest.mark.parametrize(
    ("value", "label", "digits", "stem", "apart"),
    [
        (
            resolve(perplexities()),
            "Test perplexity (lower is better)",
            2,
            "perplexity",
            "difference (below 0 is better)",
        ),
        (resolve(regressions()), "Test R²", 4, "r2", "difference"),
        (resolve(regressions(), "validation_mse"), "Validation MSE (lower is better)", 4, "validation_mse", None),
        (resolve(frame(row())), "Test accuracy (%)", 2, "accuracy", "difference in points"),
        (resolve(frame(row()), "macs"), "Macs", 4, "macs", "difference in its unit"),
        (Value("test_top5_accuracy", share("top5_accuracy"), "test"), "Test top-5 accuracy (%)", 2, None, None),
        (
            Value("test_error", Metric("error", False, 100.0, "%"), "test"),
            "Test error (%, lower is better)",
            2,
            "error",
            "difference in points (below 0 is better)",
        ),
    ],
)
def test_a_value_says_what_it_is(value, label, digits, stem, apart):
    assert (value.label, value.digits) == (label, digits)
    assert stem in (None, value.stem)
    assert apart in (None, value.difference)


def test_tables_of_statistics_remember_their_value():
    table = perplexities()
    for found in (statistics.summarise(table), differences(table, "magnitude")):
        kept = found[found["method"] != "magnitude"].assign(more=1)
        assert recall(kept) == recall(kept, "test_perplexity") == resolve(table)
        json.dumps(found.attrs)  # what is kept with a table is plain data


def test_several_headlines_are_named_and_one_can_be_chosen(tmp_path, capsys):
    both = frame(
        *perplexities().to_dict("records"), *regressions().assign(run=lambda t: t["run"] + "-r").to_dict("records")
    )
    with pytest.raises(RecordsError, match="perplexity and r2: choose one by --metric, or a folder of one task"):
        statistics.points(both)
    folder = written(both.assign(test_loss=1.0), tmp_path)
    assert report.main([str(folder)]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert resolve_metric(both, "loss").column == "test_loss"


def test_an_unknown_metric_is_one_line_with_close_names(tmp_path, capsys):
    folder = written(perplexities(), tmp_path)
    for main, more in ((report.main, []), (compare.main, ["--baseline", "magnitude"])):
        assert main([str(folder), "--metric", "perplexty", *more]) == 1
        assert capsys.readouterr().err == (
            "error: no metric 'perplexty' in these rows; did you mean perplexity? They have perplexity, "
            "token_accuracy, loss\n"
        )
    with pytest.raises(SystemExit):
        report.main([str(folder), "--metric", "loss", "--value", "macs"])


def test_one_name_for_two_metrics_is_refused():
    other = [Metric("perplexity", higher_is_better=True).as_dict()]
    table = perplexities()
    table.at[3, "metrics"] = other
    with pytest.raises(
        RecordsError, match=r"metric perplexity: .* \(higher is better, times 1; lower is better, times 1, log"
    ):
        statistics.points(table)


# Old rows


def test_rows_that_describe_nothing_are_read_as_classifications(tmp_path):
    """The same rows with the metrics that a classification of today writes give the same tables, figures and page."""
    curves = {"magnitude": [[0.96, 0.9, 0.5], [0.95, 0.91, 0.4]], "random": [[0.8, 0.12, 0.1], [0.7, 0.2, 0.1]]}
    metrics = described(Classification(classes=10))
    config = {"data": {"classes": 10}}
    new = frame(*rows_of(curves, (0.97, 0.96), metrics, "accuracy", config=config))
    old = new.drop(columns=["metrics", "diverged"]).assign(format=1)
    (left,), (right,) = (comparisons(table, "magnitude")[0] for table in (old, new))
    for name in ("differences", "overall", "summary"):
        pd.testing.assert_frame_equal(getattr(left, name), getattr(right, name))
    assert left.summary["collapsed"].tolist() == [0, 0, 0, 0, 0.5, 1]  # the limits: 0.187 and 0.186
    assert compare.words(left) == compare.words(right)
    assert compare.cells(left) == compare.cells(right)
    assert checklist(old) == checklist(new)
    assert data.curves(old, resolve(old)) == data.curves(new, resolve(new))
    for name, table in (("old", old), ("new", new)):
        gallery(table, FigureOptions(compared=comparisons(table, "magnitude")[0]), tmp_path / name)
    drawn = sorted((tmp_path / "old").iterdir())
    assert {path.stem for path in drawn} == {"accuracy_compression", "accuracy_sparsity", "accuracy_difference"}
    for path in drawn:
        assert path.read_bytes() == (tmp_path / "new" / path.name).read_bytes(), path.name


# Lower is better


def test_perplexities_by_arithmetic():
    table = perplexities()
    found = overall(table, "magnitude", within=3.0).set_index("method")
    good, bad = (np.array(PERPLEXITIES[name]) for name in ("magnitude", "random"))
    x = -np.log(DENSITIES)
    area = [np.trapezoid(seed, x) / (x[-1] - x[0]) for seed in (*good, *bad)]
    apart = np.subtract(area[3:], area[:3])
    assert found["area"].tolist() == pytest.approx([np.mean(area[:3]), np.mean(area[3:])])
    assert found.loc["random", "mean"] == pytest.approx(apart.mean())
    assert found.loc["random", "p"] == pytest.approx(stats.ttest_1samp(apart, 0).pvalue)
    assert found.loc["random", "verdict"] == "higher"
    assert found["critical"].tolist() == [0.5, 0.0]  # mean rises: 0.2, 3.83 and 57.3; random's are 30 and more
    assert overall(table, "magnitude", within=4.0)["critical"].tolist() == pytest.approx([0.8, 0.0])
    rises = (good - np.array(DENSE)[:, None]).mean(0) / np.mean(DENSE)
    assert rises[0] < 0.05 < rises[1]
    assert overall(table, "magnitude")["critical"].tolist() == [0.5, 0.0]  # by default 5 % of dense


def test_what_is_better_is_said_in_words(tmp_path, capsys):
    folder = written(perplexities(), tmp_path)
    assert compare.main([str(folder), "--baseline", "magnitude", "--within", "4"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "Test perplexity (lower is better)" in text
    assert "sparsity within 4 of dense" in text
    assert "random against magnitude: over the whole curve significantly higher, which is worse (p < 0.001)" in text
    assert compare.main([str(folder), "--baseline", "random"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "magnitude against random: over the whole curve significantly lower, which is better (p < 0.001)" in text
    assert "sparsity within 5 % of dense" in text
    unknown = {name: {"joules": table["test_perplexity"]} for name, table in [("a", perplexities())]}
    (found,), _ = comparisons(perplexities().assign(**unknown["a"]), "random", "joules")
    assert "better" not in " ".join(compare.words(found))


@given(chance=st.floats(-10, 10), gain=st.floats(0.01, 10), share_left=st.floats(-2, 1), higher=st.booleans())
def test_collapse_mirrors(chance, gain, share_left, higher):
    """Of a metric and its negative, which is better the other way, the same networks collapsed: those under a tenth."""
    if abs(share_left - 0.1) < 1e-6:
        return
    sign = 1 if higher else -1
    metric = Metric("score", higher_is_better=higher, chance=sign * chance).as_dict()
    values = [sign * (chance + gain), sign * (chance + share_left * gain)]
    rows = [row(level=n, requested=1 - n / 2, metrics=[metric], test_score=v) for n, v in enumerate(values)]
    table = frame(*rows)
    assert collapsed(table[table["level"] > 0], table).tolist() == [float(share_left < 0.1)]


def test_of_a_dense_network_without_gain_or_an_unknown_chance_nothing_is_known():
    metric = Metric("r2", chance=0.0).as_dict()
    rows = [row(level=n, requested=1 - n / 2, metrics=[metric], test_r2=v) for n, v in enumerate((-0.1, -0.5))]
    assert collapsed(frame(rows[1]), frame(*rows)).isna().all()
    table = perplexities()
    assert collapsed(table[table["level"] > 0], table).isna().all()


def test_each_row_has_the_chance_of_its_own_data():
    rows = []
    for run, classes in (("ten", 10), ("two", 2)):
        metrics = described(Classification(classes=classes))
        rows += [
            start(run, accuracy=0.95, metrics=metrics, dense=run),
            row(run, accuracy=0.52, metrics=metrics, dense=run),
        ]
    table = frame(*rows)
    assert resolve(table).metric.chance is None
    assert collapsed(table[table["level"] > 0], table).tolist() == [0, 1]  # the limits: 0.185 and 0.545


def test_perplexities_are_drawn_on_a_logarithmic_axis(tmp_path):
    table = perplexities()
    summary, dense = statistics.summarise(table), statistics.dense(table)
    figure = figures.accuracy(summary, dense)
    assert "cut" not in figure.legends[0].get_title().get_text()
    panel = figure.axes[0]
    assert (panel.get_yscale(), panel.get_ylabel()) == ("log", "Test perplexity (lower is better)")
    low, high = panel.get_ylim()
    assert low < min(DENSE)
    assert high > summary["mean"].max()
    (drawn,) = (line for line in panel.get_lines() if line.get_label().startswith("random"))
    assert drawn.get_ydata().tolist() == summary.query("method == 'random'")["mean"].tolist()
    shown = [label for label in (panel.yaxis.get_major_formatter()(at, 0) for at in panel.get_yticks()) if label]
    assert "100" in shown
    assert difference(differences(table, "magnitude"), "magnitude").axes[0].get_ylabel() == (
        "Test perplexity,\ndifference (below 0 is better)"
    )
    paths, _ = gallery(table, FigureOptions(), tmp_path)
    assert {path.stem for path in paths} == {"perplexity_compression", "perplexity_sparsity"}
    page = data.curves(table, resolve(table))
    assert (page["log"], page["lower"], page["digits"], page["scale"]) == (True, True, 2, 1.0)


def test_an_interval_of_few_seeds_does_not_stretch_a_logarithmic_axis():
    """Student's interval of 12 and 40 begins below 0, which has no logarithm."""
    few = {name: [[11.0, 12.0, 12.0], [11.2, 13.0, 40.0]] for name in PERPLEXITIES}
    table = frame(*rows_of(few, DENSE, TOKENS, "perplexity"))
    summary = statistics.summarise(table)
    assert summary["low"].min() < 0
    figure = figures.accuracy(summary, statistics.dense(table))
    low, high = figure.axes[0].get_ylim()
    assert 10 / 4 < low < high < 4 * 26
    assert "intervals that reach far beyond are cut" in figure.legends[0].get_title().get_text()


def test_an_interval_of_two_seeds_does_not_stretch_a_linear_axis():
    """Student's factor of two seeds is 12.7; every mean is within the panel, and all that is far off is cut."""
    few = {name: [[0.44, 0.35, 0.20], [0.52, 0.43, 0.28]] for name in ("magnitude", "random")}
    table = frame(*rows_of(few, (0.47, 0.48), NUMBERS, "r2"))
    summary = statistics.summarise(table)
    assert summary["low"].min() < -0.2
    figure = figures.accuracy(summary, statistics.dense(table))
    low, high = figure.axes[0].get_ylim()
    assert -0.2 < low < summary["mean"].min() < summary["mean"].max() < high < 0.9
    assert "intervals that reach far beyond are cut" in figure.legends[0].get_title().get_text()


@pytest.mark.parametrize("ends", [(11.2, 13.4), (1.01, 1.04), (3.0, 70.0), (1.0, 1e30)])
def test_a_logarithmic_axis_has_numbers_however_short_or_long(ends):
    panel = figures.style.Figure().subplots()
    panel.set_ylim(*ends)
    figures.style.log_ticks(panel)
    axis = panel.yaxis
    shown = [axis.get_major_formatter()(at, 0) for at in axis.get_majorticklocs() if ends[0] <= at <= ends[1]]
    shown += [axis.get_minor_formatter()(at, 0) for at in axis.get_minorticklocs() if ends[0] <= at <= ends[1]]
    shown = [label for label in shown if label]
    assert 2 <= len(shown) == len(set(shown))
    assert max(map(len, shown)) <= len("100,000,000")


# Numbers that may be negative


def test_a_regression_is_read_as_it_is(tmp_path, capsys):
    table = regressions()
    folder = written(table, tmp_path / "runs")
    assert report.main([str(folder), "--output", str(tmp_path / "out")]) == 0
    text = capsys.readouterr().out
    mean = np.mean([seed[2] for seed in R2["random"]])
    assert "Test R²" in text
    assert f"{mean:.4f}" in text
    assert (tmp_path / "out" / "r2_compression.csv").exists()
    assert statistics.summarise(table)["collapsed"].tolist() == [0, 0, 1, 0, 1, 1]  # a tenth of 0.5 and of 0.48
    found = overall(table, "magnitude", within=0.05).set_index("method")
    assert found["critical"].tolist() == [0.5, 0.0]
    assert found.loc["random", "mean"] < 0
    assert figures.accuracy(statistics.summarise(table), statistics.dense(table)).axes[0].get_yscale() == "linear"


# Rows


def described_row(**more) -> dict:
    return {"format": 2, "run": "a", "level": 0, "metrics": TOKENS, "diverged": None} | more


@pytest.mark.parametrize(
    ("more", "fault"),
    [
        ({"test_token_accuracy": 1.1}, "'test_token_accuracy' is 1.1, no fraction from 0 to 1"),
        ({"validation_token_accuracy": -0.1}, "no fraction"),
        ({"test_perplexity": "9"}, "'test_perplexity' is '9', no number"),
        ({"metrics": NUMBERS, "test_r2": True}, "'test_r2' is True, no number"),
        ({"metrics": [LOSS.as_dict(), LOSS.as_dict()]}, "no list of metrics"),
        ({"metrics": []}, "no list of metrics"),
        ({"metrics": [{"name": "a b", "higher_is_better": True}]}, "no list of metrics"),
        ({"metrics": [{"name": "a"}]}, "no list of metrics"),
        ({"metrics": [{"name": "a", "higher_is_better": 1}]}, "no list of metrics"),
        ({"metrics": [{"name": "a", "higher_is_better": True, "scale": 0}]}, "no list of metrics"),
        ({"metrics": {"a": 1}}, "no list of metrics"),
        ({"diverged": -1}, "'diverged' is -1, no step"),
        ({"diverged": True}, "'diverged' is True, no step"),
    ],
)
def test_what_a_metric_cannot_hold_is_named(more, fault):
    assert fault in fault_of(described_row(**more))


@pytest.mark.parametrize(
    "more",
    [
        {"test_perplexity": 1e60, "diverged": 12},
        {"metrics": NUMBERS, "test_r2": -7.5, "test_mse": 2900.0},
        {"metrics": [Metric("r2", scale=100.0, unit="%", chance=0.0).as_dict()], "test_r2": -0.4},
        {"metrics": [Metric("mape", False, 100.0, "%").as_dict()], "test_mape": 1.7},
        {"test_token_accuracy": None},
    ],
)
def test_what_a_metric_may_hold_is_read(more, tmp_path):
    assert fault_of(described_row(**more)) is None
    records.write(tmp_path, [described_row(**more)])
    assert records.read(tmp_path)["metrics"][0] == more.get("metrics", TOKENS)


def test_a_network_that_diverged_is_named(tmp_path, capsys):
    table = perplexities().astype({"diverged": object})
    table.loc[2, "diverged"] = 41
    folder = written(table, tmp_path)
    assert report.main([str(folder)]) == 0
    assert "left out: run magnitude-0: diverged at step 41 (level 2)" in capsys.readouterr().out.splitlines()
    runs = {run["run"]: run["state"] for run in data.runs(table, [], tmp_path, tmp_path)}
    assert [state for state in runs.values() if state] == ["diverged at step 41 (level 2)"] == [runs["magnitude-0"]]
    assert len(data.curves(table, resolve(table))["points"]) == 17


# The list, trackers and sweepers


def test_the_trade_off_is_of_any_metric_with_a_direction():
    points = {check.point: check for check in checklist(perplexities())}
    found = points["Curves reach to where perplexity rises"]
    assert found.satisfied
    shares = "the mean of 50 / 10, 59 / 11 and 63 / 12"
    assert "520 % or more above the dense network on average (magnitude the least)" in found.found, shares
    low = frame(*rows_of({"magnitude": [[10.0, 10.1, 10.4]]}, DENSE, TOKENS, "perplexity"))
    assert not {check.point: check for check in checklist(low)}["Curves reach to where perplexity rises"].satisfied
    assert {check.point: check for check in checklist(regressions())}["Curves reach to where R² is lost"].satisfied


def test_top_five_is_satisfied_where_it_is_measured():
    table = frame(start(), row())
    check = next(check for check in checklist(table) if "top-5" in check.point)
    assert (check.satisfied, check.found) == (False, "only top-1 is measured")
    assert next(c for c in checklist(table.assign(test_top5_accuracy=0.99)) if "top-5" in c.point).satisfied
    assert not [check for check in checklist(perplexities()) if "top-5" in check.point]


def test_the_figure_of_a_run_is_named_after_its_headline(tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.results.tracked.mask_file", lambda *_: None)
    rows = [one | {"control": None} for one in rows_of({"random": R2["random"][:1]}, [0.5], NUMBERS, "r2")]
    drawn, _ = results(rows, tmp_path)
    assert list(drawn) == ["r2"]
    assert drawn["r2"].axes[0].get_ylabel().startswith("Test R²")


def test_an_objective_may_be_a_metric_and_goes_its_way(monkeypatch):
    found = {"metrics": TOKENS, "validation_perplexity": 9.0, "test_perplexity": 8.0, "macs": 5}
    assert objectives([found], ["perplexity", "macs"]) == (9.0, 5.0)
    with pytest.raises(ConfigurationError, match="objective=perplexty: rows have no such column"):
        objectives([found], ["perplexty"])
    metrics = LanguageModelling().all_metrics()
    for direction, fails in (("maximize", True), ("minimize", False), (None, False)):
        monkeypatch.setattr("experiments.running.jobs._directions", lambda count, way=direction: [way] * count)
        check_directions(["macs"], metrics)
        for name in ("perplexity", "validation_perplexity", "test_perplexity"):
            if fails:
                with pytest.raises(ConfigurationError, match=rf"objective={name}: .* hydra.sweeper.direction=minimize"):
                    check_directions([name], metrics)
            else:
                check_directions([name], metrics)
