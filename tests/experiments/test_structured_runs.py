"""Channels end to end: pruned, recovered, removed, verified and timed; one-shot, in rounds and by budget."""

import pytest
import torch
from hydra import compose, initialize_config_dir

from experiments import models, records
from experiments import run as app
from experiments.configuration import CONF, validate
from experiments.results import figures, statistics
from experiments.results.gallery import FigureOptions, gallery
from experiments.running import stages
from experiments.running.levels import Level, evaluate
from experiments.running.setting import Setting
from experiments.store import Store
from experiments.store.networks import load
from pruning import Masks
from pruning.cost import cost
from pruning.errors import ConfigurationError, PruningError, RecordsError
from pruning.structure import remove, trace
from tests.experiments.running import run, setting_of, timeless

CHANNELS = ("granularity=channels", "model.hidden=[16,12]", "latency=8")
RESNET = ("data=digits", "model=resnet20", "model.width=0.25", "training.epochs=1", "recovery.epochs=1")


def untimed(rows):
    return [{key: value for key, value in row.items() if key != "latency_ms"} for row in timeless(rows)]


def test_each_level_is_removed_verified_and_timed(tmp_path):
    rows = run(tmp_path, *CHANNELS, "density=[0.5,0.25]", "scorer=taylor")
    setting = setting_of(tmp_path, *CHANNELS, "density=[0.5,0.25]", "scorer=taylor")
    assert setting.structure.size == 28
    for row, share in zip(rows[1:], (0.5, 0.25), strict=True):
        assert row["removed_difference"] <= 1e-5
        assert row["removed_parameters"] == row["nonzero"] < row["parameters"]
        assert row["latency_ms"] > 0
        assert row["latency_batch"] == 8
        assert row["requested_density"] == share
        assert row["prunable"] == 64 * 16 + 16 * 12 + 12 * 10
        assert row["density"] == row["kept"] / row["prunable"]
    assert rows[0]["removed_parameters"] is None
    assert rows[0]["latency_ms"] > 0


def test_layers_of_one_kind_keep_the_same_width(tmp_path):
    options = (
        "granularity=channels",
        "model=mlp",
        "model.hidden=[16,16,16]",
        "density=[0.5,0.25]",
        "scorer=taylor",
        "latency=null",
    )
    rows = run(tmp_path, *options, "granularity.equal=[fc*]")
    for row, width in zip(rows[1:], (8, 4), strict=True):
        assert row["removed_parameters"] == 64 * width + 2 * width * width + width * 10 + 3 * width + 10
        assert row["removed_difference"] <= 1e-5


def test_a_row_s_macs_are_those_of_the_small_network(tmp_path):
    options = (*CHANNELS, "density=0.5")
    row = run(tmp_path, *options)[1]
    setting = setting_of(tmp_path, *options)
    dense = stages.dense(setting)
    begun = stages.prune(setting, dense, 0.5, lambda network: stages.score(setting, network))
    network = stages.recover(setting, begun, 0.5)
    assert untimed([evaluate(setting, network, Level(1, 1, 1, 0.5, 0.5), dense)])[0]["macs"] == row["macs"]
    model = load(setting.new_model(), network)
    small = remove(model, network.load_masks(), setting.structure)
    whole = {name: torch.ones_like(p, dtype=torch.bool) for name, p in small.named_parameters()}
    assert cost(small, Masks(whole), setting.splits.test["inputs"][:1]).dense_macs == row["macs"]
    weights = [p for p in model.parameters() if p.dim() > 1]
    assert sum(int((w != 0).sum()) for w in weights) == row["kept"]


def test_removed_channels_do_not_come_back_while_training(tmp_path):
    options = (*CHANNELS, "density=0.5", "recovery.epochs=3", "optimizer=sgd")
    run(tmp_path, *options)
    setting = setting_of(tmp_path, *options)
    begun = stages.prune(setting, stages.dense(setting), 0.5, lambda network: stages.score(setting, network))
    model = load(setting.new_model(), stages.recover(setting, begun, 0.5))
    masks = begun.load_masks()
    assert {name for name in masks if name.endswith("bias")}
    assert all(not bool(dict(model.named_parameters())[name][~mask].any()) for name, mask in masks.items())


@pytest.mark.parametrize("kind", ["macs", "parameters"])
def test_budgets_are_shares_of_the_whole_model(tmp_path, kind):
    rows = run(tmp_path, *CHANNELS, f"allocation={kind}", "density=[0.6,0.4]")
    for row, share in zip(rows[1:], (0.6, 0.4), strict=True):
        spent = row["macs"] / row["dense_macs"] if kind == "macs" else row["nonzero"] / row["parameters"]
        assert share - 0.1 < spent <= share
    with pytest.raises(ConfigurationError, match="granularity=channels"):
        run(tmp_path, f"allocation={kind}")


def test_rounds_controls_and_a_second_run(tmp_path):
    options = (*CHANNELS, "density=0.4", "schedule=exponential", "schedule.rounds=2", "controls=[shuffle,reinit]")
    rows = run(tmp_path, *options)
    assert [(row["round"], row["control"]) for row in rows[1:]] == [
        (number, control) for number in (1, 2) for control in (None, "shuffle", "reinit")
    ]
    for row in rows[1:]:
        assert row["removed_difference"] <= 1e-5
    same = [row["removed_parameters"] for row in rows[1:]]
    assert same[0] == same[2] > same[3] == same[5]
    assert run(tmp_path, *options) == rows  # found, times included


def test_residual_networks_are_pruned_too(tmp_path):
    overrides = [*RESNET, "granularity=channels", "density=0.6", "granularity.multiple_of=2", "scorer=snip"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = validate(compose("config", overrides=overrides))
    row = app.run(Setting(config, Store(tmp_path / "store")), tmp_path / "run", "name")[1]
    assert row["removed_difference"] <= 1e-5
    assert row["removed_parameters"] < row["parameters"]


def test_structured_and_unstructured_stand_in_one_figure(tmp_path):
    for name, options in (("a", CHANNELS), ("b", ("latency=8",))):
        setting = setting_of(tmp_path, *options, "density=[0.6,0.3]")
        app.run(setting, tmp_path / "runs" / name, name)
    frame = records.read(tmp_path / "runs")
    summary, dense = statistics.summarise(frame), statistics.dense(frame)
    assert summary["macs"].between(0, 1).all()
    assert (summary["latency_ms"] > 0).all()
    assert summary["method"].nunique() == 2
    written, skipped = gallery(frame, FigureOptions(store=tmp_path / "store"), tmp_path / "out")
    curves = {f"accuracy_{x}.png" for x in figures.AXES if x != "cost"}  # all were trained as long
    others = {"layers.png", "weights.png", "training.png"}
    assert {path.name for path in written if path.suffix == ".png"} == curves | others | {"overlap.png"}
    assert skipped == []
    drawn = figures.accuracy(summary, dense, "macs").axes[0].get_lines()
    points = sorted(x for line in drawn[1:] for x in line.get_xdata())
    assert points == pytest.approx(sorted(100 * summary["macs"]))
    with pytest.raises(RecordsError, match="latency"):
        figures.accuracy(summary.assign(latency_ms=float("nan")), dense, "latency")


@pytest.mark.parametrize("dynamic", ["gradual", "movement"])
def test_channels_go_while_training_too(tmp_path, dynamic):
    options = ("granularity.pooling=sum", "density=0.5", "recovery.epochs=4", "dynamic.every=1")
    row = run(tmp_path, *CHANNELS, f"dynamic={dynamic}", *options)[1]
    assert row["removed_difference"] <= 1e-5
    assert row["removed_parameters"] == row["nonzero"] < row["parameters"]
    setting = setting_of(tmp_path, *CHANNELS)
    assert setting.structure.cost("parameters") == row["parameters"]


@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 32, 32)])
@pytest.mark.parametrize(
    "name", ["conv_2", "conv_4", "conv_6", "lenet_300_100", "lenet_5", "mlp", "resnet20", "vgg16_bn"]
)
def test_nearly_all_of_each_network_can_go(name, shape):
    model = getattr(models, name)(list(shape), 10)
    structure = trace(model, torch.randn(2, *shape))
    assert structure.share > 0.98


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("dynamic=soft_mask", *CHANNELS), "Vectors"),
        (("dynamic=auto_pruner",), "coupled channels, not of Weights"),
        (("dynamic=auto_pruner", *CHANNELS, "allocation=macs"), "Budget chooses by scores"),
        (("dynamic=auto_pruner", *CHANNELS, "training.accumulate=2"), "training.accumulate=2: .* set it to 1"),
        (("dynamic=soft_movement",), "either a density"),
        (("dynamic=gradual", "dynamic.begin=0.9"), "set them apart"),
        (("dynamic=rigl", "dynamic.fraction=2.0"), "fraction"),
    ],
)
def test_what_a_regime_refuses_is_refused_before_the_first_training(tmp_path, monkeypatch, options, said):
    monkeypatch.setattr("experiments.running.stages.trained.train", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(PruningError, match=said):
        run(tmp_path, *options, "density=0.5", "recovery.epochs=2")


def test_codes_prune_a_residual_network_and_rows_say_what_stays(tmp_path):
    """Codes of layers that a residual stream couples are one; the network is removed and verified as any."""
    options = ["dynamic=auto_pruner", "granularity=channels", *RESNET, "recovery.epochs=4", "density=[0.7,0.4]"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = validate(compose("config", overrides=options))
    assert config.allocation["_target_"].endswith("Uniform")
    rows = app.run(Setting(config, Store(tmp_path / "store")), tmp_path / "run", "name")
    for row in rows[1:]:
        assert row["removed_difference"] <= 1e-5
        assert row["removed_parameters"] < row["parameters"]
        assert row["macs"] < row["dense_macs"]
    assert rows[0]["kept"] > rows[1]["kept"] > rows[2]["kept"]
    assert [row["requested_density"] for row in rows[1:]] == [0.7, 0.4]


@pytest.mark.parametrize("dynamic", ["gradual", "movement", "auto_pruner"])
def test_channels_change_while_training_in_rounds(tmp_path, dynamic):
    """A round begins with the masks of the one before, which reach into biases."""
    rounds = ("schedule=exponential", "schedule.rounds=2", "recovery.epochs=2")
    rows = run(tmp_path, f"dynamic={dynamic}", *CHANNELS, *rounds, "density=0.25")
    assert [row["round"] for row in rows] == [0, 1, 2]
    assert rows[0]["kept"] > rows[1]["kept"] > rows[2]["kept"] > 0
    assert all(row["removed_difference"] <= 1e-5 for row in rows[1:])


def test_biases_compensate_for_channels_that_go(tmp_path):
    """Those of the next layer make up for what removed channels gave on average; what is gone stays gone."""
    options = ("granularity=channels", "density=0.5", "recovery.epochs=0", "latency=null")
    rows = {name: run(tmp_path, *options, f"compensate={name}") for name in ("none", "bias")}
    assert rows["bias"][1]["kept"] == rows["none"][1]["kept"]
    assert rows["bias"][1]["test_loss"] != rows["none"][1]["test_loss"]
    assert rows["bias"][1]["removed_difference"] < 1e-5  # what is gone has no bias either


def test_batches_in_which_nothing_counts_are_left_out_of_scores(tmp_path):
    """Where a class weighs nothing, batches of one such example have no mean; the others score as larger ones do."""
    weights = f"task.weights={[0] * 5 + [1] * 5}".replace(" ", "")
    options = ("scorer=taylor", "density=0.3", "recovery.epochs=0", "scoring.examples=40", weights)
    rows = [run(tmp_path / str(size), *options, f"scoring.batch_size={size}") for size in (1, 40)]
    assert rows[0][1]["test_loss"] == pytest.approx(rows[1][1]["test_loss"], rel=1e-5)
