"""Every task with every kind of control, unit, execution and recovery: rows against the networks that they describe."""

import math
from dataclasses import replace

import pytest
import torch

from experiments import run as app
from experiments.data.examples import take
from experiments.running.setting import Setting
from experiments.store import Store
from experiments.store.retrieval import masks_of, network_of
from experiments.tasks import evaluate
from pruning.cost import cost
from pruning.structure import TOLERANCE, remove
from tests.experiments.running import configured
from tests.experiments.sentences import VOCABULARY

LLAMA = {"model_type": "llama", "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1}
LLAMA |= {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 16, "pad_token_id": 0}
SENTENCES = {"name": "sentences", "vocabulary": VOCABULARY, "augment": None}
SENTENCES |= {"load": {"_target_": "tests.experiments.sentences.sentences"}}
TASKS = {
    "regression": (["data=diabetes"], {}, ["small_dense"]),
    "multilabel": (["data=digit_labels"], {}, ["small_dense"]),
    "language_modelling": (
        ["task=language_modelling"],
        {
            "data": SENTENCES,
            "model": {
                "_target_": "experiments.models.transformers_model",
                "auto": "AutoModelForCausalLM",
                "name": None,
                "gguf_file": None,
                "config": LLAMA,
                "vocabulary": VOCABULARY,
            },
        },
        [],
    ),
}
KINDS = {
    "weights": ["controls=[reinit,shuffle,random{}]"],
    "channels": [
        "granularity=channels",
        "allocation=uniform",
        "density=0.6",
        "latency=null",
        "controls=[reinit,shuffle,random{}]",
    ],
    "sparse": ["execution=sparse", "latency=4"],
    "rewind": ["recovery=rewind", "recovery.to=2it", "schedule=exponential", "schedule.rounds=2"],
    "gradual": ["dynamic=gradual", "dynamic.every=2"],
    "gradual channels": [
        "granularity=channels",
        "allocation=uniform",
        "density=0.6",
        "latency=null",
        "dynamic=gradual",
        "dynamic.every=2",
    ],
    "rigl": ["dynamic=rigl", "dynamic.every=2"],
    "adapted": ["adaptation=sparse", "adaptation.budget=60", "adaptation.learning_rate=[1e-2]"],
    "adapted beside": ["adaptation=shira", "adaptation.policy=regrow", "adaptation.budget=60"],
    "adapted whole": ["adaptation=full", "adaptation.learning_rate=[1e-2,1e-1]", "latency=4"],
    "distilled": ["distillation=logits", "distillation.temperature=1", "controls=[reinit,shuffle{}]"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Networks that several kinds share are trained once."""
    return tmp_path_factory.mktemp("combinations")


def setting_of(folder, task: str, kind: str) -> Setting:
    options, replaced, more = TASKS[task]
    kinds = [option.replace("{}", "".join(f",{name}" for name in more)) for option in KINDS[kind]]
    shared = ["density=0.3", "optimizer.lr=0.01", "training.batch_size=32", "scoring.batch_size=32"]
    config = replace(configured(*options, *shared, *kinds, f"store={folder}/store"), **replaced)
    return Setting(config, Store(folder / "store"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("task", TASKS)
def test_rows_say_what_their_networks_are(folder, task, kind):
    if task == "language_modelling":
        pytest.importorskip("transformers")
    setting = setting_of(folder, task, kind)
    rows = app.run(setting, folder / f"{task} {kind}", "name")
    controls = setting.config.controls
    tickets = [row for row in rows if row["control"] is None]
    assert [row["control"] for row in rows] == [None] * len(tickets) + controls
    assert len(tickets) == (3 if kind == "rewind" else 2)
    names = list(setting.prunable(setting.new_model()))
    for row in rows:
        assert [layer["name"] for layer in row["layers"]] == names or row["control"] == "small_dense"
        assert row["density"] == row["kept"] / row["prunable"]
        assert row["diverged"] is None
        assert all(
            math.isfinite(row[f"{part}_{one['name']}"]) for part in ("validation", "test") for one in row["metrics"]
        )
        assert (row["latency_ms"] is None) == (setting.config.latency is None)
        if row["control"] != "small_dense":
            agrees(row, setting, folder / "store")
    ticket = tickets[-1]
    for row in rows[len(tickets) :]:
        counts = [[layer["kept"] for layer in of["layers"]] for of in (row, ticket)]
        if row["control"] == "small_dense":
            assert 0.5 * ticket["nonzero"] < row["nonzero"] <= ticket["nonzero"]
            assert (row["prunable"], row["dense_macs"]) == (ticket["prunable"], ticket["dense_macs"])
        else:
            assert counts[0] == counts[1]
        same = row["control"] == "shuffle"
        assert row["total_epochs"] == (ticket["total_epochs"] if same else setting.config.training.epochs)
    if "channels" not in kind:
        assert ticket["kept"] == round(0.3 * ticket["prunable"]) + (ticket["adaptation_filled"] or 0)


def agrees(row: dict, setting: Setting, store) -> None:
    """What a row says of its network is what the network in the store shows."""
    model, masks = network_of(row, setting.new_model(), store), masks_of(row, store)
    assert evaluate(setting.task, model, setting.splits.test) == pytest.approx(
        {one["name"]: row[f"test_{one['name']}"] for one in row["metrics"]}, rel=1e-5
    )
    inputs = setting.task.inputs(take(setting.splits.test, 1))
    whole = cost(model, None, inputs)
    assert (row["parameters"], row["dense_macs"]) == (whole.parameters, whole.dense_macs)
    if masks is None:
        assert (row["density"], row["nonzero"], row["macs"]) == (1.0, whole.parameters, whole.dense_macs)
        return
    kept = {name: int(mask.sum()) for name, mask in masks.items()}
    assert all(not model.get_parameter(name)[~mask].any() for name, mask in masks.items())
    assert {layer["name"]: layer["kept"] for layer in row["layers"]}.items() <= kept.items()
    assert row["nonzero"] == whole.parameters - sum(mask.numel() - kept[name] for name, mask in masks.items())
    if not setting.structured:
        assert row["removed_difference"] is None
        return
    small = remove(model, masks, setting.structure)
    assert row["removed_difference"] <= TOLERANCE
    assert row["removed_parameters"] == row["nonzero"] == sum(p.numel() for p in small.parameters()) < row["parameters"]
    assert row["macs"] == cost(small, None, inputs).macs < row["dense_macs"]


@pytest.mark.parametrize("task", TASKS)
def test_sparse_execution_measures_what_masked_does(folder, task):
    if task == "language_modelling":
        pytest.importorskip("transformers")
    found = {}
    for kind in ("weights", "sparse"):
        setting = setting_of(folder, task, kind)
        config = replace(setting.config, controls=[], latency=None)
        found[kind] = app.run(Setting(config, setting.store), folder / f"{task} {kind} alone", "name")[-1]
    assert found["sparse"]["sparse"]
    assert not found["weights"]["sparse"]
    for one in found["sparse"]["metrics"]:
        column = f"test_{one['name']}"
        assert found["sparse"][column] == pytest.approx(found["weights"][column], rel=1e-3), column
    masks = [masks_of(row, folder / "store") for row in found.values()]
    assert all(torch.equal(masks[0][name], masks[1][name]) for name in masks[0])
