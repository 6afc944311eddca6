"""Rewinding between rounds: what each recovery resets and what not, and the lottery ticket's ladder and controls."""

import json
from itertools import islice

import pytest
import torch
from safetensors.torch import load_file

from experiments import records
from experiments.results import statistics
from experiments.running import stages
from experiments.running.stages import trained
from experiments.running.stages.masks import shuffled
from experiments.runtime.seeding import generator
from experiments.store.networks import MASKS, POINT, WEIGHTS
from experiments.store.retrieval import kept_weights, masks_of
from experiments.training.batches import batches
from experiments.training.learning_rate import step
from experiments.training.loop import train
from pruning import Masks
from pruning.errors import ConfigurationError
from pruning.granularity import Blocks, Vectors, Weights
from pruning.rewind import RewindPoint
from tests.experiments.running import configured, own, run, setting_of, timeless

EPOCH = 22  # optimizer steps
DECAYING = ("learning_rate=step", "learning_rate.milestones=[0.5]", "training.epochs=2")


@pytest.fixture
def trainings(monkeypatch):
    """(first step, last step, weights at the start, optimizer steps known at the start, learning rates) of each."""
    seen = []

    def watched(model, examples, validation, recipe, *rest, **options):
        rates = [recipe.factor(s / recipe.total) for s in recipe.steps]
        begin = options.get("begin")
        known = 0 if begin is None else int(next(iter(begin.optimizer["state"].values()))["step"])
        before = {name: value.clone() for name, value in model.state_dict().items()}
        seen.append((recipe.steps.start, recipe.steps.stop, before, known, rates))
        return train(model, examples, validation, recipe, *rest, **options)

    monkeypatch.setattr(trained, "train", watched)
    return seen


def weights(artefact) -> dict[str, torch.Tensor]:
    return load_file(artefact.file(WEIGHTS))


def test_finetune_keeps_the_weights_and_the_last_rate(tmp_path, trainings):
    setting = setting_of(tmp_path, *DECAYING, "density=0.3", "recovery=finetune", "recovery.epochs=1")
    run(tmp_path, *DECAYING, "density=0.3", "recovery=finetune", "recovery.epochs=1")
    (_, _, _, _, dense_rates), (first, last, before, known, rates) = trainings
    assert dense_rates == [1.0] * EPOCH + [pytest.approx(0.1)] * EPOCH
    assert (first, last, known) == (2 * EPOCH, 3 * EPOCH, 0)  # the data go on, the optimizer is fresh
    assert rates == [pytest.approx(0.1)] * EPOCH
    trained = weights(stages.dense(setting).weights)
    for name, value in before.items():
        alive = value != 0
        assert torch.equal(value[alive], trained[name][alive])


@pytest.mark.parametrize(("moment", "first"), [("0ep", 0), ("1ep", EPOCH), ("5it", 5), ("30it", 30)])
def test_rewind_puts_weights_schedule_optimizer_and_data_back(tmp_path, trainings, moment, first):
    options = (*DECAYING, "density=0.3", "recovery=rewind", f"recovery.to={moment}")
    run(tmp_path, *options)
    began, ended, before, known, rates = trainings[-1]
    assert (began, ended, known) == (first, 2 * EPOCH, first)
    assert rates == [step(s / (2 * EPOCH), [0.5]) for s in range(first, 2 * EPOCH)]
    point = stages.rewind_point(setting_of(tmp_path, *options))
    for name, value in before.items():
        alive = value != 0
        assert torch.equal(value[alive], weights(point.weights)[name][alive])
    if first:
        saved = RewindPoint.load(point.weights.file(POINT))
        assert saved.step == first


def test_a_rewind_point_is_of_its_step_whichever_epoch_before_was_the_best(tmp_path):
    options = ("optimizer.lr=0.02", "training.epochs=4", "recovery.to=3ep", "recovery=rewind")
    best = setting_of(tmp_path, *options, "training.best_on_validation=true")
    epochs = stages.dense(best).history["history"]
    assert epochs[2]["validation"] < max(epoch["validation"] for epoch in epochs[:2])
    found = [weights(stages.rewind_point(one).weights) for one in (best, setting_of(tmp_path, *options))]
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name])


def test_lr_rewind_keeps_the_weights_and_replays_the_schedule(tmp_path, trainings):
    options = (*DECAYING, "density=0.3", "recovery=lr_rewind", "recovery.to=1ep")
    run(tmp_path, *options)
    began, ended, before, known, rates = trainings[-1]
    assert (began, ended, known) == (EPOCH, 2 * EPOCH, 0)
    assert rates == [step(s / (2 * EPOCH), [0.5]) for s in range(EPOCH, 2 * EPOCH)]
    trained = weights(stages.dense(setting_of(tmp_path, *options)).weights)
    for name, value in before.items():
        alive = value != 0
        assert torch.equal(value[alive], trained[name][alive])


@pytest.mark.parametrize("moment", ["0ep", "1ep", "7it"])
@pytest.mark.parametrize("model", ["model.batch_norm=false", "model.batch_norm=true"])
def test_rewound_without_pruning_it_is_the_dense_network_again(tmp_path, moment, model):
    """Bit for bit: weights, batch norm, optimizer, schedule and data are all there."""
    options = (*DECAYING, model, "density=1.0", "recovery=rewind", f"recovery.to={moment}")
    setting = setting_of(tmp_path, *options)
    run(tmp_path, *options)
    dense = stages.dense(setting)
    pruned = stages.prune(setting, dense, 1.0, lambda network: stages.score(setting, network))
    again = weights(stages.recover(setting, pruned, 1.0).weights)
    for name, value in weights(dense.weights).items():
        assert torch.equal(again[name].reshape(-1), value.reshape(-1)), name


def test_dropout_is_replayed_from_the_middle_of_an_epoch(tmp_path, monkeypatch):
    (tmp_path / "noisy.py").write_text(
        "from torch import nn\n"
        "def net(shape, classes, **_):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.ReLU(), nn.Dropout(0.5), nn.Linear(9, classes))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    options = ("model._target_=noisy.net", "density=1.0", "recovery=rewind", "recovery.to=7it")
    setting = setting_of(tmp_path, *options)
    run(tmp_path, *options)
    dense = stages.dense(setting)
    pruned = stages.prune(setting, dense, 1.0, lambda network: stages.score(setting, network))
    again = weights(stages.recover(setting, pruned, 1.0).weights)
    for name, value in weights(dense.weights).items():
        assert torch.equal(again[name].reshape(-1), value.reshape(-1)), name


LADDER = ("allocation=rates", "allocation.rates={fc3.*: 0.1}", "schedule=repeat", "schedule.rounds=3", "density=null")


def test_the_ladder_of_a_lottery_ticket(tmp_path):
    rows = run(tmp_path, *LADDER, "recovery=rewind")
    layers = [[64 * 16, 16 * 12, 12 * 10]]
    for _ in range(3):
        layers.append([kept - round(rate * kept) for kept, rate in zip(layers[-1], (0.2, 0.2, 0.1), strict=True)])
    assert [[layer["kept"] for layer in row["layers"]] for row in rows] == layers
    assert [row["requested_density"] for row in rows] == [row["density"] for row in rows]
    assert [row["epochs"] for row in rows] == [2.0] * 4
    assert [row["total_epochs"] for row in rows] == [2.0, 4.0, 6.0, 8.0]
    summary = statistics.summarise(records.read(tmp_path / "run"))
    assert len(summary) == 3  # every round is a point of the curve


def test_the_ticket_is_nested_and_begins_at_the_initial_weights(tmp_path, trainings):
    run(tmp_path, *LADDER, "recovery=rewind")
    initial = weights(stages.initial(setting_of(tmp_path)).weights)
    alive = {name: torch.ones_like(value, dtype=torch.bool) for name, value in initial.items()}
    for first, _, before, known, _ in trainings[1:]:
        assert (first, known) == (0, 0)
        for name, value in before.items():
            now = value != 0
            assert torch.equal(value[now], initial[name].reshape(value.shape)[now])
            if value.dim() == 2:
                assert not bool((now & ~alive[name].reshape(value.shape)).any())
                alive[name] = now


CONTROLS = "controls=[reinit,shuffle,random,small_dense]"


def test_controls_are_rows_of_the_run_and_lines_of_the_figure(tmp_path):
    plain = run(tmp_path, *LADDER, "recovery=rewind")
    rows = run(tmp_path / "with", *LADDER, "recovery=rewind", CONTROLS)
    assert [row["control"] for row in rows] == [None] + [None, "reinit", "shuffle", "random", "small_dense"] * 3
    kept = ("level", "density", "kept", "test_accuracy", "test_loss", "network", "layers")
    tickets = [row for row in rows if row["control"] is None]
    assert [[row[key] for key in kept] for row in tickets] == [[row[key] for key in kept] for row in plain]
    for first in (1, 6, 11):
        ticket, *controls, small = rows[first : first + 5]
        counts = [[layer["kept"] for layer in row["layers"]] for row in (ticket, *controls)]
        assert all(count == counts[0] for count in counts)
        assert small["nonzero"] <= ticket["nonzero"]
        assert small["nonzero"] > 0.8 * ticket["nonzero"]
        assert small["density"] == small["kept"] / ticket["prunable"]
        assert small["dense_macs"] == ticket["dense_macs"]
        assert {row["level"] for row in (ticket, *controls, small)} == {ticket["level"]}
        assert len({row["test_loss"] for row in (ticket, *controls, small)}) == 5
    frame = records.read(tmp_path / "with" / "run")
    labels = ["magnitude", *(f"magnitude, {name}" for name in ("random", "reinit", "shuffle", "small_dense"))]
    assert sorted(statistics.summarise(frame)["method"].unique()) == labels
    assert len(statistics.summarise(frame)) == 15


def test_what_each_control_keeps_of_the_ticket(tmp_path, trainings):
    run(tmp_path, "density=0.3", "recovery=rewind", "recovery.to=5it", "controls=[reinit,shuffle,random]")
    (dense, _, ticket, *rest) = trainings
    reinit, shuffle, rand = rest
    assert [t[:2] for t in (dense, ticket, reinit, shuffle, rand)] == [(0, 44), (5, 44), (0, 44), (5, 44), (0, 44)]
    point = weights(stages.rewind_point(setting_of(tmp_path, "recovery=rewind", "recovery.to=5it")).weights)
    for name in ("fc1.weight", "fc2.weight"):
        alive = {key: t[2][name] != 0 for key, t in zip("trsx", (ticket, reinit, shuffle, rand), strict=True)}
        assert torch.equal(alive["t"], alive["r"])
        assert not torch.equal(alive["t"], alive["s"])
        assert not torch.equal(alive["s"], alive["x"])
        assert len({int(mask.sum()) for mask in alive.values()}) == 1
        assert torch.equal(shuffle[2][name][alive["s"]], point[name][alive["s"]])
        assert not bool((reinit[2][name] == point[name])[alive["r"]].any())
        assert not bool((rand[2][name] == point[name])[alive["x"]].any())


def test_a_network_is_narrowed_from_the_width_that_it_has(tmp_path, monkeypatch):
    code = "from torch import nn\ndef net(outputs, width=4.0, **_):\n    return nn.Linear(round(10 * width), outputs)\n"
    name = own(tmp_path, monkeypatch, code)
    setting = setting_of(tmp_path, "~model.width", f"model._target_={name}.net")
    half = setting.narrowed(0.5)
    widths = [one.new_model().in_features for one in (setting, half, half.narrowed(0.5))]
    assert widths == [40, 20, 10]


@pytest.mark.parametrize("granularity", [Weights(), Vectors(0), Vectors(1), Blocks((2, 3))])
def test_shuffled_masks_keep_units_and_counts(granularity):
    unit = torch.rand(6, 9, generator=torch.Generator().manual_seed(0)) < 0.4
    pooled = granularity.pool("w", unit.float(), None).scores
    pooled = pooled > pooled.mean()
    masks = Masks({"w": granularity.expand(pooled, unit.shape), "v": torch.ones(6, 9, dtype=torch.bool)})
    found = [shuffled(masks, granularity, generator(seed, "test")) for seed in range(5)]
    for other in found:
        assert other["w"].sum() == masks["w"].sum()
        assert torch.equal(other["v"], masks["v"])
        units = granularity.pool("w", other["w"].float(), None).scores
        whole = granularity.pool("w", torch.ones(6, 9), None).scores
        assert bool(((units == 0) | (units == whole)).all())
    assert any(not torch.equal(other["w"], found[0]["w"]) for other in found)


def test_controls_of_a_regime_have_its_final_masks(tmp_path):
    rows = run(tmp_path, "dynamic=rigl", "dynamic.every=5", "density=0.3", "controls=[reinit]")
    _, ticket, control = rows
    assert [layer["kept"] for layer in ticket["layers"]] == [layer["kept"] for layer in control["layers"]]
    mask_key = control["network"].split("+")[1]
    assert Masks.load(tmp_path / "store" / "recovered" / mask_key / MASKS).kept == ticket["kept"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["recovery.weights=rewind"], "recovery.learning_rate=replay"),
        (["recovery.to=5it"], "recovery.learning_rate=replay"),
        (["recovery=rewind", "recovery.to=soon"], "recovery.to: 'soon'"),
        (["recovery.epochs=null"], "recovery.epochs=null"),
        (["recovery=rewind", "compensate=layer"], "compensate"),
        (["controls=[luck]"], "controls=luck"),
        (["dynamic=gradual", "training.best_on_validation=true"], "best_on_validation"),
        (["dynamic=gradual", "training.precision=fp16"], "precision"),
        (["checkpoint.seconds=-1"], "checkpoint.seconds"),
        (["recovery.batchnorm_batches=-1"], "batchnorm_batches"),
    ],
    ids=str,
)
def test_recoveries_that_mean_nothing_are_refused(overrides, said):
    with pytest.raises(ConfigurationError, match=said):
        configured(*overrides)


def test_a_moment_after_the_end_is_refused_before_training(tmp_path, trainings):
    with pytest.raises(ConfigurationError, match="training ends after 44 steps"):
        run(tmp_path, "recovery=rewind", "recovery.to=3ep")
    with pytest.raises(ConfigurationError, match="no option width"):
        run(tmp_path, "controls=[small_dense]", "model._target_=tests.experiments.test_recoveries.linear")
    assert not trainings


def linear(shape, classes, **_):
    """A model that has no hidden widths."""
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, classes))


def test_batch_norm_is_estimated_anew_after_the_pruning(tmp_path, trainings):
    options = ("model.batch_norm=true", "density=0.1", "recovery=none")
    stale = run(tmp_path, *options)[1]
    fresh = run(tmp_path, *options, "recovery.batchnorm_batches=20")[1]
    assert fresh["network"] != stale["network"]
    (*_, before, _, _), (*_, after, _, _) = trainings[-2:]
    setting = setting_of(tmp_path, *options)
    epoch = trainings[-1][0] // EPOCH
    seen = batches(setting.splits.train, setting.config.training.batch_size, setting.config.seed, epoch)
    (norm, *_) = (name.removesuffix(".running_mean") for name in after if name.endswith("running_mean"))
    (layer, *_) = (name.removesuffix(".weight") for name, value in after.items() if value.dim() == 2)
    outputs = [x.flatten(1) @ after[f"{layer}.weight"].T for x in (batch["inputs"] for batch in islice(seen, 20))]
    assert torch.allclose(after[f"{norm}.running_mean"], torch.stack([y.mean(0) for y in outputs]).mean(0), atol=1e-6)
    assert torch.allclose(after[f"{norm}.running_var"], torch.stack([y.var(0) for y in outputs]).mean(0), atol=1e-5)
    assert not torch.allclose(before[f"{norm}.running_mean"], after[f"{norm}.running_mean"], atol=1e-2)
    unlike = {name for name in after if not torch.equal(before[name], after[name])}
    assert all(name.rpartition(".")[2] in ("running_mean", "running_var", "num_batches_tracked") for name in unlike)


REGIMES = ("set", "rigl", "gradual", "movement", "soft_movement", "soft_mask", "auto_pruner")


@pytest.mark.parametrize("name", REGIMES)
def test_every_regime_runs_and_says_what_it_kept(tmp_path, name):
    own = {"soft_movement": ["density=null", "dynamic.penalty=0.1"], "soft_mask": ["granularity=vectors"]}
    own |= {"auto_pruner": ["granularity=channels", "latency=null"]}
    options = [f"dynamic={name}", *own.get(name, []), "recovery.epochs=2"]
    options += ["density=0.25"] if name != "soft_movement" else []
    options += ["dynamic.every=5"] if name not in ("soft_mask", "auto_pruner") else []
    rows = run(tmp_path, *options)
    total = rows[0]["prunable"]
    if name == "soft_mask":
        assert sum(layer["kept"] > 0 for layer in rows[1]["layers"]) > 0
        assert rows[1]["kept"] < total
    elif name in ("soft_movement", "auto_pruner"):
        assert 0 < rows[1]["kept"] < total
    else:
        assert rows[1]["kept"] == pytest.approx(0.25 * total, abs=2)
    assert timeless(run(tmp_path, *options)) == timeless(rows)
    artefact = tmp_path / "store" / "recovered" / rows[1]["network"]
    manifest = json.loads((artefact / "manifest.json").read_text())
    assert MASKS in manifest["files"]


def test_levels_without_recovery_store_masks_alone(tmp_path):
    """In rounds, each half of the one before: rows as if every network had been stored, and no copy of the weights."""
    options = ("schedule=exponential", "schedule.rounds=2", "density=0.25", "recovery.epochs=0")
    rows = run(tmp_path, *options)
    kinds = {path.name for path in (tmp_path / "store").iterdir()}
    assert "recovered" not in kinds
    dense = load_file(next((tmp_path / "store" / "dense").rglob("weights.safetensors")))
    biases = sum(value.nbytes for name, value in dense.items() if name.endswith("bias"))
    for row in rows[1:]:
        assert (row["epochs"], row["seconds"], row["losses"]) == (0, 0, [])
        assert row["total_epochs"] == rows[0]["total_epochs"] == 2
        assert abs(row["bytes"] - (4 * row["kept"] + row["prunable"] / 8 + biases)) < 2500  # headers of two files
        masks = masks_of(row, tmp_path / "store")
        for name, vector in kept_weights(row, tmp_path / "store").items():
            assert torch.equal(vector, dense[name][masks[name]])
    trained = run(tmp_path, *options[:-1], "recovery.epochs=1")  # goes on from masks without weights of their own
    assert [row["epochs"] for row in trained] == [2, 1, 1]
    assert [row["total_epochs"] for row in trained] == [2, 3, 4]
