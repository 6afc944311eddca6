"""The Hydra app from end to end, on small digits: rows, resuming, sharing, order of operations, and users' mistakes."""

import shlex
import shutil
import subprocess
import sys
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir

from experiments import records
from experiments import run as app
from experiments.configuration import CONF, densities, validate
from experiments.configuration.targets import instantiate
from experiments.records.runs import states
from experiments.running import stages
from experiments.running.setting import Setting
from experiments.running.stages import trained
from experiments.store import Store
from experiments.store.identity import identity_of
from experiments.store.networks import Network, load
from experiments.training.batches import steps_per_epoch
from pruning.errors import AllocationError, ArtefactError, ConfigurationError, MaskError
from pruning.recovery import compensate
from tests import commands
from tests.experiments.running import ROOT, SMALL, composed, configured, own, run, setting_of, timeless


def exit_code() -> int:
    try:
        return app.main()
    except SystemExit as error:
        return error.code


def command(folder: Path, *overrides: str, flags: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    places = (f"folder={folder}/runs", f"store={folder}/store")
    return commands.command(ROOT, "-m", "experiments.run", *flags, *SMALL, *places, *overrides)


def test_one_shot_densities_branch_from_one_network_and_one_scoring(tmp_path, monkeypatch):
    calls = []
    score = stages.score
    monkeypatch.setattr(stages, "score", lambda setting, network: calls.append(network) or score(setting, network))
    rows = run(tmp_path, "density=[0.1,0.5]")
    assert len(calls) == 1
    assert [row["requested_density"] for row in rows] == [1.0, 0.5, 0.1]
    total = 64 * 16 + 16 * 12 + 12 * 10
    assert [row["kept"] for row in rows] == [total, round(0.5 * total), round(0.1 * total)]
    assert [row["prunable"] for row in rows] == [total] * 3
    assert [row["parameters"] - row["nonzero"] for row in rows] == [0, total - rows[1]["kept"], total - rows[2]["kept"]]
    assert [row["macs"] for row in rows] == [row["kept"] for row in rows]
    assert rows[2]["bytes"] < rows[1]["bytes"] < rows[0]["bytes"]
    assert {row["dense"] for row in rows} == {rows[0]["network"]}


def test_rounds_are_monotone_scored_anew_and_land_exactly(tmp_path, monkeypatch):
    calls = []
    score = stages.score
    monkeypatch.setattr(stages, "score", lambda setting, network: calls.append(network.key) or score(setting, network))
    setting = Setting(configured("density=0.1", "schedule=exponential", "schedule.rounds=3"), Store(tmp_path))
    rows = app.run(setting, tmp_path / "run", "name")
    assert [row["round"] for row in rows] == [0, 1, 2, 3]
    assert len(set(calls)) == 3
    assert rows[-1]["requested_density"] == 0.1
    assert rows[-1]["kept"] == round(0.1 * rows[0]["prunable"])
    assert all(a["kept"] > b["kept"] for a, b in pairwise(rows))


def test_at_initialisation_the_initial_network_is_pruned_and_trained_in_full(tmp_path):
    rows = run(tmp_path, "scorer=snip", "density=0.3")
    assert rows[1]["when"] == "init"
    assert rows[1]["epochs"] == 2  # retrain is the default here, and as long as training
    assert configured("scorer=snip").recovery.learning_rate == "replay"
    assert rows[0]["epochs"] == 2
    setting = Setting(configured("scorer=snip", "density=0.3"), Store(tmp_path / "store"))
    start = stages.initial(setting)
    model = load(setting.new_model(), start)
    again = setting.new_model()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_a_repeated_run_makes_nothing_and_gives_the_same_rows(tmp_path, monkeypatch):
    first = run(tmp_path, "density=[0.5,0.1]")
    monkeypatch.setattr("experiments.running.stages.trained.train", None)
    monkeypatch.setattr(stages, "score", lambda *_: pytest.fail("scored again"))
    assert run(tmp_path, "density=[0.5,0.1]") == first


def test_an_interrupted_run_ends_like_an_uninterrupted_one(tmp_path, monkeypatch):
    whole = run(tmp_path / "whole", "density=[0.5,0.1]")
    train, count = trained.train, []

    def interrupted(*arguments, **options):
        count.append(1)
        if len(count) == 3:
            raise KeyboardInterrupt
        return train(*arguments, **options)

    monkeypatch.setattr(trained, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", "density=[0.5,0.1]")
    assert len(records.read(tmp_path / "cut" / "run")) == 2  # earlier results stay
    rows = run(tmp_path / "cut", "density=[0.5,0.1]")
    assert timeless(rows) == timeless(whole)


def test_scorers_share_the_dense_network_and_seeds_do_not(tmp_path):
    one = run(tmp_path, "scorer=magnitude", "density=0.5")
    two = run(tmp_path, "scorer=taylor", "density=0.5", "recovery.epochs=2")
    other = run(tmp_path, "scorer=magnitude", "density=0.5", "seed=1")
    assert one[0]["dense"] == two[0]["dense"] != other[0]["dense"]
    assert len(list((tmp_path / "store" / "dense").iterdir())) == 2


@pytest.mark.parametrize(
    "change",
    ["training.epochs=3", "training.clip=1.0", "optimizer.lr=0.01", "optimizer=sgd", "seed=3", "model.hidden=[8]",
     "learning_rate=cosine", "data.load.validation=0.2", "task.label_smoothing=0.1", "training.batch_size=30"],
)  # fmt: skip
def test_the_dense_network_depends_on_all_that_determines_it(tmp_path, change):
    plain = Setting(configured(), Store(tmp_path))
    changed = Setting(configured(change), Store(tmp_path))
    assert stages.dense(plain).key != stages.dense(changed).key


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Path:
    """A folder of many runs, which train the network that they all begin with once."""
    return tmp_path_factory.mktemp("shared")


@pytest.mark.parametrize("scorer", sorted(path.stem for path in (CONF / "scorer").glob("*.yaml")))
@pytest.mark.parametrize("rounds", [1, 2])
def test_every_scorer_runs_one_shot_and_in_rounds(shared, scorer, rounds):
    schedule = ["schedule=exponential", f"schedule.rounds={rounds}"]
    rows = run(shared, f"scorer={scorer}", "density=0.2", *schedule)
    wanted = round(0.2 * rows[0]["prunable"])
    if rows[0]["config"]["allocation"]["_target_"].endswith("PerRow"):  # which rounds row by row
        shapes = [line["shape"] for line in rows[0]["layers"]]
        wanted = sum(out * round(0.2 * inputs) for out, inputs in shapes)
    assert rows[-1]["kept"] == wanted


@pytest.mark.parametrize("granularity", sorted(path.stem for path in (CONF / "granularity").glob("*.yaml")))
@pytest.mark.parametrize("allocation", sorted(path.stem for path in (CONF / "allocation").glob("*.yaml")))
def test_every_granularity_and_allocation_composes(shared, granularity, allocation):
    density = "null" if allocation in ("n_of_m", "rates") else "0.5"
    overrides = [f"granularity={granularity}", f"allocation={allocation}", f"density={density}"]
    overrides += ["allocation.rate=0.5"] if allocation == "rates" else []
    if granularity in ("vectors", "channels") and allocation in ("per_row", "n_of_m", "owl"):
        with pytest.raises(AllocationError, match="two dimensions"):
            run(shared, *overrides)
        return
    if granularity != "channels" and allocation in ("macs", "parameters"):
        with pytest.raises(ConfigurationError, match="granularity=channels"):
            run(shared, *overrides)
        return
    rows = run(shared, *overrides)
    assert 0.0 < rows[-1]["density"] < 1.0
    if granularity == "weights":
        assert rows[-1]["density"] == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("path", sorted(CONF.rglob("*.yaml")), ids=lambda path: str(path.relative_to(CONF)))
def test_every_yaml_shows_its_command_which_composes(path):
    lines = path.read_text().splitlines()
    first = next(line for line in lines if not line.startswith("# @package"))
    assert first.startswith("# python -m experiments.run")
    group = path.parent.name
    if path.parent == CONF:
        return
    assert f"{group}={path.stem}" in first
    shown = first.removeprefix("# python -m experiments.run").partition("     ")[0]  # a remark follows the gap
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = validate(compose("config", overrides=shlex.split(shown)))
    if config.model.get("config"):  # not every class of transformers is there for every kind of model
        pytest.importorskip("transformers")
        instantiate("model", config.model)


def test_a_repetition_that_fails_loses_no_row_whatever_bookkeeping_it_has(tmp_path):
    rows = run(tmp_path, "density=[0.5,0.2,0.1]")
    with pytest.raises(ConfigurationError, match="objective=nope"):
        app.run(
            setting_of(tmp_path, "density=[0.5,0.2,0.1]", "objective=[nope]", "threads=1"), tmp_path / "run", "name"
        )
    assert records.read(tmp_path / "run")["test_accuracy"].tolist() == [row["test_accuracy"] for row in rows]


def test_the_log_of_a_run_has_what_the_library_says(tmp_path):
    done = command(tmp_path, "dynamic=auto_pruner", "granularity=channels", "density=0.5", "latency=null")
    assert done.returncode == 0, done.stderr
    (log,) = (tmp_path / "runs").rglob("run.log")
    (line,) = (line for line in log.read_text().splitlines() if "units stay" in line)
    assert "of 28 units stay, 14 were asked for" in line
    assert line in done.stdout


def test_the_sweep_command_and_its_repetition(tmp_path, monkeypatch):
    """First in this process, then in another one, where sets have another order."""
    overrides = ("scorer=magnitude,random", "seed=0,1", "density=[0.5,0.1]")
    places = (f"folder={tmp_path}/runs", f"store={tmp_path}/store")
    monkeypatch.setattr(sys, "argv", ["run", "-m", *SMALL, *places, *overrides])
    assert exit_code() == 0
    frame = records.read(tmp_path / "runs")
    assert len(frame) == 2 * 2 * 3
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*.safetensors")}
    again = command(tmp_path, *overrides, flags=("-m",))
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*.safetensors")} == files
    run_folder = next((tmp_path / "runs").glob("magnitude-*"))
    assert yaml.safe_load((run_folder / "config.yaml").read_text())["data"]["name"] == "digits"
    assert "test accuracy" in (run_folder / "run.log").read_text()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["density=0"], "density"),
        (["density=1.5"], "density"),
        (["density=[0.5,0.5]"], "twice"),
        (["density=half"], "half"),
        (["scorer=magnitud"], "magnitude"),
        (["scorre=magnitude"], "scorre"),
        (["+extra=1"], "extra"),
        (["scorer.form=abs"], "form"),
        (["+scorer.form=abs"], "form"),
        (["scorer=taylor", "scorer.form=cube"], "cube"),
        (["scorer._target_=pruning.scorers.nothing"], "nothing"),
        (["scorer._target_=no.such.module"], "no.such.module"),
        (["scorer=inverted", "scorer.scorer._target_=pruning.scorers.nothing"], "scorer.scorer._target_"),
        (["scorer=inverted", "+scorer.scorer.power=2"], "scorer.scorer.power"),
        (["scorer._target_=pruning.scorers.magnitude", "~scorer._partial_"], "_partial_: true"),
        (["recovery.epochs=-1"], "recovery.epochs"),
        (["training.batch_size=0"], "training.batch_size"),
        (["training.clip=-1"], "training.clip"),
        (["training.precision=int3"], "training.precision"),
        (["when=sometimes"], "when"),
        (["threads=none"], "threads"),
        (["schedule=linear", "schedule.rounds=0"], "rounds"),
        (["model=lenet_5"], "lenet_5"),
        (["include=nothing*"], "nothing*"),
        (["optimizer._target_=torch.optim.Adam", "optimizer.lr=-1"], "learning rate"),
        (["seed=one"], "seed"),
        (["allocation=n_of_m", "density=0.1"], "keeps 0.5 of all: set density=null"),
        (["allocation=n_of_m", "density=null", "allocation.n=2.5"], "whole numbers"),
        (["allocation=n_of_m", "density=null", "schedule=linear"], "one_shot"),
        (["allocation=densities", "allocation.densities=5"], "glob"),
        (["granularity=blocks", "granularity.shape=[2.5,2]"], "Blocks"),
        (["granularity=vectors", "granularity.dim=[0.5]"], "Vectors"),
        (["training.clip=nan"], "training.clip"),
        (["optimizer.lr=inf"], "optimizer.lr"),
        (["training.precision=fp16"], "fp16"),
        (["training.epochs=abc"], "abc"),
        (["include=[1]"], "include"),
        (["exclude=true"], "exclude"),
        (["scorer=null"], "NoneType"),
        (["compensate=scorer"], "compensate.hessian"),
        (["schedule=null"], "NoneType"),
        (["data.name=null"], "data.name"),
        (["data.augment=5"], "data.augment"),
        (["schedule=exponential", "schedule.rounds=null", "schedule.rate=abc"], "abc"),
        (["learning_rate=cosine", "learning_rate.final=abc"], "learning_rate.final"),
        (["optimizer._target_=torch.optim.LBFGS", "~optimizer.fused"], "closure"),
        (["data.classes=5"], "examples are of no class from 0 to 4, as example 0, which is of class 7"),
        (["model._target_=builtins.dict", "~model.hidden"], "not a module"),
        (["~data.classes"], "model.outputs: experiments.models.mlp needs it"),
        (["~data.classes", "+data.outputs=10"], "task.classes: experiments.tasks.Classification needs it"),
        (["task=regression"], "task=classification"),
        (["task.weights=[1,2]"], "give 10 numbers"),
        (["task._target_=builtins.dict"], "give a subclass of experiments.tasks.Task"),
        (["when=pretrained", "recovery=rewind"], "no training to replay"),
        (["when=pretrained", "controls=[reinit]"], "controls=reinit"),
        (["model=llama", "model.auto=AutoModelForCausalLm"], "AutoModelForCausalLM"),
        (["model=transformers"], "give either model.name"),
    ],
    ids=str,
)
def test_a_users_mistake_is_one_line(tmp_path, monkeypatch, capsys, overrides, said):
    """In this process, through the same `main` as the command line."""
    places = [f"folder={tmp_path}/runs", f"store={tmp_path}/store"]
    small = (
        SMALL
        if not overrides[0].startswith(("model=lenet_5", "model=transformers", "model=llama"))
        else SMALL[:1] + SMALL[3:]
    )
    monkeypatch.setattr(sys, "argv", ["run", *small, *places, *overrides])
    monkeypatch.chdir(ROOT)
    assert exit_code() == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert said in lines[0]


def test_a_damaged_artefact_is_made_again_and_said_in_one_line(tmp_path):
    assert command(tmp_path, "density=0.5").returncode == 0
    before = records.read(tmp_path / "runs")
    weights = next((tmp_path / "store" / "dense").rglob("weights.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-100])
    done = command(tmp_path, "density=[0.5,0.1]")
    assert done.returncode == 0, done.stderr
    (log,) = (path for path in (tmp_path / "runs").rglob("run.log") if str(weights) in path.read_text())
    assert log.read_text().count("made again") == 1
    after = records.read(log.parent)
    assert after["test_accuracy"].tolist()[:2] == before["test_accuracy"].tolist()
    assert len(after) == 3


def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("experiments.store.networks.save_file", full)
    places = [f"folder={tmp_path}/runs", f"store={tmp_path}/store"]
    monkeypatch.setattr(sys, "argv", ["run", *SMALL, *places])
    monkeypatch.chdir(ROOT)
    assert exit_code() == 1
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert "No space left on device" in error[0]
    assert not list((tmp_path / "store" / "unfinished").iterdir())
    assert not list((tmp_path / "store").rglob("manifest.json"))


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("scorer=snip", "density=[0.5,0.1]", "seed=3"),
        ("recovery.epochs=2", "recovery=rewind", "recovery.to=7it", "controls=[reinit]"),
        ("training.epochs=9", "experiment=lottery_ticket", "~data.classes", "+data.outputs=4"),
        ("dynamic=rigl", "++dynamic.every=5", "data={name: other}", "schedule=exponential", "schedule.rounds=2"),
    ],
    ids=str,
)
def test_configurations_of_these_tests_are_what_hydra_composes(overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        whole = compose("config", overrides=list(overrides))
    assert composed(*overrides) == whole


def test_densities_are_sorted_and_checked():
    assert densities([0.1, 0.5]) == (0.5, 0.1)
    assert densities(0.2) == (0.2,)
    assert densities(None) == (None,)
    with pytest.raises(ConfigurationError, match="at least one"):
        densities([])


def test_weights_that_come_back_in_training_are_never_evaluated(tmp_path, monkeypatch):
    """Whatever wrote to them: here the attachment, broken on purpose."""
    monkeypatch.setattr("pruning.attachment._Bits.mask_", lambda self, tensor: None)
    with pytest.raises(MaskError, match="came back"):
        run(tmp_path, "density=0.5")
    assert records.read(tmp_path / "run")["level"].tolist() == [0]


SCORER = """
def mine(evidence):
    return {name: SIGN * weight.detach().abs() for name, weight in evidence.parameters.items()}
"""


def test_an_edited_scorer_is_run_anew(tmp_path, monkeypatch):
    rows = {}
    for sign in ("-1", "+1"):
        name = own(tmp_path, monkeypatch, SCORER.replace("SIGN", sign))
        rows[sign] = run(tmp_path, "density=0.2", f"scorer._target_={name}.mine")[1]
    magnitude = run(tmp_path, "density=0.2")[1]
    assert rows["-1"]["test_accuracy"] != rows["+1"]["test_accuracy"]
    assert rows["+1"]["test_accuracy"] == magnitude["test_accuracy"]


def test_a_scorer_whose_imports_are_edited_is_run_anew(tmp_path, monkeypatch):
    """Directly and by a detour: own_code imports helper, which imports deeper."""
    found = []
    for sign in ("-1", "+1"):
        own(tmp_path, monkeypatch, f"SIGN = {sign}\n", "deeper")
        own(tmp_path, monkeypatch, "import deeper\ndef signed(w):\n    return deeper.SIGN * w\n", "helper")
        code = "def mine(evidence):\n    from helper import signed\n"
        code += "    return {n: signed(w.detach().abs()) for n, w in evidence.parameters.items()}\n"
        name = own(tmp_path, monkeypatch, code)
        found.append(run(tmp_path, "density=0.2", f"scorer._target_={name}.mine")[1]["test_accuracy"])
    assert found[0] != found[1] == run(tmp_path, "density=0.2")[1]["test_accuracy"]


def test_an_edited_model_is_trained_anew(tmp_path, monkeypatch):
    model = "from torch import nn\ndef net(shape, classes, **_):\n    return nn.Sequential(nn.Flatten(), {})\n"
    accuracies = []
    for layers in ("nn.Linear(64, 10)", "nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 10)"):
        name = own(tmp_path, monkeypatch, model.format(layers))
        accuracies.append(run(tmp_path, "density=0.5", f"model._target_={name}.net")[0]["prunable"])
    assert accuracies == [640, 64 * 20 + 200]


@pytest.mark.parametrize("noise", ["torch.rand_like(w)", "torch.from_numpy(np.random.rand(*w.shape))"])
def test_a_scorer_that_draws_random_numbers_is_repeatable(tmp_path, monkeypatch, noise):
    code = "import numpy as np\nimport torch\ndef mine(evidence):\n"
    code += f"    return {{n: {noise} for n, w in evidence.parameters.items()}}\n"
    name = own(tmp_path, monkeypatch, code)
    found = []
    for folder in ("one", "two"):
        torch.manual_seed(len(found))
        torch.rand(len(found))
        found.append(timeless(run(tmp_path / folder, "density=0.1", f"scorer._target_={name}.mine"))[1])
    assert found[0]["network"] == found[1]["network"]
    assert found[0]["test_loss"] == found[1]["test_loss"]


def test_dropout_while_scoring_is_repeatable(tmp_path, monkeypatch):
    code = "from torch import nn\ndef net(shape, classes, **_):\n"
    code += "    return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, classes))\n"
    name = own(tmp_path, monkeypatch, code, "dropped")
    options = ("scorer=snip", "density=0.1", f"model._target_={name}.net")
    one, two = (timeless(run(tmp_path / folder, *options)) for folder in ("one", "two"))
    assert one == two


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ("{n: w.abs() for n, w in list(p.items())[1:]}", "no score for fc1.weight"),
        ("{**p, 'fc1.bias': p['fc1.weight']}", "fc1.bias"),
        ("{n: torch.rand(3, 3) for n in p}", "shape [3, 3]"),
        ("[w for w in p.values()]", "list"),
        ("None", "NoneType"),
        ("{n: w.numpy() for n, w in p.items()}", "ndarray"),
        ("{n: w.to(torch.complex64) for n, w in p.items()}", "complex"),
        ("{n: w / 0 for n, w in p.items()}", "NaN or infinite"),
        ("1 / 0", "ZeroDivisionError"),
    ],
)
def test_a_wrong_scorer_is_named_and_its_scores_are_never_kept(tmp_path, monkeypatch, capsys, returned, said):
    code = "import torch\ndef mine(evidence):\n"
    code += f"    p = {{n: w.detach() for n, w in evidence.parameters.items()}}\n    return {returned}\n"
    name = own(tmp_path, monkeypatch, code, f"wrong_{abs(hash(returned))}")
    places = [f"folder={tmp_path}/runs", f"store={tmp_path}/store"]
    monkeypatch.setattr(sys, "argv", ["run", *SMALL, *places, f"scorer._target_={name}.mine", "density=0.5"])
    monkeypatch.chdir(ROOT)
    assert exit_code() == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert said in line
    assert not (tmp_path / "store" / "masks").exists()
    if "ZeroDivisionError" in said:
        assert f"{name}.py" in line
        assert "Traceback" in next((tmp_path / "runs").rglob("run.log")).read_text()


def test_a_repetition_that_fails_loses_no_row(tmp_path, monkeypatch):
    run(tmp_path, "density=[0.5,0.2]")
    before = (tmp_path / "run" / records.FILE).read_text()
    shutil.rmtree(tmp_path / "store" / "recovered")

    def refused(*_, **__):
        raise ArtefactError("nothing can be trained")

    monkeypatch.setattr("experiments.running.stages.trained.train", refused)
    with pytest.raises(ArtefactError):
        run(tmp_path, "density=[0.5,0.2]")
    assert (tmp_path / "run" / records.FILE).read_text() == before


def test_a_job_that_fails_leaves_the_others_of_its_sweep(tmp_path):
    done = command(tmp_path, "allocation.minimum=100000,0", "density=0.5", flags=("-m",))
    assert done.returncode == 1
    assert done.stderr.splitlines()[0].startswith("error: ")
    assert "minimum=100000" in done.stderr
    assert "Traceback" not in done.stderr
    levels = records.read(tmp_path / "runs").groupby("run")["level"].max()
    assert sorted(levels) == [0, 1]
    found = {state.state: state for state in states(tmp_path / "runs")}
    assert set(found) == {"failed", "done"}
    told = done.stderr.splitlines()
    assert told[-1].startswith(f"error: 1 of the runs in {tmp_path}/runs failed")
    assert told[-2].strip() == found["failed"].command
    words = shlex.split(found["failed"].command)
    assert words[:3] == ["python", "-m", "experiments.run"]
    assert "allocation.minimum=100000" in words
    alone = commands.command(ROOT, *words[1:])  # it repeats that run, and its failure
    assert (alone.returncode, len(alone.stderr.splitlines())) == (1, 1)
    assert found["failed"].reason in alone.stderr


def test_fine_tuning_in_rounds_goes_on_in_the_order_of_the_data(tmp_path, monkeypatch):
    began, train = [], trained.train

    def watched(model, examples, validation, recipe, *rest, **options):
        epoch = steps_per_epoch(len(examples), recipe.batch_size)
        began.append((recipe.steps.start // epoch, len(recipe.steps) // epoch))
        return train(model, examples, validation, recipe, *rest, **options)

    monkeypatch.setattr(trained, "train", watched)
    rows = run(tmp_path, "schedule=exponential", "schedule.rounds=3", "density=0.2")
    assert began == [(0, 2), (2, 1), (3, 1), (4, 1)]
    assert [row["total_epochs"] for row in rows] == [2, 3, 4, 5]
    assert [row["epochs"] for row in rows] == [2, 1, 1, 1]


def test_what_was_never_trained_is_fine_tuned_from_the_first_epoch(tmp_path):
    """However long a dense network would train: one identity, one result."""
    options = ("when=init", "recovery=finetune", "density=0.1")
    short = run(tmp_path / "a", *options, "training.epochs=1")[1]
    long = run(tmp_path / "a", *options, "training.epochs=3")[1]
    alone = run(tmp_path / "b", *options, "training.epochs=3")[1]
    assert short["network"] == long["network"] == alone["network"]
    assert short["test_loss"] == long["test_loss"] == alone["test_loss"]


def test_where_the_data_lie_does_not_matter(tmp_path):
    setting = Setting(configured("data=mnist", "data.load.folder=here", "model=mlp"), Store(tmp_path))
    other = Setting(configured("data=mnist", "data.load.folder=there", "model=mlp"), Store(tmp_path))
    assert identity_of(setting.config.as_dict(), "data.load") == identity_of(other.config.as_dict(), "data.load")


def test_tied_weights_are_stored_once_and_come_back(tmp_path, monkeypatch):
    code = """
from torch import nn
def net(shape, classes, **_):
    one, two = nn.Linear(64, 64), nn.Linear(64, 64)
    two.weight = one.weight
    return nn.Sequential(nn.Flatten(), one, nn.ReLU(), two, nn.Linear(64, classes))
"""
    name = own(tmp_path, monkeypatch, code, "tied_model")
    rows = run(tmp_path, "density=0.02", f"model._target_={name}.net")
    assert rows[1]["prunable"] == 64 * 64 + 640
    biases = 64 + 64 + 10
    assert rows[0]["bytes"] < 4 * (64 * 64 + 640 + biases) + 1000
    assert rows[1]["bytes"] < 4 * (rows[1]["kept"] + biases) + rows[1]["prunable"] / 8 + 2500
    again = run(tmp_path, "density=0.02", f"model._target_={name}.net")
    assert timeless(again) == timeless(rows)


def test_a_damping_that_grew_is_a_line_of_the_log(tmp_path, monkeypatch, capsys):
    options = ["scorer=obs", "scorer.hessian.damping=0", "density=0.5"]
    monkeypatch.setattr("sys.argv", ["run", *SMALL, *options, f"folder={tmp_path}/runs", f"store={tmp_path}/store"])
    assert exit_code() == 0
    (log,) = (tmp_path / "runs").glob("*/run.log")
    lines = [line for line in log.read_text().splitlines() if "its damping grew to" in line]
    assert lines
    assert all("weight: H is singular" in line for line in lines)
    assert "DampingWarning" not in capsys.readouterr().err


def test_compensation_follows_any_scorer_and_is_its_own_artefact(tmp_path):
    """Without training: what stays has moved with `compensate`, and has not without; masks are the same ones."""
    plain, moved = (
        run(tmp_path, "scorer=magnitude", "density=0.5", "recovery.epochs=0", f"compensate={kind}")
        for kind in ("none", "layer")
    )
    assert plain[-1]["kept"] == moved[-1]["kept"]
    assert plain[-1]["network"].split("+")[1] == moved[-1]["network"].split("+")[1]
    assert plain[-1]["network"] != moved[-1]["network"]
    assert moved[-1]["validation_loss"] != plain[-1]["validation_loss"]
    setting = Setting(
        configured("scorer=magnitude", "recovery.epochs=0", "compensate=layer"), Store(tmp_path / "store")
    )
    network = stages.prune(setting, stages.dense(setting), 0.5, partial(stages.score, setting))
    recovered = stages.recover(setting, network, 0.5)
    before, after = (load(setting.new_model(), Network(n.weights)) for n in (network, recovered))
    masks = recovered.load_masks()
    compensate(stages.evidence_of(setting, before, None), masks)
    for name, weight in before.state_dict().items():
        torch.testing.assert_close(after.state_dict()[name], weight, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["block", "full"])
def test_other_compensations_run(tmp_path, kind):
    rows = run(tmp_path, "scorer=taylor", "density=0.3", f"compensate={kind}")
    assert rows[-1]["kept"] == round(0.3 * rows[0]["prunable"])
    assert rows[-1]["config"]["compensate"]["hessian"]["_target_"].endswith(f"{kind}_hessian")
