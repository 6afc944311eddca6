"""What needs no extra works without all of them; what needs one says which in a line."""

import importlib
import re
import subprocess
from configparser import ConfigParser
from pathlib import Path

import pytest

from experiments import data, models, records
from experiments.configuration.targets import instantiate
from experiments.runtime.extras import EXTRAS, PLUGINS
from pruning.errors import PruningError
from tests.commands import command
from tests.experiments.hiding import hidden
from tests.experiments.running import ROOT, SMALL

SETUP = ConfigParser()
SETUP.read(ROOT / "setup.cfg")

BARE = """
import runpy, sys
import hydra_plugins
from tests.commands import command
from tests.experiments.hiding import hidden
hydra_plugins.__path__ = [{plugins!r}]
module, *sys.argv[1:] = {words!r}
with hidden({packages!r}):
    runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def bare(folder: Path, *words: str) -> subprocess.CompletedProcess:
    """A command where nothing but the base is installed, as far as it can see."""
    plugins = folder / "plugins"
    plugins.mkdir(exist_ok=True)
    ours = Path(importlib.import_module("hydra_plugins.hydra_joblib_launcher").__path__[0])
    if not (plugins / ours.name).exists():
        (plugins / ours.name).symlink_to(ours)
    code = BARE.format(plugins=str(plugins), words=list(words), packages=[*EXTRAS])
    return command(folder, "-c", code, libraries=("torch",))


def test_extras_are_those_of_setup():
    named = {
        re.split(r">=", line)[0]: extra
        for extra, lines in SETUP["options.extras_require"].items()
        for line in lines.split()
        if extra != "dev"
    }
    assert named == EXTRAS
    assert set(PLUGINS.values()) <= {name for name, extra in EXTRAS.items() if extra == "sweeps"}


NEEDS = {
    "torchvision": lambda: models.torchvision_model("resnet18", [3, 32, 32], 10),
    "timm": lambda: models.timm_model("resnet18", [3, 32, 32], 10),
    "transformers": lambda: models.transformers_model(config={"model_type": "bert"}),
    "tensorboard": lambda: instantiate("tracker", {"_target_": "experiments.tracking.TensorBoard", "folder": "x"}),
    "wandb": lambda: instantiate("tracker", {"_target_": "experiments.tracking.Wandb"}),
}


@pytest.mark.parametrize("package", NEEDS)
def test_a_missing_package_is_a_line_that_names_its_extra(package):
    with hidden([package]), pytest.raises(PruningError) as error:
        NEEDS[package]()
    wanted = f"'sparse-subnetworks[{EXTRAS[package]}]'" if package in EXTRAS else package
    assert str(error.value).endswith(f"{package} is not installed: pip install {wanted}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "cifar100"])
def test_data_of_torchvision_name_its_extra_and_what_does_without(name, tmp_path):
    with hidden(["torchvision"]), pytest.raises(PruningError) as error:
        getattr(data, name)(folder=str(tmp_path))
    want = f"{name}: torchvision is not installed: pip install 'sparse-subnetworks[vision]', or use data=mnist5k"
    assert str(error.value) == want


def test_a_gguf_file_needs_its_package(tmp_path):
    pytest.importorskip("transformers")
    with hidden(["gguf"]), pytest.raises(PruningError) as error:
        models.transformers_model(name=str(tmp_path), gguf_file="model.gguf")
    assert str(error.value) == "gguf is not installed: pip install 'sparse-subnetworks[text]'"


@pytest.mark.parametrize(
    ("words", "want"),
    [
        (("hydra/launcher=submitit_slurm", "-m"), "hydra/launcher=submitit_slurm: hydra-submitit-launcher"),
        (("experiment=search_recovery",), "hydra/sweeper=optuna: hydra-optuna-sweeper"),
    ],
)
def test_a_launcher_or_sweeper_that_is_lacking_names_its_extra(tmp_path, words, want):
    done = bare(tmp_path, "experiments.run", *words)
    assert done.returncode == 1
    assert done.stderr == f"error: {want} is not installed: pip install 'sparse-subnetworks[sweeps]'\n"
    assert not (tmp_path / "runs").exists()


def test_a_tracker_that_is_lacking_ends_a_run_before_it_begins(tmp_path):
    done = bare(tmp_path, "experiments.run", *SMALL, "tracker=tensorboard")
    assert done.returncode == 1
    assert done.stderr == "error: tensorboard is not installed: pip install 'sparse-subnetworks[tracking]'\n"
    assert not (tmp_path / "runs" / "store").exists()


@pytest.mark.parametrize(("benchmark", "extra"), [("structure", "vision"), ("lottery", "vision")])
def test_a_benchmark_names_its_extra(tmp_path, benchmark, extra):
    done = bare(tmp_path, f"experiments.benchmarks.{benchmark}")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.endswith(f" is not installed: pip install 'sparse-subnetworks[{extra}]'")


def test_the_base_is_enough_for_a_curve(tmp_path):
    sweep = ("scorer=magnitude,snip", "seed=0,1", "hydra/launcher=joblib", "hydra.launcher.n_jobs=1")
    done = bare(tmp_path, "experiments.run", "-m", *SMALL, *sweep, "density=[0.5,0.1]", "name=curve")
    assert done.returncode == 0, done.stderr
    assert len(records.read(tmp_path / "runs" / "curve")) == 4 * 3
    done = bare(tmp_path, "experiments.report", "runs/curve")
    assert done.returncode == 0, done.stderr
    for name in ("report.html", "accuracy_compression.png"):
        assert (tmp_path / "runs" / "curve" / name).stat().st_size > 10_000
