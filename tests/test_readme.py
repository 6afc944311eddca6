"""The README's own words, run as written."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from experiments import records

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()


def blocks(section: str, language: str) -> list[str]:
    part = re.search(rf"^## {section}\n(.*?)(?=^## |\Z)", TEXT, re.DOTALL | re.MULTILINE)
    assert part, f"no section {section}"
    return re.findall(rf"^```{language}\n(.*?)^```", part[1], re.DOTALL | re.MULTILINE)


def written(folder: Path, section: str) -> None:
    """Its files, each under the name that its first line gives."""
    for block in (*blocks(section, "python"), *blocks(section, "yaml")):
        path = folder / block.splitlines()[0].removeprefix("# ")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block)


def shell(folder: Path, command: str, *more: str) -> subprocess.CompletedProcess:
    words = command.split()
    assert words[0] == "python"
    return subprocess.run(
        [sys.executable, *words[1:], *more],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("section", ["Your own scorer", "Your own model"])
def test_your_own(tmp_path, section):
    written(tmp_path, section)
    (command,) = blocks(section, "bash")
    done = shell(tmp_path, command.strip(), "training.epochs=1", "recovery.epochs=1", "density=0.2")
    assert done.returncode == 0, done.stderr
    (line,) = [row for _, row in records.read(tmp_path / "runs").iterrows() if row["level"] == 1]
    assert line["scorer"] == ("gradient_norm" if section == "Your own scorer" else "magnitude")
    assert line["model"] == ("lenet_300_100" if section == "Your own scorer" else "small")
    assert line["kept"] == round(0.2 * line["prunable"])


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


def test_in_your_own_training_loop(tmp_path):
    (code,) = blocks("In your own training loop", "python")
    (tmp_path / "loop.py").write_text(code)
    done = shell(tmp_path, "python loop.py")
    assert done.returncode == 0, done.stderr
    assert "0.weight" in done.stdout
    assert (tmp_path / "masks.safetensors").exists()


def test_the_table_of_choices_is_what_conf_holds():
    rows = dict(re.findall(r"^\| (`.*?`) \| (.*) \|$", TEXT, re.MULTILINE))
    for groups, options in rows.items():
        for group, part in zip(re.findall(r"`([a-z_]+)`", groups), options.split("; "), strict=False):
            if (ROOT / "conf" / group).is_dir():
                if group == "data":
                    part = options
                files = {path.stem for path in (ROOT / "conf" / group).glob("*.yaml")}
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
