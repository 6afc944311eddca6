"""What `pip install` brings is all that runs, and nothing else."""

import shutil
import subprocess
import sys
from importlib.metadata import PathDistribution
from pathlib import Path
from zipfile import ZipFile

import pytest

from experiments import records
from experiments.compare import main as compare
from experiments.report import main as report
from experiments.run import command as run
from experiments.status import main as status
from experiments.store.__main__ import main as store
from tests.commands import command

ROOT = Path(__file__).parents[1]
PACKAGES = ("experiments", "pruning")
READ = ("py.typed", "monks_train.csv", "report.html.j2", "page.css", "page.js")
COMMANDS = {
    "sparse-run": run,
    "sparse-report": report,
    "sparse-compare": compare,
    "sparse-status": status,
    "sparse-store": store,
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy: a build leaves its folders beside the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in (*PACKAGES, "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    pip(folder, "wheel", "--no-build-isolation", "--wheel-dir", "dist", ".")
    (found,) = (folder / "dist").glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """A folder with the wheel alone in it; all else comes from the environment of the tests."""
    folder = tmp_path_factory.mktemp("installed")
    pip(folder, "install", "--target", str(folder), str(wheel))
    return folder


def pip(folder: Path, *words: str) -> None:
    command = [sys.executable, "-m", "pip", words[0], "--quiet", "--no-deps", "--no-index", *words[1:]]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def call(installed: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return command(folder, *words, path=installed)


def test_a_wheel_holds_code_and_what_it_reads_and_nothing_else(wheel):
    names = set(ZipFile(wheel).namelist())
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file()]
    wanted = {
        str(path.relative_to(ROOT))
        for path in files
        if (path.suffix in (".py", ".yaml") or path.name in READ) and "__pycache__" not in path.parts
    }
    assert {name for name in names if ".dist-info/" not in name} == wanted
    assert {"experiments/conf/config.yaml", *(f"experiments/results/page/{name}" for name in READ[2:])} <= wanted


def test_commands_are_the_mains_of_their_modules(installed):
    (place,) = installed.glob("*.dist-info")
    points = PathDistribution(place).entry_points
    assert {point.name: point.load() for point in points if point.group == "console_scripts"} == COMMANDS


def test_an_experiment_in_an_empty_folder(installed, tmp_path):
    """With a scorer of that folder, as with `python -m`; then its report, and its state."""
    (tmp_path / "mine.py").write_text(
        "def largest(evidence):\n    return {n: p.abs() for n, p in evidence.parameters.items()}\n"
    )
    where = call(
        installed, tmp_path, "-c", "import experiments, pruning; print(experiments.__file__, pruning.__file__)"
    )
    assert all(Path(name).is_relative_to(installed) for name in where.stdout.split())
    small = ("data=digits", "model=mlp", "model.hidden=[8]", "training.epochs=1", "recovery.epochs=0", "density=0.5")
    sparse = {name: str(installed / "bin" / name) for name in COMMANDS}
    done = call(installed, tmp_path, sparse["sparse-run"], *small, "scorer._target_=mine.largest", "name=first")
    assert done.returncode == 0, done.stderr
    rows = records.read(tmp_path / "runs" / "first")
    assert rows["scorer"].tolist() == ["largest"] * 2
    assert rows["kept"].tolist() == [rows["prunable"][0], round(0.5 * rows["prunable"][0])]
    done = call(installed, tmp_path, sparse["sparse-report"], "runs/first")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "first" / "report.html").stat().st_size > 10_000
    done = call(installed, tmp_path, sparse["sparse-status"], "runs/first")
    assert (done.returncode, "1 done" in done.stdout) == (0, True), done.stderr


def test_a_mistake_has_the_same_line_and_code_under_both_names(installed, tmp_path):
    script = str(installed / "bin" / "sparse-run")
    found = [call(installed, tmp_path, *name, "density=2") for name in ((script,), ("-m", "experiments.run"))]
    assert {done.returncode for done in found} == {1}
    (line,) = {done.stderr.splitlines()[-1] for done in found}
    assert line.startswith("error: density: 2 is no density")
