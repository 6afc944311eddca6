"""Distilled recoveries: what is minimised, which teacher, what counts in identities, and what is left as it was."""

import copy
import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from experiments import records
from experiments import run as app
from experiments.data import Examples, split
from experiments.distillation import Attention, DistillationLoss, Hidden, Logits, begin, objective
from experiments.running import stages
from experiments.runtime.seeding import generator
from experiments.store import Store, sources
from experiments.store.inventory import inventory
from experiments.store.networks import WEIGHTS
from experiments.store.retrieval import network_of
from experiments.tasks import Classification
from experiments.training.checkpoints import Checkpoints
from experiments.training.loop import accelerator, train
from pruning.errors import ConfigurationError, ModelError
from tests.experiments.running import configured, own, run, setting_of
from tests.experiments.test_distillation_losses import PADDED, bert
from tests.experiments.test_training import TASK, examples, jitter, network, noisy, recipe, weights

LOGITS = ("distillation=logits", "distillation.temperature=2")


def distilled(teacher: nn.Module, alpha: float = 0.5, loss: DistillationLoss | None = None):
    """An objective as `train` takes it."""
    return partial(begin, loss or Logits(temperature=2.0), alpha, teacher)


def trained(model: nn.Module, data=None, made=None, **options) -> torch.Tensor:
    data = data or examples()
    train(model, data, data, made or recipe(), options.pop("task", TASK), accelerator("cpu"), **options)
    return weights(model)


# What is minimised


@pytest.mark.parametrize("alpha", [0.3, 0.95, 1.0])
@pytest.mark.parametrize("loss", [Logits(temperature=2.0), Hidden(layers=["1"])])
def test_the_loop_is_the_loop_written_out(alpha, loss):
    data, model, twin, teacher = examples(), network(), network(), network(7)
    task = replace(TASK, label_smoothing=0.1)
    trained(model, data, recipe(clip=0.5), task=task, objective=distilled(copy.deepcopy(teacher), alpha, loss))
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9)
    for epoch in range(3):
        for chosen in torch.randperm(23, generator=generator(4, "order", epoch)).split(5):
            inputs, targets = data["inputs"][chosen], data["targets"][chosen]
            with torch.no_grad():
                taught = (teacher if isinstance(loss, Logits) else teacher[:2])(inputs)
            if isinstance(loss, Logits):
                soft = (taught / 2).softmax(1)
                own = (twin(inputs) / 2).log_softmax(1)
                apart = 4 * (soft * (soft.log() - own)).sum(1).mean()
            else:
                apart = (twin[:2](inputs) - taught).square().mean()
            optimizer.zero_grad()
            plain = F.cross_entropy(twin(inputs), targets, label_smoothing=0.1)
            (apart if alpha == 1 else (1 - alpha) * plain + alpha * apart).backward()
            nn.utils.clip_grad_norm_(twin.parameters(), 0.5)
            optimizer.step()
    torch.testing.assert_close(weights(model), weights(twin), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss", [Logits(), Hidden(layers=["2"])])
@pytest.mark.parametrize("model", [network, noisy])
def test_without_a_weight_it_is_the_plain_training_to_the_bit(model, loss):
    """Dropout draws the same numbers, though a teacher that draws too is called in between."""

    class Drawing(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = noisy(3) if model is noisy else network(3)

        def forward(self, inputs):
            torch.rand(3)
            return self.inner(inputs)

    teacher = Drawing()
    teacher.inner = nn.Sequential(*teacher.inner)
    made = recipe(augment=jitter)  # so that it is called with every batch
    plain = trained(model(), made=made)
    named = replace(loss, layers=["2"]) if isinstance(loss, Hidden) else loss
    # under the names of the student
    taught = teacher if isinstance(loss, Logits) else teacher.inner
    assert torch.equal(trained(model(), made=made, objective=distilled(taught, 0.0, named)), plain)
    assert not torch.equal(trained(model(), made=made, objective=distilled(taught, 0.1, named)), plain)


def test_what_is_recorded_is_the_tasks_loss():
    data = examples()
    ended = [
        train(network(), data, data, recipe(), TASK, accelerator("cpu"), objective=made)
        for made in (None, distilled(network(7), 0.0), distilled(network(7), 1.0))
    ]
    chosen = torch.randperm(23, generator=generator(4, "order", 0))[:5]
    first = F.cross_entropy(network()(data["inputs"][chosen]), data["targets"][chosen]).item()
    assert [one.first_loss for one in ended] == [pytest.approx(first, rel=1e-6)] * 3
    assert [e.loss for e in ended[0].epochs] == [e.loss for e in ended[1].epochs]
    assert [e.loss for e in ended[0].epochs] != [e.loss for e in ended[2].epochs]


@pytest.mark.parametrize("parts", [2, 3])
def test_accumulation_does_not_change_the_step(parts):
    found = [trained(network(), made=recipe(accumulate=n), objective=distilled(network(7))) for n in (1, parts)]
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


def test_a_training_with_attention_goes_on_where_it_was_killed(tmp_path, caplog):
    """To the same bits, and without a word that it could not."""
    data = Examples(**PADDED)
    task, made = Classification(classes=3), recipe(epochs=4, count=3)

    class KilledError(Exception):
        """Stands for a process that dies."""

    class Dying(Checkpoints):
        def write(self, tree, device):
            super().write(tree, device)
            if tree["point"]["step"] == 2:
                raise KilledError

    def trained_on(checkpoints=None) -> nn.Module:
        model, taught = bert(0), distilled(bert(1), 0.5, Attention())
        train(model, data, data, made, task, accelerator("cpu"), checkpoints=checkpoints, objective=taught)
        return model

    want = weights(trained_on())
    with pytest.raises(KilledError):
        trained_on(Dying(tmp_path / "c", seconds=None, steps=1))
    assert torch.equal(weights(trained_on(Checkpoints(tmp_path / "c", seconds=None))), want)
    assert "changes in training" not in caplog.text
    assert not torch.equal(weights(bert(0)), want)


# The teacher


@pytest.mark.parametrize("loss", [Logits(), Hidden(layers=["0"])])
def test_the_teacher_stays_as_it_is_in_eval_mode(loss):
    teacher = noisy(3)
    before = copy.deepcopy(teacher.state_dict())
    trained(noisy(), objective=distilled(teacher, 0.9, loss))
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not any(module.training for module in teacher.modules())
    assert not any(module._forward_hooks for module in teacher.modules())


class Counting(nn.Module):
    """Whole numbers: what it gives does not depend on the order of any sum."""

    def __init__(self):
        super().__init__()
        self.layer, self.seen = nn.Linear(6, 3), []
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randint(-3, 4, parameter.shape, generator=generator(0, "whole")).float())

    def forward(self, inputs):
        self.seen.append(len(inputs))
        return self.layer(inputs)


def whole_numbers() -> Examples:
    data = examples()
    return Examples(inputs=data["inputs"].mul(4).round(), targets=data["targets"])


def test_outputs_that_are_kept_train_the_same_bits_as_those_computed_as_they_come(monkeypatch):
    """Where arithmetic is exact; elsewhere the difference is rounding."""
    task, found = Classification(classes=3, evaluation_batch=10), {}
    for kind, limit in (("kept", objective.LIMIT), ("computed", 23 * 3 * 4 - 1), ("just kept", 23 * 3 * 4)):
        monkeypatch.setattr(objective, "LIMIT", limit)
        teacher = Counting()
        found[kind] = trained(network(), whole_numbers(), task=task, objective=distilled(teacher))
        seen = [10, 10, 3] if "kept" in kind else [10] + 3 * [5, 5, 5, 5, 3]
        assert teacher.seen == seen, kind
        usual = trained(network(), task=task, objective=distilled(network(7)))
        torch.testing.assert_close(usual, found.setdefault("usual", usual), rtol=1e-5, atol=1e-6)
    assert torch.equal(found["kept"], found["computed"])
    assert torch.equal(found["kept"], found["just kept"])


def test_outputs_are_kept_where_they_are_the_same_in_every_epoch_and_are_all_that_is_needed():
    def calls(data=None, made=None, loss=None) -> int:
        teacher = Counting()
        if isinstance(loss, Hidden):
            teacher.add_module("0", nn.Identity())
            teacher.forward = lambda inputs, plain=teacher.forward: teacher._modules["0"](plain(inputs))
        trained(
            network() if loss is None else nn.Sequential(network()), data, made, objective=distilled(teacher, 0.5, loss)
        )
        return len(teacher.seen)

    assert calls() == 1
    assert calls(made=recipe(augment=jitter)) == 15
    rows = [{"inputs": x, "targets": y} for x, y in zip(*examples().values(), strict=True)]
    assert calls(split(rows, validation=0.1, test=0.1).train) > 1
    assert calls(loss=Hidden(layers=["0"])) == 15


def test_a_student_that_writes_into_its_inputs_does_not_change_what_the_teacher_sees():
    class Writing(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network()

        def forward(self, inputs):
            return self.inner(inputs.mul_(2))

    teachers = [network(7), Writing()]
    teachers[1].inner.load_state_dict(network(7).state_dict())
    found = []
    for made in (recipe(), recipe(augment=lambda inputs, _: inputs)):
        found.append(trained(Writing(), made=made, objective=distilled(copy.deepcopy(teachers[1]))))
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


def test_a_layer_that_the_teacher_lacks_is_refused():
    with pytest.raises(ConfigurationError, match=r"distillation.layers: the teacher has no 2: choose a teacher of"):
        trained(network(), objective=distilled(nn.Sequential(nn.Linear(6, 3)), 0.5, Hidden(layers=["2"])))


# Runs


def recovered(rows: list[dict], folder) -> dict[str, torch.Tensor]:
    """The weights of the last row that is no control."""
    last = [row for row in rows if row["control"] is None][-1]
    return load_file(folder / "store" / "recovered" / last["network"].partition("+")[0] / WEIGHTS)


def alike(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_distilled_recovery_is_one_with_the_dense_network_as_its_teacher(tmp_path):
    """By hand: the dense network of the store, the pruned one, the rest of the order of the data."""
    options = (*LOGITS, "distillation.alpha=0.7", "density=0.3")
    rows = run(tmp_path, *options)
    setting = setting_of(tmp_path, *options)
    teacher = network_of(rows[0], setting.new_model(), tmp_path / "store").eval()
    network = stages.prune(setting, stages.dense(setting), 0.3, partial(stages.score, setting))
    model = stages.trained.load(setting.new_model(), network)
    masks, data = network.load_masks(), setting.splits.train
    optimizer = torch.optim.Adam(model.parameters(), lr=1.2e-3)
    for chosen in torch.randperm(len(data), generator=generator(0, "order", 2)).split(60):
        inputs, targets = data["inputs"][chosen], data["targets"][chosen]
        optimizer.zero_grad()
        outputs, given = model(inputs), teacher(inputs).detach()
        soft = (given / 2).softmax(1)
        apart = 4 * (soft * (soft.log() - (outputs / 2).log_softmax(1))).sum(1).mean()
        (0.3 * F.cross_entropy(outputs, targets) + 0.7 * apart).backward()
        optimizer.step()
        masks.apply_(model)
    found = network_of(rows[1], setting.new_model(), tmp_path / "store")
    for name, value in model.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], value, rtol=1e-4, atol=1e-5)


def test_without_a_weight_nothing_is_distilled_and_the_network_is_shared(tmp_path):
    plain = run(tmp_path, "density=0.3")
    rows = run(tmp_path, "density=0.3", *LOGITS, "distillation.alpha=0")
    assert [row["network"] for row in rows] == [row["network"] for row in plain]
    assert len(list((tmp_path / "store" / "recovered").iterdir())) == 1


KINDS = {
    "hidden": ("distillation=hidden", "distillation.layers=[fc1,fc2]"),
    "combined": ("distillation=combined", "distillation.terms.hidden.layers=[relu*]"),
    "alone": ("distillation=logits", "distillation.alpha=1"),
    "rewound": (*LOGITS, "recovery=rewind", "recovery.to=5it"),
    "from the start": (*LOGITS, "when=init", "scorer=snip"),
    "rigl": (*LOGITS, "dynamic=rigl", "dynamic.every=5"),
    "gradual": (*LOGITS, "dynamic=gradual", "dynamic.every=5"),
    "in rounds": (*LOGITS, "schedule=exponential", "schedule.rounds=2"),
    "channels": (*LOGITS, "granularity=channels", "model.batch_norm=true"),
    "sparse": ("distillation=hidden", "distillation.layers=[fc1,fc2]", "execution=sparse"),
    "bfloat16": (*LOGITS, "training.precision=bf16"),
    "codes": (*LOGITS, "dynamic=auto_pruner", "granularity=channels", "recovery.epochs=2"),
    "sparse update": (*LOGITS, "adaptation=sparse", "adaptation.budget=0.2", "adaptation.learning_rate=[0.01]"),
    "states of a sparse update": (
        *("distillation=hidden", "distillation.layers=[fc1,fc2]"),
        *("adaptation=sparse", "adaptation.budget=0.2", "adaptation.learning_rate=[0.01]"),
    ),
    "low rank": (
        *("distillation=hidden", "distillation.layers=[fc1,fc2]"),
        *("adaptation=lora", "adaptation.budget=lora:1", "adaptation.learning_rate=[0.01]"),
    ),
    "best": (*LOGITS, "training.best_on_validation=true"),
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return tmp_path_factory.mktemp("shared")


@pytest.mark.parametrize("kind", KINDS)
def test_it_goes_with_every_recovery(shared, kind):
    if kind == "low rank":
        pytest.importorskip("peft")
    options = (*KINDS[kind], "density=0.3")
    rows = run(shared, *options)
    plain = run(shared, *options, "distillation.alpha=0")
    assert rows[0]["network"] == plain[0]["network"]
    assert rows[-1]["network"] != plain[-1]["network"]
    assert rows[-1]["kept"] == plain[-1]["kept"] or kind == "codes"  # which are part of what is trained
    assert rows[-1]["diverged"] is None
    if kind in ("hidden", "combined", "alone"):
        assert not alike(recovered(rows, shared), recovered(plain, shared))


@pytest.mark.parametrize("share", [0.1, 1.0])
def test_it_brings_the_student_nearer_to_its_teacher(tmp_path, share):
    """Divergence at the end, of states or outputs, against a recovery without it."""
    found = {}
    for alpha in (0, share):
        options = ("distillation=logits", "distillation.temperature=1", f"distillation.alpha={alpha}", "density=0.2")
        rows = run(tmp_path, *options, "recovery.epochs=8", "training.epochs=8")
        setting = setting_of(tmp_path, *options)
        inputs = setting.splits.train["inputs"]
        one, dense = (network_of(row, setting.new_model(), tmp_path / "store")(inputs) for row in (rows[1], rows[0]))
        apart = F.kl_div(one.log_softmax(1), dense.log_softmax(1), reduction="batchmean", log_target=True)
        found[alpha] = apart.item()
    assert found[share] < found[0]


def test_a_teacher_of_another_run(tmp_path, monkeypatch):
    """Its dense level teaches as the run's own dense network does, dropout included; its last one teaches otherwise."""
    code = (
        "from torch import nn\n"
        "def net(shape, classes, **_):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.ReLU(), nn.Dropout(0.5), nn.Linear(9, classes))\n"
    )
    places = (f"model._target_={own(tmp_path, monkeypatch, code)}.net", f"store={tmp_path}/store")
    app.run(setting_of(tmp_path, "density=[0.5,0.2]", *places), tmp_path / "other", "other")
    options = (*LOGITS, "density=0.3", "recovery=rewind", "recovery.to=5it", *places)  # amid an epoch
    plain = recovered(run(tmp_path, *options), tmp_path)
    teacher = f"distillation.teacher={tmp_path}/other"
    assert alike(plain, recovered(run(tmp_path, *options, teacher, "distillation.level=0"), tmp_path))
    last = run(tmp_path, *options, teacher)
    assert not alike(plain, recovered(last, tmp_path))
    assert last[1]["network"] == run(tmp_path, *options, teacher, "distillation.level=2")[1]["network"]
    (tmp_path / "other").rename(tmp_path / "moved")
    moved = run(tmp_path, *options, f"distillation.teacher={tmp_path}/moved")
    assert moved[1]["network"] == last[1]["network"]  # the teacher's weights count, not where its rows lie
    with pytest.raises(ModelError, match="has no level 7"):
        run(tmp_path, *options, f"distillation.teacher={tmp_path}/moved", "distillation.level=7")


def test_a_wider_teacher_teaches_outputs_but_not_states(tmp_path):
    wide = setting_of(tmp_path, "model.hidden=[32,24]", "density=0.5", f"store={tmp_path}/store")
    app.run(wide, tmp_path / "wide", "wide")
    options = ("density=0.3", f"store={tmp_path}/store")
    teacher = (f"distillation.teacher={tmp_path}/wide", "distillation.level=0")
    rows = run(tmp_path, *options, *LOGITS, *teacher)
    assert rows[1]["test_accuracy"] > 0.2
    with pytest.raises(ModelError, match=r"fc1 gives \[16\] an example in the student and \[32\] in the teacher"):
        run(tmp_path, *options, *KINDS["hidden"], *teacher)


def test_networks_of_a_teacher_are_needed_as_long_as_its_students(tmp_path):
    other = setting_of(tmp_path, "density=0.5", "seed=1", f"store={tmp_path}/store")
    rows = app.run(other, tmp_path / "other", "other")
    run(tmp_path, *LOGITS, "density=0.3", f"store={tmp_path}/store", f"distillation.teacher={tmp_path}/other")
    entries = {e.artefact.key: e for e in inventory(Store(tmp_path / "store"), tmp_path / "run")}
    assert all(entries[key].needed for key in rows[1]["network"].split("+"))  # though nobody asks the other run's rows
    assert any("Logits" in e.words for e in entries.values())


def test_controls_have_the_tickets_teacher(tmp_path):
    options = ("density=0.3", "controls=[reinit,shuffle,random,small_dense]")
    plain, rows = run(tmp_path, *options), run(tmp_path, *options, *LOGITS)
    assert [row["control"] for row in rows] == [row["control"] for row in plain]
    assert rows[0]["network"] == plain[0]["network"]
    for one, other in zip(rows[1:], plain[1:], strict=True):
        assert one["network"].partition("+")[0] != other["network"].partition("+")[0]
        identity = json.loads(
            (tmp_path / "store/recovered" / one["network"].partition("+")[0] / "manifest.json").read_text()
        )["identity"]
        assert identity["teacher"] == rows[0]["network"]
        assert identity["distillation"]["temperature"] == 2
    with pytest.raises(ConfigurationError, match=r"controls=small_dense: .* fc1 gives \[8\] .* or leave this control"):
        run(tmp_path, *options, *KINDS["hidden"])


# Identity


def test_what_it_depends_on_is_in_the_key_and_nothing_else(tmp_path):
    def key(*more: str) -> str:
        return run(tmp_path, "density=0.3", *LOGITS, *more)[1]["network"]

    keys = [key(), key("distillation.alpha=0.4"), key("distillation.temperature=3"), key("optimizer.lr=0.01")]
    keys += [run(tmp_path, "density=0.3")[1]["network"], run(tmp_path, "density=0.3", *KINDS["hidden"])[1]["network"]]
    assert len(set(keys)) == len(keys)
    assert key("controls=[shuffle]", "checkpoint.steps=7") == keys[0]


def test_losses_count_where_they_are_used(tmp_path, monkeypatch):
    """Edits of a loss of one's own: a comment changes nothing, another loss the distilled recovery alone."""
    text = (
        "from dataclasses import dataclass\nfrom experiments.distillation import DistillationLoss\n"
        "@dataclass(frozen=True, kw_only=True)\nclass Mine(DistillationLoss):\n"
        "    power: int = 2\n"
        "    def __call__(self, student, teacher, task, batch):\n"
        "        return (student.outputs - teacher.outputs).abs().pow(self.power).sum()\n"
    )
    name, found = own(tmp_path, monkeypatch, text), []
    options = ("density=0.3", *LOGITS, f"distillation._target_={name}.Mine", "~distillation.temperature")
    for edited in (text, text.replace("class", "# why\nclass", 1).replace("# why\nclass", "class"), text + "# more\n",
                   text.replace(".sum()", ".mean()")):  # fmt: skip
        own(tmp_path, monkeypatch, edited)
        found.append([row["network"] for row in run(tmp_path, *options)])
    assert found[0] == found[1] == found[2]
    assert found[3][0] == found[0][0]
    assert found[3][1] != found[0][1]


def test_recoveries_without_a_teacher_do_not_depend_on_the_code_of_distillations(tmp_path, monkeypatch):
    run(tmp_path, "density=0.3", "controls=[reinit]")
    for place in (tmp_path / "store" / "recovered").iterdir():
        identity = json.loads((place / "manifest.json").read_text())["identity"]
        assert "teacher" not in identity
    without = sources.reached(["experiments.running.stages.recovery"], ["experiments.running.stages.teaching"])
    assert not [name for name in without if name.startswith(("experiments.distillation", "experiments.running.models"))]
    reached = sources.reached(["experiments.running.stages.teaching"])
    assert {"experiments.distillation.objective", "experiments.distillation.passes"} <= set(reached)


# Refused by name


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["distillation.alpha=1.5"], r"distillation.alpha=1.5: give a share of the loss, in \[0, 1\]"),
        (["distillation.alpha=true"], "distillation.alpha=True: give a share"),
        (["distillation.alpha=null"], "distillation.alpha=None: give a share"),
        (["distillation.level=0"], "distillation.level: is of a run that distillation.teacher names: leave it null"),
        (["distillation.teacher=runs/x", "distillation.level=-1"], "distillation.level=-1: give the number of a row"),
        (["distillation.teacher=null"], "distillation.teacher=None: give dense, or the folder of a run"),
        (["~distillation.teacher"], "distillation.teacher: is missing"),
        (["+distillation.temperatur=2"], "distillation.temperatur: .* has no such option; it takes temperature"),
        (["recovery.epochs=0"], "distillation: nothing is trained after the pruning: set recovery.epochs, or"),
    ],
    ids=str,
)
def test_configurations_that_mean_nothing_are_refused(overrides, said):
    with pytest.raises(ConfigurationError, match=said):
        configured("distillation=logits", *overrides)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["distillation=hidden", "distillation.layers=[fc9]"], "distillation.layers: there is no 'fc9'"),
        (["distillation=attention"], "MLP has no attention|Sequential has no attention"),
        (["distillation=logits", "distillation.temperature=0"], "distillation.temperature=0: give a number above 0"),
        (["distillation=logits", "distillation._target_=torch.nn.Identity", "~distillation.temperature"],
         "makes a Identity: give a subclass of experiments.distillation.DistillationLoss"),
        (["distillation=logits", "distillation.teacher=nowhere"], "nowhere"),
        (["distillation=logits", "data=diabetes"], "outputs of task=regression are no logits: set it to 1"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_distilled_is_refused_before_any_training(tmp_path, overrides, said):
    with pytest.raises((ConfigurationError, ModelError, app.PruningError), match=said):
        run(tmp_path, "density=0.3", *overrides)
    assert not (tmp_path / "store" / "dense").exists()


def test_a_teacher_that_diverged_is_refused(tmp_path):
    options = ("density=0.3", "optimizer=sgd", "optimizer.lr=1e6", "scorer=random", *LOGITS)
    with pytest.raises(ModelError, match=r"the training of the dense network diverged at step .*: lower optimizer.lr"):
        run(tmp_path, *options)


# The experiment


def test_the_experiment_at_its_smallest(tmp_path, monkeypatch):
    """Its sweep in this process, one length of the recovery and one setting beside the plain one."""
    small = ("data=digits", "model=mlp", "model.hidden=[16,12]", "training.epochs=1", "density=0.3")
    places = (f"store={tmp_path}/store", f"folder={tmp_path}/runs")
    sweep = ("recovery.epochs=1", "distillation=none,{alpha: 0.5, temperature: 2}", "seed=0,1")
    experiment = ("experiment=distillation", "hydra.launcher.n_jobs=1")
    monkeypatch.setattr("sys.argv", ["run", *experiment, *small, *places, *sweep])
    assert app.main() == 0
    frame = records.read(tmp_path / "runs")
    frame = frame[frame["level"] == 1]
    assert len(frame) == 4
    assert sorted(str(config["distillation"].get("temperature")) for config in frame["config"]) == [
        "2",
        "2",
        "None",
        "None",
    ]
    assert frame.groupby("seed")["dense"].nunique().eq(1).all()
