"""A little of everything, for versions of Python and of libraries that the whole suite does not run on."""

import importlib
import json
import pkgutil
from pathlib import Path

import pytest

import experiments
import pruning
from experiments import records
from tests.commands import command

MODULES = sorted(
    module.name
    for package in (pruning, experiments)
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    if not module.name.endswith("__main__")
)


@pytest.mark.parametrize("name", MODULES)
def test_it_can_be_imported(name):
    importlib.import_module(name)


def output(folder: Path, *words: str) -> str:
    done = command(folder, "-m", *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_application_from_a_sweep_to_its_report(tmp_path):
    """Checkpoints, rewinding to a point with its optimizer, controls, a tracker; then what reads the rows."""
    small = ("data=digits", "model=mlp", "model.hidden=[16]", "training.epochs=2", "name=smoke", "tracker=tensorboard")
    often = ("checkpoint.steps=5", "checkpoint.seconds=null")
    rewound = ("recovery=rewind", "recovery.to=7it", "controls=[reinit]", "density=[0.5,0.2]", "optimizer=adamw")
    sweep = ("scorer=magnitude,snip", "seed=0,1")
    output(tmp_path, "experiments.run", "-m", *small, *often, *rewound, *sweep)
    frame = records.read(tmp_path / "runs" / "smoke")
    assert len(frame) == 4 * (1 + 2 * 2)
    assert frame[frame["level"] == 1]["density"].round(2).eq(0.5).all()
    output(tmp_path, "experiments.report", "runs/smoke")
    for name in ("report.html", "accuracy_compression.png"):
        assert (tmp_path / "runs" / "smoke" / name).stat().st_size > 10_000
    assert "snip against magnitude" in output(tmp_path, "experiments.compare", "runs/smoke", "--baseline", "magnitude")
    assert "0 damaged" in output(tmp_path, "experiments.store", "verify")
    assert json.loads(next((tmp_path / "runs" / "smoke").rglob("state.json")).read_text())["state"] == "done"
