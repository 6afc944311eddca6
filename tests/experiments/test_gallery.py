"""Figures of a whole sweep: their numbers against masks, weights and rows looked up by hand."""

import itertools
import json
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from safetensors.torch import load_file

from experiments import records
from experiments.results import statistics
from experiments.results.comparison import comparisons
from experiments.results.figures.layers import layer_densities, layers
from experiments.results.figures.overlap import overlap
from experiments.results.figures.style import COLOURS, LINES, MARKERS, panel_title
from experiments.results.figures.training import losses, training
from experiments.results.figures.weights import histograms
from experiments.results.gallery import FigureOptions, available_axes, gallery
from experiments.results.overlap import jaccard, overlaps
from experiments.store.networks import MASKS, WEIGHTS
from experiments.store.retrieval import kept_weights, masks_of
from pruning import Masks
from pruning.errors import ArtefactError, RecordsError
from tests.experiments.rows import frame, row, start
from tests.experiments.running import run


@pytest.fixture(scope="module")
def rows(swept) -> pd.DataFrame:
    return records.read(swept / "runs")


def test_every_figure_with_its_numbers(swept, rows, tmp_path):
    wanted = FigureOptions(compared=comparisons(rows, "magnitude")[0], store=swept / "store")
    written, skipped = gallery(rows, wanted, tmp_path)
    assert skipped == []
    stems = [f"accuracy_{x}" for x in ("compression", "sparsity", "macs", "difference")]
    stems += ["layers", "overlap", "weights", "training"]
    expected = {f"{stem}.{suffix}" for stem in stems for suffix in ("pdf", "png", "csv")}
    assert {path.name for path in written} == expected == {path.name for path in tmp_path.iterdir()}
    assert all(path.stat().st_size > 200 for path in written)
    for stem in stems:
        assert len(pd.read_csv(tmp_path / f"{stem}.csv")) > 0
    again, _ = gallery(rows, replace(wanted, axes=["macs"]), tmp_path / "again")
    for path in again:
        assert path.read_bytes() == (tmp_path / path.name).read_bytes(), path.name


def test_without_the_store_the_rest_is_drawn_and_what_is_missing_told(rows, tmp_path):
    written, skipped = gallery(rows, FigureOptions(axes=["macs"], store=tmp_path / "nowhere"), tmp_path)
    assert [line.split(":")[0] for line in skipped] == ["overlap", "weights"]
    assert all("--store" in line for line in skipped)
    assert {"layers.png", "training.png"} <= {path.name for path in written}


def found_masks(folder, key: str) -> Masks:
    weights, _, masks = key.partition("+")
    (path,) = (folder / "store").glob(f"*/{masks or weights}/{MASKS}")
    return Masks.load(path)


def test_overlaps_by_counting(swept, rows):
    points = statistics.points(rows)
    found = overlaps(points, partial(masks_of, store=swept / "store"))
    assert len(found) == 3 * 3  # densities by magnitude–magnitude, magnitude–random, random–random

    def kept(scorer, seed, density):
        at = points[(points["scorer"] == scorer) & (points["seed"] == seed) & (points["requested_density"] == density)]
        masks = found_masks(swept, at["network"].iloc[0])
        return {(name, place) for name, mask in masks.items() for place in mask.flatten().nonzero().flatten().tolist()}

    for line in found.itertuples():
        if line.method == line.other:
            pairs = [(kept(line.method, 0, line.requested_density), kept(line.method, 1, line.requested_density))]
        else:
            pairs = [
                (kept(line.method, seed, line.requested_density), kept(line.other, seed, line.requested_density))
                for seed in (0, 1)
            ]
        assert line.n == len(pairs)
        assert line.jaccard == pytest.approx(np.mean([len(a & b) / len(a | b) for a, b in pairs]))


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_jaccard_is_of_sets(pairs):
    a, b = ({i for i, pair in enumerate(pairs) if pair[side]} for side in (0, 1))
    index = len(a & b) / len(a | b) if a | b else 1.0
    found = jaccard([Masks({"w": torch.tensor(bits)}) for bits in zip(*pairs, strict=True)])
    assert found.tolist() == [[1.0, index], [index, 1.0]]


def test_jaccard_is_over_the_tensors_that_both_have(monkeypatch):
    monkeypatch.setattr("experiments.results.overlap._PRODUCT", 15)  # three columns a product
    rng = np.random.default_rng(0)
    tensors = (("a", "b"), ("b", "c"), ("c",), ("a", "b", "c"))
    kept = [{name: rng.random((4, 5)) < 0.4 for name in names} for names in tensors]
    kept[2]["a"] = rng.random(7) < 0.4  # of another shape: another network's
    found = jaccard([Masks({name: torch.from_numpy(bits) for name, bits in masks.items()}) for masks in kept])
    for i, one in enumerate(kept):
        for j, other in enumerate(kept):
            names = [name for name in one if name in other and one[name].shape == other[name].shape]
            both = sum(int((one[name] & other[name]).sum()) for name in names)
            either = sum(int((one[name] | other[name]).sum()) for name in names)
            assert found[i, j] == (both / either if either else 1.0)


def test_independent_masks_overlap_by_chance():
    rng = np.random.default_rng(0)
    masks = [Masks({"w": torch.tensor(rng.random(200_000) < density)}) for density in (0.1, 0.3)]
    points = frame(row("a", kept=100), row("b", kept=300)).assign(method=lambda t: t["scorer"], requested_density=0.2)
    found = overlaps(points, lambda row: masks[row["scorer"] == "b"])
    assert found[["method", "other", "n"]].values.tolist() == [["a", "b", 1]]
    assert found["jaccard"].iloc[0] == pytest.approx(found["chance"].iloc[0], rel=0.03)
    assert found["chance"].iloc[0] == pytest.approx(0.03 / 0.37)


@pytest.mark.parametrize("options", [(), ("dynamic=set",), ("granularity=vectors",)])
def test_kept_weights_are_those_of_the_network(tmp_path, options):
    rows = run(tmp_path, "density=[0.3]", *options)
    assert masks_of(rows[0], tmp_path / "store") is None
    dense = kept_weights(rows[0], tmp_path / "store")
    assert sum(values.numel() for values in dense.values()) == rows[0]["prunable"]
    kept = kept_weights(rows[1], tmp_path / "store")
    assert {name: values.numel() for name, values in kept.items()} == {
        layer["name"]: layer["kept"] for layer in rows[1]["layers"]
    }
    weights, _, _ = rows[1]["network"].partition("+")
    (path,) = (tmp_path / "store").glob(f"*/{weights}/{WEIGHTS}")
    stored = load_file(path)
    masks = masks_of(rows[1], tmp_path / "store")
    for name, values in kept.items():
        of = stored[name] if stored[name].numel() == values.numel() else stored[name][masks[name]]
        assert torch.equal(values, of.flatten())


def test_rows_that_name_no_network_are_told(tmp_path):
    with pytest.raises(ArtefactError, match="magnitude-0, level 1: does not name its network"):
        masks_of(row(), tmp_path)
    with pytest.raises(ArtefactError, match="holds no artefact abc of run magnitude-0, level 1"):
        masks_of(row(network="abc", layers=[]), tmp_path)


def test_histograms_count_every_kept_weight_once(swept, rows):
    points = statistics.points(rows)
    found = histograms(points, rows, partial(kept_weights, store=swept / "store"))
    counts = found.groupby(["method", "requested_density"])["count"].sum()
    assert counts["dense", 1.0] == rows["prunable"].iloc[0]
    for (method, requested), once in points.groupby(["method", "requested_density"]):
        assert counts[method, requested] == pytest.approx(once["kept"].mean())
    edges = found.groupby("method")["low"].nunique()
    assert edges.nunique() == 1


def test_layer_densities_are_means_over_seeds(rows):
    points = statistics.points(rows)
    found = layer_densities(points)
    for line in found.itertuples():
        at = points[(points["method"] == line.method) & (points["requested_density"] == line.requested_density)]
        kept = [next(layer["kept"] for layer in layers if layer["name"] == line.layer) for layers in at["layers"]]
        assert line.kept == pytest.approx(np.mean(kept))
        assert line.density == pytest.approx(np.mean(kept) / line.total)
    whole = found.groupby(["method", "requested_density"])[["kept", "total"]].sum()
    assert (whole["kept"] / whole["total"]).round(2).tolist() == pytest.approx([0.02, 0.1, 0.5] * 2)


def test_losses_are_where_their_epochs_ended(swept, rows):
    found = losses(statistics.points(rows), rows)
    dense = found[found["method"] == "dense"]
    assert dense["epoch"].tolist() == [1, 2]  # of two epochs
    assert set(dense["n"]) == {2}
    tuned = found[found["method"] == "random"]
    assert tuned["epoch"].tolist() == [3, 3, 3]  # one more, at each of three densities
    histories = [json.loads(path.read_text()) for path in (swept / "store" / "dense").glob("*/history.json")]
    means = np.mean([[epoch["loss"] for epoch in history["history"]] for history in histories], axis=0)
    assert dense["loss"].tolist() == pytest.approx(means.tolist())


def test_losses_of_rewound_trainings_and_of_parts_of_epochs(tmp_path):
    rows = run(tmp_path, "density=0.3", "recovery=rewind", "recovery.to=30it", "training.epochs=2")
    ended = [epoch for epoch, _ in rows[1]["losses"]]
    assert ended[-1] == pytest.approx(rows[1]["total_epochs"])
    assert ended[0] < 3
    assert np.diff(ended).tolist() == pytest.approx([1.0] * (len(ended) - 1))
    assert rows[1]["epochs"] == pytest.approx(ended[-1] - 2)


def test_rows_without_losses_are_told():
    table = frame(start(), row())
    with pytest.raises(RecordsError, match="no row has losses"):
        losses(statistics.points(table), table)


def two_set_ups(rows: pd.DataFrame) -> pd.DataFrame:
    """The sweep, and the same runs again as if of another training: other dense networks, other names."""
    configs = [config | {"training": config["training"] | {"epochs": 99}} for config in rows["config"]]
    other = rows.assign(run=rows["run"] + "-other", dense=rows["dense"] + "-other", config=configs)
    other["losses"] = [[[epoch, 100 * loss] for epoch, loss in told] for told in other["losses"]]
    return pd.concat([rows, other], ignore_index=True)


def test_dense_networks_of_two_set_ups_are_never_averaged(swept, rows):
    both = two_set_ups(rows)
    points = statistics.points(both)
    found = losses(points, both)
    alone = losses(statistics.points(rows), rows)
    starts = found[found["method"] == found["dense"]]
    assert set(starts["n"]) == {2}
    first, second = (part["loss"].tolist() for _, part in starts.groupby("dense"))
    assert sorted([first, second]) == [
        alone.loc[alone["method"] == "dense", "loss"].tolist(),
        pytest.approx((100 * alone.loc[alone["method"] == "dense", "loss"]).tolist()),
    ]
    panels = training(found).axes
    assert [line.get_ydata().tolist() for line in (panels[0].lines[0],)] == [first]

    kept = histograms(points, both, partial(kept_weights, store=swept / "store"))
    counts = kept.groupby(["dense", "method", "requested_density"])["count"].sum()
    for setup in set(kept["dense"]):
        assert counts[setup, setup, 1.0] == rows["prunable"].iloc[0]


def test_masks_of_different_networks_do_not_overlap(rows):
    both = two_set_ups(rows)
    found = overlaps(statistics.points(both), lambda row: Masks({"w": torch.ones(2, dtype=torch.bool)}))
    crossed = found[found["method"].str.contains("epochs=2") != found["other"].str.contains("epochs=2")]
    assert len(found) > 0
    assert crossed.empty


def test_legends_hold_methods_and_no_marks(rows):
    figure = training(losses(statistics.points(rows), rows))
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == ["dense", "50 % kept", "10 % kept", "2 % kept"]
    for (
        panel
    ) in figure.axes:  # one epoch of recovery: a point is seen, and it was pruned where the dense training ended
        assert [line.get_marker() for line in panel.lines if len(line.get_xdata()) == 1] == ["o"] * 3
        assert {line.get_xdata()[0] for line in panel.lines if line.get_linestyle() == ":"} == {2.0}


def test_no_two_methods_look_alike():
    looks = [
        (COLOURS[n % len(COLOURS)], LINES[n // len(COLOURS) % len(LINES)], MARKERS[n % len(MARKERS)])
        for n in range(168)
    ]
    assert len(set(looks)) == 168


def test_long_titles_are_wrapped():
    label = "taylor (granularity=Channels, recovery.epochs=20, recovery.learning_rate=replay, recovery.to=start)"
    panel = Figure().subplots()
    panel_title(panel, label, 2)
    lines = panel.get_title().split("\n")
    assert " ".join(lines) == label
    assert max(map(len, lines)) <= 42


def test_a_difference_is_drawn_for_every_set_up(rows, tmp_path):
    both = two_set_ups(rows)
    compared, refused = comparisons(both, "magnitude")
    assert refused == []
    written, _ = gallery(both, FigureOptions(compared=compared, axes=["compression"], store=tmp_path), tmp_path)
    names = {path.name for path in written if "difference" in path.name}
    assert names == {f"accuracy_difference_{n}.{suffix}" for n in (1, 2) for suffix in ("pdf", "png", "csv")}


@pytest.mark.parametrize("count", [1, 20])
def test_labels_of_many_methods_and_densities_do_not_touch(count):
    methods = [f"method {place}" for place in range(count)]
    densities = np.geomspace(0.5, 0.005, count).tolist()
    layered = [
        {"method": method, "requested_density": density, "layer": layer, "density": density}
        for method in methods[:3]
        for density in densities
        for layer in ("fc1.weight", "fc2.weight")
    ]
    pairs = [
        {"requested_density": density, "method": one, "other": other, "jaccard": 0.3, "chance": 0.1}
        for density in densities
        for one, other in itertools.combinations_with_replacement(methods, 2)
    ]
    for figure in (layers(pd.DataFrame(layered)), overlap(pd.DataFrame(pairs))):
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        for panel in figure.axes[:-1]:  # the last one is the colour bar
            for labels in (panel.get_xticklabels(), panel.get_yticklabels()):
                upright = [label for label in labels if label.get_text() and not label.get_rotation()]
                boxes = [label.get_window_extent(canvas.get_renderer()) for label in upright]
                assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


@pytest.mark.parametrize(("epochs", "drawn"), [((18, 18), False), ((18, 24), True)])
def test_cost_is_an_axis_where_it_differs_along_a_curve(epochs, drawn):
    """Methods of one cost each would be vertical lines."""
    rows = [start(scorer, macs=9, dense_macs=9) for scorer in ("a", "b")]
    for scorer, more in (("a", 0), ("b", 6)):
        for level, (density, spent) in enumerate(zip((0.5, 0.1), epochs, strict=True), start=1):
            rows.append(row(scorer, 0, level, density, total_epochs=spent + more, macs=5, dense_macs=9))
    axes = available_axes(statistics.summarise(frame(*rows)))
    assert ("cost" in axes) == drawn


def test_networks_that_keep_all_weights_are_drawn(tmp_path):
    """A run that prunes nothing is a control, or an adaptation."""
    run(tmp_path, "density=1.0")
    frame_ = records.read(tmp_path / "run")
    written, skipped = gallery(frame_, FigureOptions(store=tmp_path / "store"), tmp_path / "figures")
    assert {"weights", "training", "accuracy_sparsity"} <= {path.stem for path in written}
    assert not [line for line in skipped if not line.startswith(("layers", "overlap"))]
