"""Adaptations in a run: what each trains and leaves alone, budgets, searched rates, and networks that load again."""

import json
import math
from pathlib import Path

import pytest
import torch

from experiments import run as app
from experiments.adaptation import LowRank
from experiments.configuration import CONF, validate
from experiments.running import stages
from experiments.running.setting import Setting
from experiments.running.stages import trained
from experiments.store import Artefact, Store, sources
from experiments.store.inventory import inventory
from experiments.store.networks import ADAPTATION, ADAPTED, HISTORY, Network, load_weights
from experiments.store.retrieval import masks_of, network_of
from experiments.tasks import evaluate
from experiments.training.learning_rate import linear
from experiments.training.loop import train
from pruning.adaptation import Delta
from pruning.errors import ConfigurationError, PruningError
from tests.experiments.running import composed, configured, run, setting_of

CHOICES = sorted(path.stem for path in (CONF / "adaptation").glob("*.yaml") if path.stem != "none")
BESIDE = ("adapters", "prefix", "prompt", "qlora")
OF_PEFT = ("lora", "lora_filling", "dora", "qlora", "ia3")

TEXT = (
    *("data=manual_sections", "data.load.length=8", "++data.load.shortest=4", "model=bert", "training.epochs=1"),
    *("model.auto=AutoModelForSequenceClassification", "model.config.hidden_size=16", "optimizer=adamw"),
    *("model.config.intermediate_size=24", "model.config.num_attention_heads=2", "training.trainable=[classifier.*]"),
    *("exclude=[classifier*]", "recovery.epochs=1", "training.batch_size=500", "scoring.examples=64", "density=1.0"),
    *("adaptation.learning_rate=[1.0e-2]", "optimizer.weight_decay=0.1", "training.clip=1.0"),
)
DECODER = (
    *("data=manual", "data.load.length=8", "model=llama", "training.epochs=0", "optimizer=adamw", "density=1.0"),
    *("model.config.hidden_size=16", "model.config.intermediate_size=24", "exclude=[lm_head*]", "recovery.epochs=1"),
    *("training.batch_size=500", "scoring.examples=64", "recovery.learning_rate=restart"),
)
IMAGES = ("density=0.5", "training.trainable=[fc3.*]", "exclude=[fc3*]", "training.batch_size=200")


def network(row: dict, setting, folder: Path) -> torch.nn.Module:
    return network_of(row, setting.new_model(), folder / "store")


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("adaptations")


def history(folder: Path, key: str) -> dict:
    found: dict = json.loads((folder / "store" / "recovered" / key / HISTORY).read_text())
    return found


def budgeted(choice: str, size: str) -> tuple[str, ...]:
    return () if choice in ("full", "head", "bitfit", "ia3") else (f"adaptation.budget={size}",)


@pytest.mark.parametrize("choice", CHOICES)
def test_every_adaptation_of_an_encoder(shared, choice):
    pytest.importorskip("transformers")
    if choice in OF_PEFT:
        pytest.importorskip("peft")
    options = (f"adaptation={choice}", *TEXT, *budgeted(choice, "lora:4"))
    setting = Setting(validate(composed(*options)), Store(shared / "store"))
    dense, row = app.run(setting, shared / "run", "name")
    base, model = network(dense, setting, shared), network(row, setting, shared)

    # What is loaded is what was evaluated, also where modules are beside the weights
    found = evaluate(setting.task, model, setting.splits.test)
    assert found["loss"] == pytest.approx(row["test_loss"], rel=1e-6)
    assert row["test_loss"] != dense["test_loss"]

    # What is chosen by is what is reported
    adapted = json.loads((setting.store.root / "recovered" / row["network"].split("+")[0] / ADAPTED).read_text())
    for name, value in adapted["validation"].items():
        assert value == pytest.approx(row[f"validation_{name}"], rel=1e-6)

    # What it trains
    matrices = setting.prunable(setting.new_model())
    limit = 4 * sum(sum(p.shape) for p in matrices.values())
    sizes = {"full": sum(p.numel() for p in base.parameters()) - row["adaptation_dense"], "head": 0}
    sizes |= {"bitfit": sum(p.numel() for n, p in base.named_parameters() if "bias" in n and "classifier" not in n)}
    wanted = sizes.get(choice, limit if choice in ("lora", "lora_filling", "qlora") else None)
    wanted = (
        min(limit, sum(p.numel() for p in matrices.values())) if choice in ("sparse", "shira", "lt_sft") else wanted
    )
    if wanted is None or choice == "shira":  # uniform, so that every tensor's count is rounded
        assert 0 < row["adaptation_trained"] <= limit
    else:
        assert row["adaptation_trained"] == wanted
    assert row["adaptation_dense"] == 8 * 16 + 8
    states = 2 * 4 * row["adaptation_trained"]
    assert states <= row["adaptation_optimizer_bytes"] <= states + 4 * 200
    assert row["adaptation_rate"] == 0.01

    # What it leaves alone
    artefact = setting.store.root / "recovered" / row["network"].split("+")[0]
    weights = (
        load_weights(setting.new_model(), Network(Artefact("recovered", artefact.name, artefact)))
        if choice in BESIDE
        else model
    )
    moved = {n for n, p in weights.named_parameters() if not torch.equal(p, dict(base.named_parameters())[n])}
    alone = {"classifier.weight", "classifier.bias"}
    if choice in (*BESIDE, "head"):
        assert moved == alone
    elif choice == "full":
        assert len(moved) > len(matrices)
    elif choice == "bitfit":
        assert all("bias" in name for name in moved - alone)
    else:
        assert moved - alone
        assert moved - alone <= set(matrices)


def test_four_bits_of_bitsandbytes_are_ours(shared):
    pytest.importorskip("peft")
    pytest.importorskip("bitsandbytes")
    wide = ("model.config.hidden_size=64", "model.config.intermediate_size=64", "recovery.epochs=1")
    losses = []
    for by in ("here", "bitsandbytes"):
        options = (*TEXT, *wide, "adaptation=qlora", "adaptation.budget=lora:2", f"adaptation.by={by}")
        setting = Setting(validate(composed(*options)), Store(shared / "store"))
        losses.append(app.run(setting, shared / "run", "name")[1]["test_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.parametrize("choice", ["lora", "ia3", "adapters", "prefix", "prompt", "sparse", "full"])
def test_adaptations_of_a_decoder(shared, choice):
    pytest.importorskip("transformers")
    pytest.importorskip("peft")
    options = (*DECODER, f"adaptation={choice}", "adaptation.learning_rate=[1.0e-2]", *budgeted(choice, "lora:4"))
    setting = Setting(validate(composed(*options)), Store(shared / "store"))
    dense, row = app.run(setting, shared / "run", "name")
    found = evaluate(setting.task, network(row, setting, shared), setting.splits.test)
    assert found["loss"] == pytest.approx(row["test_loss"], rel=1e-6)
    assert row["test_loss"] < dense["test_loss"]
    assert row["adaptation_trained"] > 0
    assert (row["macs"] is None) == (choice in BESIDE)


@pytest.mark.parametrize("choice", ["sparse", "lora", "bitfit", "adapters", "full"])
def test_zeros_of_a_pruned_head_stay(tmp_path, choice):
    """A head that is pruned, and trained as a whole beside the adaptation."""
    pytest.importorskip("peft")
    options = ("density=0.5", "training.trainable=[fc3.*]", f"adaptation={choice}", *budgeted(choice, "lora:1"))
    options += ("++adaptation.where={fc2: fc2}",) if choice == "adapters" else ()
    options += ("adaptation.learning_rate=[0.01]", "training.batch_size=200")
    setting = setting_of(tmp_path, *options)
    _, row = run(tmp_path, *options)
    adapted = json.loads((setting.store.root / "recovered" / row["network"].split("+")[0] / ADAPTED).read_text())
    assert adapted["validation"]["loss"] == pytest.approx(row["validation_loss"], rel=1e-6)
    assert row["kept"] == round(0.5 * row["prunable"])
    head = masks_of(row, tmp_path / "store")["fc3.weight"]
    assert not bool(network(row, setting, tmp_path).fc3.weight[~head].any())


@pytest.mark.parametrize(("choice", "rate"), [("full", 1.0), ("lora", 0.3)])
def test_the_best_epoch_has_its_own_statistics_of_batch_norm(tmp_path, choice, rate):
    pytest.importorskip("peft")
    options = ("model.batch_norm=true", "density=1.0", f"adaptation={choice}", "training.best_on_validation=true")
    options += (
        *budgeted(choice, "lora:1"),
        f"adaptation.learning_rate=[{rate}]",
        "recovery.epochs=4",
        "training.epochs=1",
    )
    setting = setting_of(tmp_path, *options)
    row = run(tmp_path, *options)[1]
    history = setting.store.root / "recovered" / row["network"].split("+")[0] / "history.json"
    epochs = [epoch["validation"] for epoch in json.loads(history.read_text())["history"]]
    assert row["validation_accuracy"] == max(value for value in epochs if value is not None)
    assert epochs[-1] != max(epochs)  # or nothing was put back


def test_layers_are_those_of_these_paths_alone():
    peft = pytest.importorskip("peft")
    model = torch.nn.ModuleDict(
        {"fc": torch.nn.Linear(6, 4), "block": torch.nn.ModuleDict({"fc": torch.nn.Linear(6, 4)})}
    )
    method = LowRank(name="lora", learning_rate=0.1, budget=20, include=["fc.weight"], dense=["block.fc.weight"])
    attached = method.attach(model, None)
    assert attached.count == 2 * (6 + 4)
    assert isinstance(model["fc"], peft.tuners.lora.LoraLayer)
    assert type(model["block"]["fc"]) is torch.nn.Linear
    attached.finish()
    ranks = LowRank(name="lora", learning_rate=0.1, budget=48, ranks={"block.*": 1}, alpha=3.0)
    attached = ranks.attach(model, None)
    layers = {path: layer for path, layer in model.named_modules() if isinstance(layer, peft.tuners.lora.LoraLayer)}
    assert {path: layer.r["default"] for path, layer in layers.items()} == {"fc": 3, "block.fc": 1}
    assert {layer.scaling["default"] for layer in layers.values()} == {3.0}
    assert attached.count == 4 * 10


def test_seeds_draw_otherwise(shared):
    pytest.importorskip("peft")
    found = []
    for seed in (0, 1):
        options = (*IMAGES, "adaptation=lora", "adaptation.budget=lora:1", "density=1.0", f"seed={seed}")
        attached = stages.adaptation.method_of(setting_of(shared, *options)).attach(
            setting_of(shared).new_model(), None
        )
        found.append(attached.own()["fc1.lora_A.default.weight"].detach().clone())
    assert not torch.equal(*found)


@pytest.mark.parametrize("policy", ["survivors", "free", "regrow"])
def test_a_sparse_update_of_a_pruned_network(shared, policy):
    options = (*IMAGES, "adaptation=sparse", f"adaptation.policy={policy}", "adaptation.budget=100")
    setting = setting_of(shared, *options)
    dense, row = run(shared, *options)
    before = stages.prune(setting, stages.dense(setting), 0.5, lambda network: stages.score(setting, network))
    pruned, after = before.load_masks(), masks_of(row, shared / "store")
    model, base = network(row, setting, shared), network(dense, setting, shared)
    pruned.apply_(base)
    changed = {n: p != dict(base.named_parameters())[n] for n, p in model.named_parameters() if n in pruned}
    assert 50 < sum(int(c.sum()) for c in changed.values()) <= 100
    grown = sum(int((after[n] & ~pruned[n]).sum()) for n in pruned)
    assert row["adaptation_trained"] == 100
    assert row["adaptation_filled"] == grown
    assert grown == {"survivors": 0, "regrow": 100}.get(policy, grown)
    assert row["kept"] == pruned.kept + grown
    for name, mask in pruned.items():
        assert policy != "survivors" or not changed[name][~mask].any()
        assert policy != "regrow" or not changed[name][mask].any()

    # The file beside the weights is the delta: base + delta is the network
    path = next((shared / "store" / "recovered").glob(f"{row['network'].split('+')[0]}/{ADAPTATION}"))
    Delta.load(path).apply_(base)
    for name in pruned:
        assert torch.equal(dict(base.named_parameters())[name], dict(model.named_parameters())[name])
    assert row["adaptation_bytes"] == path.stat().st_size


@pytest.mark.parametrize(("choice", "keeps"), [("lora", True), ("lora_filling", False), ("full", True), ("ia3", True)])
def test_zeros_of_a_pruned_network(shared, choice, keeps):
    pytest.importorskip("peft")
    options = (*IMAGES, f"adaptation={choice}", "adaptation.learning_rate=[0.01]", *budgeted(choice, "lora:2"))
    options += ("++adaptation.outputs=[fc1.weight]", "++adaptation.inputs=[fc2.weight]") if choice == "ia3" else ()
    _, row = run(shared, *options)
    assert (row["density"] == pytest.approx(0.5, abs=1e-3)) == keeps
    assert (row["adaptation_filled"] == 0) == keeps
    model = network(row, setting_of(shared, *options), shared)
    assert masks_of(row, shared / "store").agree(model)


def test_the_best_rate_on_validation_wins_and_the_search_goes_beyond_its_ends(shared):
    options = (*IMAGES, "adaptation=sparse", "adaptation.budget=0.3", "adaptation.learning_rate=[1e-5,1e-4]")
    _, row = run(shared, *options, "adaptation.widen=3")
    rates = dict(map(tuple, row["adaptation_rates"]))
    assert sorted(rates)[:3] == [1e-5, 1e-4, 1e-3]  # higher and higher while that is better
    best = row["adaptation_rate"]
    assert row["validation_accuracy"] == rates[best] == max(rates.values())
    assert best < max(rates) or len(rates) == 5
    assert len(row["adaptation_others"]) == len(rates) - 1
    made = {row["network"].split("+")[0], *row["adaptation_others"]}
    entries = inventory(Store(shared / "store"), shared / "run")
    assert {entry.needed for entry in entries if entry.artefact.key in made} == {True}
    parents = {key for entry in entries if entry.artefact.key in made for key in entry.parents}
    supports = [entry for entry in entries if entry.artefact.kind == "supports" and entry.artefact.key in parents]
    assert [entry.needed for entry in supports] == [True]
    seconds = [history(shared, key)["seconds"] for key in made]
    assert row["adaptation_search_seconds"] == pytest.approx(sum(seconds), abs=0.01)
    assert row["seconds"] < row["adaptation_search_seconds"]
    assert 0 < row["adaptation_support_seconds"] < 60
    alone = run(shared, *options[:-1], f"adaptation.learning_rate={best}")[1]
    assert alone["test_loss"] == row["test_loss"]
    assert alone["network"] == row["network"]  # nothing is trained twice


def test_each_budget_is_a_level(shared):
    options = (*IMAGES, "adaptation=sparse", "adaptation.learning_rate=0.01", "adaptation.budget=[50,0.1]")
    _, *rows = run(shared, *options, "density=[0.5,0.25]")
    total = rows[0]["prunable"]
    found = [(row["requested_density"], row["adaptation_budget"], row["adaptation_trained"]) for row in rows]
    tenth = round(0.1 * total)
    assert found == [(0.5, 50, 50), (0.5, 0.1, tenth), (0.25, 50, 50), (0.25, 0.1, tenth)]
    assert [row["level"] for row in rows] == [1, 2, 3, 4]


def test_a_linear_probe_leaves_the_rest_alone(tmp_path, monkeypatch):
    options = ("model.batch_norm=true", "training.trainable=[fc3.*]", "density=1.0", "exclude=[fc3*]")
    setting = setting_of(tmp_path, *options, "adaptation=head")
    rows = run(tmp_path, *options, "adaptation=head")
    start = setting.new_model().state_dict()
    for row in rows:
        for name, value in network(row, setting, tmp_path).state_dict().items():
            assert torch.equal(value, start[name]) != name.startswith("fc3"), name  # statistics of batch norm too


def test_the_schedule_restarts(tmp_path, monkeypatch):
    rates = []

    def watched(model, examples, validation, recipe, *rest, **options):
        rates.append([recipe.factor(step / recipe.total) for step in recipe.steps])
        return train(model, examples, validation, recipe, *rest, **options)

    monkeypatch.setattr(trained, "train", watched)
    options = ("learning_rate=linear", "learning_rate.warmup=0.2", "recovery.learning_rate=restart", "density=0.5")
    run(tmp_path, *options, "recovery.epochs=3", "recovery.factor=0.5")
    wanted = [0.5 * linear(step / len(rates[1]), 0.2) for step in range(len(rates[1]))]
    assert len(rates[1]) == 66
    assert rates[1] == pytest.approx(wanted)


def test_what_a_support_was_chosen_by_is_in_its_identity(shared):
    options = (*IMAGES, "adaptation=sparse", "adaptation.learning_rate=0.01", "adaptation.budget=100")
    keys = set()
    scorers = [f"adaptation.scorer._target_=pruning.scorers.{name}" for name in ("wanda", "magnitude")]
    for further in (*scorers, "adaptation.policy=free"):
        keys.add(run(shared, *options, further)[1]["network"])
    keys.add(run(shared, *options, "scoring.examples=50")[1]["network"])
    keys.add(run(shared, *options)[1]["network"])
    assert len(keys) == 5


def test_lt_sft_scores_what_full_fine_tuning_moves(shared):
    options = (*IMAGES, "density=1.0", "adaptation.learning_rate=[0.001]", "adaptation.widen=0")
    full = run(shared, *options, "adaptation=full")
    row = run(shared, *options, "adaptation=lt_sft", "adaptation.tuned=[0.001]", "adaptation.budget=30")[1]
    setting = setting_of(shared, *options, "adaptation=full")
    base, tuned = (dict(network(one, setting, shared).named_parameters()) for one in full)
    names = list(setting.prunable(setting.new_model()))
    moved = torch.cat([(tuned[name] - base[name]).abs().flatten() for name in names])
    chosen = Delta.load(next((shared / "store").glob(f"recovered/{row['network'].split('+')[0]}/{ADAPTATION}"))).support
    flat = torch.cat(
        [chosen[name].flatten() if name in chosen else torch.zeros(base[name].numel()).bool() for name in names]
    )
    assert set(flat.nonzero()[:, 0].tolist()) == set(moved.topk(30).indices.tolist())
    assert row["adaptation_support_seconds"] > full[1]["adaptation_search_seconds"]  # which its support takes
    assert full[1]["adaptation_support_seconds"] is None
    beside = shared / "store" / "recovered" / full[1]["network"].split("+")[0]
    assert not (beside / ADAPTATION).exists()  # all its weights are in the network's file already
    assert full[1]["adaptation_bytes"] == 4 * full[1]["adaptation_trained"]
    made = len(list((shared / "store" / "recovered").iterdir()))
    run(shared, *options, "adaptation=full", "adaptation.learning_rate=[0.001]")
    assert len(list((shared / "store" / "recovered").iterdir())) == made  # full fine-tuning is trained once for both


def test_the_code_of_adaptations_is_in_no_other_training():
    for stage in ("trained", "recovery", "masks"):
        reached = sources.reached([f"experiments.running.stages.{stage}"])
        assert not [name for name in reached if "adaptation" in name]
    assert "pruning.adaptation.tuning" in sources.reached(["experiments.adaptation.sparse"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("adaptation=lora", "adaptation.budget=null"), "adaptation.budget=None: give a number"),
        (("adaptation=lora", "adaptation.budget=lora:0"), "rank 0"),
        (("adaptation=lora", "adaptation.budget=3"), "are less than rank 1 takes"),
        (("adaptation=sparse", "adaptation.budget=2.0"), "budget"),
        (("adaptation=sparse", "adaptation.budget=[5,5]"), "each once"),
        (("adaptation=sparse", "controls=[reinit]"), "controls are trained as whole networks"),
        (("adaptation=sparse", "dynamic=rigl", "allocation=global"), "dynamic=none"),
        (("adaptation=sparse", "recovery.epochs=0"), "is a training"),
        (("adaptation=sparse", "adaptation.learning_rate=[]"), "rates above 0"),
        (("adaptation=sparse", "adaptation.learning_rate=-1"), "rates above 0"),
        (
            ("adaptation=sparse", "adaptation.policy=regrow", "adaptation.budget=9", "density=1.0"),
            "leaves at most 0",
        ),
        (("adaptation=sparse", "adaptation.include=[fc1.weight]", "adaptation.budget=900"), "leaves at most 608"),
        (
            ("adaptation=sparse", "adaptation.budget=5", "allocation@adaptation.allocation=per_row"),
            "less than one",
        ),
        (("adaptation=sparse", "adaptation.dense=[fc3.*]", "adaptation.dense_rate=-1"), "dense_rate=-1: give a rate"),
        (("adaptation=sparse", "adaptation.learning_rate=true"), "rates above 0"),
        (("adaptation=sparse", "adaptation.widen=1.5"), "whole number"),
        (("adaptation=lora", "+adaptation.ranks={fc9:3}"), "fc9 matches no linear layer"),
        (("adaptation=lora", "+adaptation.ranks={fc1:0}"), "at least 1"),
        (("adaptation=lora", "+adaptation.dropout=2"), "give a share in"),
        (("adaptation=ia3", "+adaptation.outputs=[fc1.bias]"), "is no weight of a linear layer|none of its linear"),
        (("adaptation=ia3", "+adaptation.outputs=[]", "+adaptation.inputs=[]"), "name no layer"),
        (("adaptation=prompt", "adaptation.longest=0"), "at least 1"),
        (("adaptation=sparse", "adaptation.budget=0.6"), "lower the budget"),
        (("adaptation=sparse", "adaptation.policy=nowhere"), "choose free or survivors or regrow"),
        (("adaptation=sparse", "adaptation.scored=later"), "choose base or tuned"),
        (("adaptation=sparse", "granularity@adaptation.granularity=channels"), "no whole channels"),
        (("adaptation=qlora", "adaptation.by=bitsandbytes"), "no multiple of 64"),
        (("adaptation=qlora", "adaptation.by=nobody"), "choose here or bitsandbytes"),
        (("adaptation=sparse_lora", "adaptation.low_rank=1.0"), "a share of the budget"),
        (("adaptation=sparse_lora", "adaptation.budget=4kB"), "give no bytes"),
        (("adaptation=ia3",), "give adaptation.outputs"),
        (("adaptation=adapters",), "give where="),
        (("adaptation=prefix",), "no self-attention"),
        (("adaptation=prompt",), "has no model of transformers"),
        (("adaptation=sparse", "adaptation.dense=[nothing*]"), "nothing"),
        (("adaptation=sparse", "adaptation.scorer._target_=pruning.scorers.movement"), "have both signs"),
        (("adaptation=sparse", "adaptation.scorer._target_=tests.experiments.running.unscored"), "no score for fc1"),
        (
            ("adaptation=sparse", "adaptation.budget=[5,6]", "schedule=exponential", "schedule.rounds=2"),
            "later rounds would go on",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_any_training(tmp_path, monkeypatch, options, message):
    def never(*_, **__):
        raise AssertionError("trained")

    monkeypatch.setattr(trained, "train", never)
    pytest.importorskip("peft")
    with pytest.raises(PruningError, match=message) as caught:
        run(tmp_path, *IMAGES, *options)
    assert "\n" not in str(caught.value)


def test_a_budget_that_a_method_cannot_use_up_is_named(shared, caplog):
    pytest.importorskip("transformers")
    options = ("adaptation=prompt", "adaptation.budget=lora:4", *TEXT)
    for longest, said in ((2, True), (32, False)):
        caplog.clear()
        config = validate(composed(*options, f"adaptation.longest={longest}"))
        stages.check_adaptation(Setting(config, Store(shared / "store")), [1.0])
        assert ("adaptation=prompt: 32 weights are the most" in caplog.text) == said


def test_prefixes_and_an_attention_that_is_compared_are_refused_before_any_training(shared, monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.setattr(trained, "train", None)
    options = (*TEXT, "adaptation=prefix", "adaptation.budget=lora:4", "distillation=attention")
    setting = Setting(validate(composed(*options)), Store(shared / "store"))
    with pytest.raises(PruningError, match="in which prefixes do not act"):
        app.run(setting, shared / "attention", "name")


def test_linear_rates():
    assert [linear(p, 0.5) for p in (0, 0.25, 0.5, 0.75, 1.0)] == [0.0, 0.5, 1.0, 0.5, 0.0]
    assert linear(0.0, 0.0) == 1.0
    assert math.isclose(linear(1.0, 0.1, 0.3), 0.3)
    for wrong in (-0.1, 1.0):
        with pytest.raises(ConfigurationError, match="warmup"):
            linear(0.5, wrong)


def test_a_configuration_says_which_adaptation_it_has():
    for choice in CHOICES:
        assert configured(f"adaptation={choice}").adaptation["name"] == choice
