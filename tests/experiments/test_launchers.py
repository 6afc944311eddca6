"""One sweep through every launcher: the same rows; and what happens to the others when one of its jobs fails."""

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig

from experiments import records
from experiments import run as app
from experiments.configuration import CONF
from experiments.records.runs import record_state, states
from experiments.running import jobs
from experiments.running.jobs import JobError, objectives
from pruning.errors import ConfigurationError, PruningError
from tests.experiments.running import ROOT, SMALL, setting_of

SWEEP = ("scorer=magnitude,random", "seed=0", "density=[0.5,0.1]")
LAUNCHERS = {
    "basic": (),
    "joblib": ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2"),
    "submitit": ("hydra/launcher=submitit_local",),
    "ray": (
        "hydra/launcher=ray",
        "+hydra.launcher.ray.init.num_cpus=2",
        "+hydra.launcher.ray.init.include_dashboard=false",
    ),
}


def launched(folder: Path, *overrides: str) -> subprocess.CompletedProcess:
    places = (f"folder={folder}/runs", f"store={folder}/store")
    return subprocess.run(
        [sys.executable, "-m", "experiments.run", "-m", *SMALL, *places, *overrides],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"},
    )


def timeless(folder: Path) -> pd.DataFrame:
    frame = records.read(folder / "runs").sort_values(["run", "level"], ignore_index=True)
    configs = [{k: v for k, v in config.items() if k not in ("folder", "store")} for config in frame.pop("config")]
    return frame.drop(columns=["seconds", "total_seconds"]).assign(config=configs)


@pytest.fixture(scope="module")
def basic(tmp_path_factory) -> pd.DataFrame:
    folder = tmp_path_factory.mktemp("basic")
    done = launched(folder, *SWEEP)
    assert done.returncode == 0, done.stderr
    return timeless(folder)


@pytest.mark.parametrize("launcher", [name for name in LAUNCHERS if name != "basic"])
def test_every_launcher_makes_the_same_rows(launcher, basic, tmp_path):
    done = launched(tmp_path, *SWEEP, *LAUNCHERS[launcher])
    assert done.returncode == 0, done.stderr
    pd.testing.assert_frame_equal(timeless(tmp_path), basic)
    assert [state.state for state in states(tmp_path / "runs")] == ["done", "done"]


def test_a_job_that_fails_in_another_process_leaves_the_others(tmp_path):
    sweep = ("allocation.minimum=100000,0", "density=0.5", *LAUNCHERS["joblib"])
    done = launched(tmp_path, *sweep)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr.splitlines()[-1]
    assert sorted(records.read(tmp_path / "runs").groupby("run")["level"].max()) == [0, 1]
    found = {state.state: state for state in states(tmp_path / "runs")}
    assert set(found) == {"failed", "done"}
    told = done.stderr.splitlines()
    assert found["failed"].command in told[-2]
    assert "minimum=100000" in told[-3]
    assert told[-1].startswith("error: 1 of the runs in ")


def test_a_search_sees_validation_and_outlives_its_failures(tmp_path):
    """Random trials, of which the seed draws all three choices; allocation.minimum=100000 cannot be met."""
    options = (
        "hydra/sweeper=optuna",
        "hydra/sweeper/sampler=random",
        "hydra.sweeper.sampler.seed=1",
        "hydra.sweeper.n_trials=4",
        "hydra.sweeper.n_jobs=1",
    )
    options += ("hydra.sweeper.direction=maximize", "hydra.sweeper.max_failure_rate=1.0")
    sweep = ("objective=[validation_accuracy]", "density=0.5", "allocation.minimum=choice(0,1,100000)")
    done = launched(tmp_path, *options, *sweep)
    assert done.returncode == 0, done.stderr
    assert sorted(state.state for state in states(tmp_path / "runs")) == ["done", "done", "failed"]
    best = yaml.safe_load((tmp_path / "runs" / "optimization_results.yaml").read_text())
    frame = records.read(tmp_path / "runs")
    assert best["best_value"] == frame.query("level == 1")["validation_accuracy"].max()


@pytest.mark.parametrize(
    ("objective", "direction", "fault"),
    [
        ("[accuracy]", "minimize", "objective=accuracy: .* set hydra.sweeper.direction=maximize"),
        ("[macs,loss]", "[minimize,maximize]", "objective=loss: .* set hydra.sweeper.direction=minimize"),
        ("[macs,loss]", "minimize", r"objective: 2 columns, but hydra.sweeper.direction=\['minimize'\]: give as many"),
    ],
)
def test_a_search_for_the_worst_is_refused_before_any_training(tmp_path, objective, direction, fault):
    """By the settings that Optuna's sweeper gives to its jobs."""
    search = ("hydra/sweeper=optuna", f"hydra.sweeper.direction={direction}", f"objective={objective}", "density=[0.5]")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        whole = compose("config", overrides=[*SMALL, *search], return_hydra_config=True)
    HydraConfig.instance().set_config(whole)
    try:
        setting = setting_of(tmp_path, *search[2:])
        with pytest.raises(ConfigurationError, match=fault):
            app.run(setting, tmp_path / "run", "run")
    finally:
        HydraConfig.instance().cfg = None
    assert not (tmp_path / "store").exists()


def test_a_search_whose_trials_all_fail_says_so(monkeypatch, capsys):
    def search(*_, **__):
        raise ValueError("No trials are completed yet.")

    monkeypatch.setattr("hydra.main", lambda **_: lambda _: search)
    assert app.main() == 1
    assert capsys.readouterr().err == (
        "error: every trial of this search failed, as reported above: fix and repeat it\n"
    )


ROWS = [
    {"level": 0, "a": 1, "b": 2.5, "c": "x", "control": None},
    {"level": 1, "a": 3, "b": 4.5, "c": None, "control": None},
]
ROWS += [{"level": 1, "a": 9, "b": 9, "c": None, "control": "reinit"}]


def test_objectives_are_of_the_last_ticket():
    assert objectives(ROWS, ["a"]) == 3.0
    assert objectives(ROWS, ["b", "a"]) == (4.5, 3.0)
    assert objectives(ROWS, []) is None


def test_an_objective_of_a_network_that_diverged_says_so():
    with pytest.raises(
        ConfigurationError, match="objective=c: is None in the last row, as training diverged at step 7;"
    ):
        objectives([ROWS[1] | {"diverged": 7}], ["c"])


@pytest.mark.parametrize("name", ["c", "missing", "control"])
def test_an_objective_that_is_no_number_is_named(name):
    with pytest.raises(ConfigurationError, match=rf"objective={name}: .* choose among level, a, b"):
        objectives(ROWS, [name])


def test_a_sweep_tells_its_own_failures_and_not_those_of_last_week(tmp_path, capsys):
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        began = time.time()
        with pytest.raises(PruningError), record_state(tmp_path / name, f"python -m experiments.run name={name}"):
            raise PruningError("why")
    assert jobs.jobs_failed(JobError(str(tmp_path)), began) == 1
    told = capsys.readouterr().err
    assert "name=new" in told
    assert "name=old" not in told
    assert "error: 1 of the runs in" in told


def test_the_command_of_a_job_of_an_experiment_that_is_a_sweep_repeats_that_job_alone(tmp_path):
    sweep = ("experiment=quickstart", "hydra.launcher.n_jobs=1", "scorer=random", "seed=1", "density=0.5", *SMALL)
    done = launched(tmp_path, *sweep)
    assert done.returncode == 0, done.stderr
    (state,) = states(tmp_path / "runs")
    words = shlex.split(state.command)
    again = subprocess.run(
        [sys.executable, *words[1:]], cwd=ROOT, capture_output=True, text=True, check=False, env=os.environ
    )
    assert again.returncode == 0, again.stderr
    assert len(states(tmp_path / "runs")) == 1


@pytest.mark.parametrize(
    ("told", "launcher", "jobs_at_once", "threads"),
    [
        ("3", {}, 2, 3),  # a cluster's word comes first
        ("", {}, 2, 4),
        ("", {}, 1, 8),
        ("nonsense", {}, 16, 1),
        ("", {"cpus_per_task": 5}, 1, 5),
        ("", {"cpus_per_task": None}, 1, 1),
        ("", {"ray": {"remote": {}}}, 1, 1),
        ("", {"ray": {"remote": {"num_cpus": 2}}}, 1, 2),
    ],
)
def test_threads_are_a_jobs_share_of_the_cores(monkeypatch, told, launcher, jobs_at_once, threads):
    monkeypatch.setenv("OMP_NUM_THREADS", told)
    monkeypatch.setattr(jobs, "_cores", lambda: 8)
    assert jobs._threads(jobs_at_once, launcher) == threads
