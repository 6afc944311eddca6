"""Adaptations in results: labels, a table by what was trained, and the figure of it."""

import math

import pandas as pd
import pytest

from experiments.records.values import resolve
from experiments.results import statistics
from experiments.results.adapted import adaptations, bounds
from experiments.results.comparison import comparisons
from experiments.results.figures.adaptation import adaptation
from experiments.results.figures.style import abbreviated
from experiments.results.figures.training import losses, training
from experiments.results.gallery import FigureOptions, gallery
from experiments.results.intervals import mean_interval
from experiments.results.labels import methods
from pruning.errors import RecordsError
from tests.experiments.rows import row, start

SIZES = {"head": (None, 0), "full": (None, 5_000_000), "lora": ("lora:1", 20_000), "ia3": (None, 8_000)}


def adapted(
    name: str, seed: int, accuracy: float, budget: str | None, trained: int, level: int = 1, density: float = 1.0
):
    config = {"adaptation": {"name": name, "budget": ["lora:1", "lora:8"]}, "seed": seed}
    columns = {"budget": budget, "trained": trained, "bytes": 4 * trained, "optimizer_bytes": 8 * trained}
    columns |= {"step_ms": 100.0, "filled": 0, "rate": 0.01, "dense": 10, "search_seconds": 30.0 + seed}
    return row(
        seed=seed,
        level=level,
        requested=density,
        accuracy=accuracy,
        run=f"{name}-{seed}",
        config=config,
        **{f"adaptation_{key}": value for key, value in columns.items()},
    )


def frame(density: float = 1.0) -> pd.DataFrame:
    rows = []
    for name, (budget, trained) in SIZES.items():
        for seed in range(3):
            rows.append(adapted(name, seed, 0.6 + 0.01 * seed + len(name) / 100, budget, trained))
            if name == "lora":
                rows.append(adapted(name, seed, 0.7 + 0.02 * seed, "lora:8", 160_000, level=2))
    return pd.DataFrame(rows)


def test_budgets_are_part_of_a_method_and_not_of_its_curve():
    rows = frame()
    assert set(methods(rows)) == {"head", "full", "ia3", "lora, lora:1", "lora, lora:8"}
    assert set(methods(rows, budgets=False)) == set(SIZES)


def test_the_table_has_means_intervals_and_costs():
    rows = frame()
    table = adaptations(statistics.points(rows), resolve(rows))
    assert list(table["trained"]) == [0, 8_000, 20_000, 160_000, 5_000_000]
    large = table[table["budget"] == "lora:8"].iloc[0]
    want = mean_interval([0.7, 0.72, 0.74])
    assert (large["mean"], large["low"], large["high"], large["n"]) == pytest.approx(
        (want.mean, want.low, want.high, 3)
    )
    assert (large["bytes"], large["optimizer_bytes"], large["step_ms"]) == (640_000, 1_280_000, 100)
    assert large["search_seconds"] == 31
    assert math.isnan(large["support_seconds"])
    assert large["rates"] == (0.01, 0.01, 0.01)
    assert bounds(table) == [True, False, False, False, True]


def test_the_figure_draws_what_the_table_has():
    rows = frame()
    value = resolve(rows)
    table = adaptations(statistics.points(rows), value)
    drawn = adaptation(table, value)
    left, right = drawn.axes
    assert left.get_xscale() == right.get_xscale() == "log"
    assert "Trained weights" in left.get_xlabel()
    curves = {one.get_label(): one[0].get_xydata() for one in left.containers}
    assert set(curves) == {"lora", "ia3"}
    assert curves["lora"][:, 0].tolist() == pytest.approx([20_000, 160_000], rel=0.1)
    assert curves["lora"][:, 1].tolist() == pytest.approx([value.scale * 0.65, value.scale * 0.72])
    assert sorted(one[0].get_xdata()[0] for one in right.containers) == pytest.approx([32_000, 80_000], rel=0.1)
    labels = {label.get_text() for panel in drawn.axes for label in panel.get_xticklabels()}
    assert {"20k", "100k"} <= labels
    assert not any("$" in label for label in labels)
    across = [line.get_label() for line in left.lines if str(line.get_label()).partition(":")[0] in ("head", "full")]
    assert across == ["head: nothing else trained", "full: 5,000,000 trained"]


def test_other_rows_have_no_such_table_or_figure():
    plain = pd.DataFrame([row(seed=seed, run=f"r{seed}") for seed in range(2)])
    with pytest.raises(RecordsError, match="no network is adapted"):
        adaptations(plain, resolve(plain))
    rows = pd.concat([frame(), pd.DataFrame([adapted("lora", 0, 0.5, "lora:1", 9, 3, 0.5)])], ignore_index=True)
    table = adaptations(statistics.points(rows), resolve(rows))
    with pytest.raises(RecordsError, match="several densities"):
        adaptation(table, resolve(rows))
    assert math.isclose(table["requested_density"].min(), 0.5)


def with_dense(rows: pd.DataFrame) -> pd.DataFrame:
    """Also the dense network of every run, which all of a seed share."""
    runs = rows.drop_duplicates("run")
    dense = [
        start(seed=seed, run=run, config=c)
        for run, seed, c in zip(runs["run"], runs["seed"], runs["config"], strict=True)
    ]
    return pd.concat([pd.DataFrame(dense), rows], ignore_index=True)


def test_the_losses_of_networks_that_are_not_pruned_are_drawn_too():
    rows = with_dense(frame())
    rows["losses"] = [[[1.0, 0.9]] if level == 0 else [[3.0, 0.5], [4.0, 0.4]] for level in rows["level"]]
    rows = rows.assign(epochs=2.0, total_epochs=4.0)
    found = losses(statistics.points(rows), rows)
    drawn = training(found)
    curves = [line for line in drawn.axes[0].lines if str(line.get_label()).endswith("kept")]
    assert [line.get_label() for line in curves] == ["100 % kept"]
    assert list(curves[0].get_ydata()) == pytest.approx([0.5, 0.4])


def test_a_report_of_one_density_has_no_curves_over_densities(tmp_path):
    rows = with_dense(frame())
    written, _ = gallery(rows, FigureOptions(resolve(rows)), tmp_path)
    assert "adaptation" in {path.stem for path in written}
    assert not [path for path in written if "sparsity" in path.stem or "compression" in path.stem]
    half = frame(0.5)
    half["requested_density"] = half["density"] = 0.5
    half["run"] += "-half"
    both = with_dense(pd.concat([frame(), half]))
    written, _ = gallery(both, FigureOptions(resolve(both)), tmp_path)
    assert [path for path in written if "sparsity" in path.stem]


def test_counts_are_abbreviated():
    wanted = {0.5: "0.5", 20: "20", 1000: "1k", 20_000: "20k", 1_500_000: "1.5M", 2e9: "2G"}
    assert {count: abbreviated(count) for count in wanted} == wanted


def test_a_baseline_is_called_without_its_budget_where_it_has_one():
    rows = with_dense(frame())
    (found,), refused = comparisons(rows, "ia3", resolve(rows))
    assert (found.baseline, list(refused)) == ("ia3", [])
    one = rows[(rows["adaptation_budget"] != "lora:8") | (rows["level"] == 0)]
    (found,), _ = comparisons(one, "lora", resolve(one))
    assert found.baseline == "lora, lora:1"
    found, refused = comparisons(rows, "lora", resolve(rows))
    assert not list(found)
    assert "lora may be any of lora, lora:1; lora, lora:8" in refused[0]
