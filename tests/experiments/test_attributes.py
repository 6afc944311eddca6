"""What no state_dict holds: it counts in identities, and a training that changes it says so and does not resume."""

import json
import random
from copy import deepcopy
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune as torch_prune

from experiments import run as app
from experiments.data import Examples
from experiments.data.content import content_of_tensors
from experiments.running import stages
from experiments.running.setting import Setting
from experiments.store import Store
from experiments.store.artefacts import AbsentError, Made
from experiments.store.attributes import Kept, content_of_attributes
from experiments.tasks import Classification
from experiments.training.checkpoints import Checkpoints
from experiments.training.loop import accelerator, train
from pruning.errors import ScoreError
from tests.experiments.running import configured, own
from tests.experiments.test_training import TASK, examples, network, recipe, weights


class Holder(nn.Linear):
    def __init__(self, **values):
        super().__init__(3, 2)
        self.values = values
        self.register_buffer("hidden", torch.zeros(2), persistent=False)


def filled(value: float, **attributes) -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 1))
    for parameter in model.parameters():
        nn.init.constant_(parameter, value)
    vars(model[0]).update(attributes)
    return model


VALUES = {
    "a number": (1, 2),
    "a number and a truth value": (1, True),
    "a text": ("a", "b"),
    "a tensor": (torch.zeros(3), torch.ones(3)),
    "another type": (torch.zeros(3), torch.zeros(3, dtype=torch.float64)),
    "an array": (np.zeros(3), np.arange(3.0)),
    "an array of objects": (np.array([["a"], None], object), np.array([["b"], None], object)),
    "numpy's number": (np.float32(1), np.float32(2)),
    "weights of another model": ([filled(0.0)], [filled(1.0)]),
    "what another model holds": ([filled(0.0, scale=1)], [filled(0.0, scale=2)]),
    "a list": ([1, [2]], [1, [3]]),
    "a function": (torch.relu, torch.tanh),
    "an order": ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
}


@pytest.mark.parametrize("name", VALUES)
def test_values_make_another_content_and_equal_ones_the_same(name):
    one, other = VALUES[name]
    assert content_of_attributes(Holder(x=one)) == content_of_attributes(Holder(x=deepcopy(one)))
    assert content_of_attributes(Holder(x=one)) != content_of_attributes(Holder(x=other))


def test_a_module_that_holds_the_one_around_it_has_a_content():
    one, other = Holder(), Holder(x=1)
    for model in (one, other):
        model.values["around"] = nn.Sequential(model)
    assert content_of_attributes(one) != content_of_attributes(other)


def test_buffers_that_are_not_persistent_count_and_weights_do_not():
    one, other = Holder(), Holder()  # of other weights, which state_dict has
    assert content_of_attributes(one) == content_of_attributes(other)
    other.hidden += 1
    assert content_of_attributes(one) != content_of_attributes(other)


CHANGES = {
    "a counter": (0, lambda holder: holder.values.update(x=1)),
    "a tensor in place": (torch.zeros(2), lambda holder: holder.values["x"].add_(1)),
    "a list": ([1], lambda holder: holder.values["x"].append(2)),
    "an array": (np.zeros(2), lambda holder: holder.values["x"].fill(3)),
    "numpy's generator": (np.random.default_rng(0), lambda holder: holder.values["x"].random()),
    "python's generator": (random.Random(0), lambda holder: holder.values["x"].random()),
    "torch's generator": (torch.Generator(), lambda holder: torch.rand(1, generator=holder.values["x"])),
    "a new one": (0, lambda holder: setattr(holder, "seen", True)),
    "a buffer": (0, lambda holder: holder.hidden.add_(1)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_has_changed_is_named(name, caplog):
    value, change = CHANGES[name]
    holder = Holder(x=value)
    kept = Kept.of(model=holder)
    holder(torch.zeros(1, 3))
    assert not kept.report_changes()
    change(holder)
    assert kept.report_changes()
    what = {"a new one": "seen", "a buffer": "hidden"}.get(name, "values")
    assert f"model.{what}: changes in training, and is in no state_dict" in caplog.text


class Annealed(nn.Sequential):
    """Whose outputs depend on how often it was called in training."""

    def __init__(self):
        torch.manual_seed(0)
        super().__init__(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
        self.calls = 0

    def forward(self, x):
        self.calls += self.training
        return super().forward(x) * (1 + 0.1 * self.calls)


def test_a_training_with_a_counter_in_its_model_begins_again_where_it_is_killed(tmp_path, caplog):
    data, steps = examples(), recipe()
    whole, again = Annealed(), Annealed()
    train(whole, data, data, steps, TASK, accelerator("cpu"))
    short = recipe(steps=range(8), total=steps.total)
    path = tmp_path / "checkpoint"
    train(Annealed(), data, data, short, TASK, accelerator("cpu"), checkpoints=Checkpoints(path, None, 1))
    assert not path.exists()
    assert "model.calls: changes in training" in caplog.text
    train(again, data, data, steps, TASK, accelerator("cpu"), checkpoints=Checkpoints(path, None, 1))
    assert torch.equal(weights(again), weights(whole))


class Recurrent(nn.Module):
    """An LSTM holds its parameters in a list too."""

    def __init__(self):
        super().__init__()
        self.layer, self.last = nn.LSTM(6, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        return self.last(self.layer(x[:, None])[0][:, 0])


def under(hook) -> nn.Module:
    """A network of which a layer's weight is computed by a hook, from parameters."""
    model = network()
    hook(next(module for module in model.modules() if isinstance(module, nn.Linear)))
    return model


WITHOUT_STATE = {
    "plain": network,
    "recurrent": Recurrent,
    "weight_norm": lambda: under(nn.utils.weight_norm),
    "spectral_norm": lambda: under(nn.utils.spectral_norm),
    "torch's own pruning": lambda: under(partial(torch_prune.l1_unstructured, name="weight", amount=0.5)),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("name", WITHOUT_STATE)
def test_a_training_without_such_state_writes_checkpoints_and_says_nothing(name, tmp_path, caplog):
    data, path, model = examples(), tmp_path / "checkpoint", WITHOUT_STATE[name]()
    train(model, data, data, recipe(), TASK, accelerator("cpu"), checkpoints=Checkpoints(path, None, 1))
    assert path.exists()
    assert not caplog.text


# In a run


READING = """
import json
import torch
from torch import nn
from experiments.tasks import Classification

class Scaled(nn.Sequential):
    def __init__(self, file):
        super().__init__(nn.Flatten(), nn.Linear(64, 10))
        self.scale = json.loads(open(file).read())
    def forward(self, x):
        return super().forward(x * self.scale)

class Weighted(Classification):
    def __post_init__(self):
        super().__post_init__()
        self.weights = [json.loads(open({file!r}).read())] * 10

def scorer(evidence, file):
    return {{name: p.detach().abs() * float(open(file).read()) for name, p in evidence.parameters.items()}}
"""


def key_of(folder, **changes) -> str:
    config = replace(configured("density=[0.5]", "training.epochs=0", "recovery.epochs=0"), **changes)
    setting = Setting(config, Store(folder / "store"))
    network = stages.prune(setting, stages.dense(setting), 0.5, lambda network: stages.score(setting, network))
    return network.key


@pytest.mark.parametrize("of", ["model", "task", "scorer"])
def test_what_is_read_from_a_file_is_in_the_key(of, tmp_path, monkeypatch):
    file = tmp_path / "value.json"
    name = own(tmp_path, monkeypatch, READING.format(file=str(file)))
    targets = {
        "model": {"_target_": f"{name}.Scaled", "file": str(file)},
        "task": {"_target_": f"{name}.Weighted", "classes": 10},
        "scorer": {"_target_": f"{name}.scorer", "_partial_": True, "file": str(file)},
    }
    keys = []
    for value in (1.0, 2.0, 1.0):
        file.write_text(json.dumps(value))
        keys.append(key_of(tmp_path, **{of: targets[of]}))
    assert keys[0] == keys[2] != keys[1]


def test_nested_names_and_the_order_of_columns_are_in_the_content():
    a, b = torch.zeros(2, 3), torch.ones(2, 3)
    found = [
        content_of_tensors(Examples(**columns))
        for columns in ({"v": {"a": a, "b": b}}, {"v": {"a": b, "b": a}}, {"v": {"b": b, "a": a}}, {"p": a, "q": b})
    ]
    found.append(content_of_tensors(Examples(q=b, p=a)))
    assert len({*found[:2], *found[3:]}) == 4


IN_PLACE = """
import torch
from torch import nn

class InPlace(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(64, 10))
    def forward(self, x):
        return super().forward(x.sub_(0.5).mul_(1.5))
"""


def test_a_model_that_writes_into_its_inputs_leaves_the_data(tmp_path, monkeypatch):
    name = own(tmp_path, monkeypatch, IN_PLACE)
    config = replace(configured("density=[0.5,0.3]", "scorer=taylor"), model={"_target_": f"{name}.InPlace"})
    setting = Setting(config, Store(tmp_path / "store"))
    parts = [getattr(setting.splits, part) for part in ("train", "validation", "test")]
    before = [part["inputs"].clone() for part in parts]
    app.run(setting, tmp_path / "run", "name")
    assert all(torch.equal(part["inputs"], was) for part, was in zip(parts, before, strict=True))


def test_stages_share_no_task(tmp_path):
    setting = Setting(configured(), Store(tmp_path))
    setting.task.seen = 1
    assert not hasattr(setting.task, "seen")
    assert isinstance(setting.task, Classification)


FAILING = """
def scorer(evidence):
    raise RuntimeError("cannot do that")
"""


def test_a_scorer_that_fails_does_so_before_the_training(tmp_path, monkeypatch):
    name = own(tmp_path, monkeypatch, FAILING)
    scorer = {"_target_": f"{name}.scorer", "_partial_": True}
    setting = Setting(replace(configured("density=[0.5]"), scorer=scorer), Store(tmp_path / "store"))
    with pytest.raises(RuntimeError, match="cannot do that"):
        app.run(setting, tmp_path / "run", "name")
    assert not (tmp_path / "store" / "dense").exists()
    stages.dense(setting)
    made = replace(setting, store=Made(setting.store.root))
    assert stages.dense(made).key == stages.dense(setting).key
    with pytest.raises(AbsentError):
        stages.dense(replace(made, whole=replace(setting.whole, seed=5)))


def test_examples_in_which_nothing_counts_pass_the_check(tmp_path):
    """Those of a language model whose first texts are empty, say: others are scored later."""

    class Counted(Classification):
        def count(self, batch):
            return (batch["targets"] > 99).sum()

    setting = Setting(configured("scorer=taylor"), Store(tmp_path))
    setting.made["first_task"] = Counted(classes=10)
    stages.check_scorer(setting)


def test_a_scorer_of_how_far_weights_came_passes_the_check_where_they_will_come(tmp_path):
    for when, passes in (("trained", True), ("init", False)):
        setting = Setting(configured("scorer=change", f"when={when}"), Store(tmp_path))
        if passes:
            stages.check_scorer(setting)
        else:
            with pytest.raises(ScoreError):
                stages.check_scorer(setting)
