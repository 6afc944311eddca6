"""One job of Hydra's: its threads, its folder, its log, the value for its sweeper, and its errors.

A launcher may run it in another process or on another machine; what it needs comes with its configuration.
"""

import logging
import os
import shlex
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from experiments.configuration import Configuration, validate
from experiments.configuration.targets import short_name
from experiments.records.fields import BOOKKEEPING
from experiments.records.metrics import Metric
from experiments.records.runs import record_state, repetitions, states
from experiments.records.values import PARTS
from experiments.running.setting import Setting
from experiments.runtime import processes
from experiments.runtime.errors import line, report_error
from experiments.store import Store, identity_key
from pruning.errors import ConfigurationError, DampingWarning, PruningError, RecordsError, ToleranceWarning
from pruning.execution.crossover import processor

log = logging.getLogger("experiments")

_LOGGERS = (log, logging.getLogger("pruning"))
"""Whose messages run.log holds: those of the library say how a regime or an execution went."""

Rows = list[dict[str, Any]]


class JobError(PruningError):
    """A job of a sweep failed and has reported why; the message is the folder of the sweep."""


def job(run: Callable[[Setting, Path, str], Rows], config: DictConfig) -> float | tuple[float, ...] | None:
    """Call `run` in a folder of its own and return what `objectives` makes of its rows, for sweepers that search.

    A user's error is reported here, in the process where it happened. A run then ends with code 1; a sweep too, after
    its other jobs. Where several processes train together, one that fails ends them all: the others would wait for it,
    or take its next job for the present one.
    """
    try:
        checked = validate(config)
        return objectives(_prepared(run, checked), checked.objective)
    except (PruningError, OSError) as error:
        alone = not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN
        if alone or processes.world_size() > 1:
            raise SystemExit(report_error(line(error))) from None
        report_error(f"{','.join(HydraConfig.get().overrides.task)}: {line(error)}")
        raise JobError(str(config.folder)) from None


def objectives(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> float | tuple[float, ...] | None:
    """The values of the run's last row, controls aside, by `names` of columns; one alone as a number. The name of a
    metric is its column of the validation part: what is searched for by test data is not tested.

    Raises `ConfigurationError` for a column that is no number there.
    """
    if not names:
        return None
    last = [row for row in rows if not row.get("control")][-1]
    check_objective(names, last)
    found = []
    for name in names:
        value = last[_column(name, last)]
        if isinstance(value, bool) or not isinstance(value, int | float):
            step = last.get("diverged")
            why = "" if step is None else f", as training diverged at step {step:.0f}"
            raise ConfigurationError(
                f"objective={name}: is {value!r} in the last row{why}; choose among {_numeric(last)}"
            )
        found.append(float(value))
    return found[0] if len(found) == 1 else tuple(found)


def check_objective(names: Sequence[str], row: Mapping[str, Any]) -> None:
    """Raise `ConfigurationError` for a name that no row will have; any row shows it, the dense network's too."""
    for name in names:
        if _column(name, row) not in row:
            raise ConfigurationError(f"objective={name}: rows have no such column; choose among {_numeric(row)}")


def check_directions(names: Sequence[str], metrics: Sequence[Metric]) -> None:
    """Raise `ConfigurationError` for a search of the worst of one of the task's `metrics`; it takes no training."""
    for name, direction in zip(names, _directions(len(names)), strict=True):
        for metric in metrics:
            better = "maximize" if metric.higher_is_better else "minimize"  # in Optuna's words
            if name in (metric.name, *(f"{part}_{metric.name}" for part in PARTS)) and direction not in (None, better):
                raise ConfigurationError(
                    f"objective={name}: to {direction} it is to search for the worst: set "
                    f"hydra.sweeper.direction={better}"
                )


def _column(name: str, row: Mapping[str, Any]) -> str:
    """The column that an objective names, by itself or as a metric."""
    return f"validation_{name}" if name not in row and f"validation_{name}" in row else name


def _directions(count: int) -> list[str | None]:
    """The direction in which the sweeper searches, for each of `count` objectives; None where it has none."""
    asked = HydraConfig.get().sweeper.get("direction") if HydraConfig.initialized() else None
    if asked is None:
        return [None] * count
    directions = list(asked) if isinstance(asked, Sequence) and not isinstance(asked, str) else [asked]
    if len(directions) != count:
        raise ConfigurationError(f"objective: {count} columns, but hydra.sweeper.direction={directions}: give as many")
    return [str(getattr(direction, "name", direction)) for direction in directions]


def _numeric(row: Mapping[str, Any]) -> str:
    return ", ".join(
        key for key, value in row.items() if isinstance(value, int | float) and not isinstance(value, bool)
    )


def jobs_failed(error: JobError, since: float) -> int:
    """Report the failed jobs of a sweep that began at `since`, with reasons and commands; return exit code 1."""
    folder = Path(str(error))
    try:
        known = states(folder) if folder.is_dir() else []
    except (PruningError, OSError) as second:
        report_error(line(second))
        known = []
    failed = [state for state in known if state.state in ("failed", "cut") and state.began >= since]
    for text in repetitions(failed):
        print(text, file=sys.stderr)
    which = f"{len(failed)} of the runs in {folder}" if failed else "jobs of this sweep"
    return report_error(
        f"{which} failed, as reported above; fix and repeat them, or the whole sweep: finished runs are kept"
    )


def _prepared(run: Callable[[Setting, Path, str], Rows], config: Configuration) -> Rows:
    """Set threads and folder, then run."""
    launcher = _launcher()
    at_once = _parallel_jobs(launcher)
    torch.set_num_threads(_threads(at_once, launcher) if config.threads == "auto" else int(config.threads))
    name = _run_name(config)
    folder = Path(config.folder) / name
    setting = Setting(config, Store(Path(config.store)), alone=at_once == 1)
    processes.join(config.device)
    if not processes.is_main_process():  # which writes all there is to write
        log.setLevel(logging.WARNING)
        return run(setting, folder, name)
    folder.mkdir(parents=True, exist_ok=True)
    with record_state(folder, _command(), hardware()):
        text = OmegaConf.to_yaml(OmegaConf.create(config.as_dict()))
        written = folder / "config.yaml"
        if not written.exists() or written.read_text() != text:  # a finished run may lie where nobody can write
            written.write_text(text)
        logfile = logging.FileHandler(folder / "run.log")
        logfile.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        for logger in _LOGGERS:
            logger.addHandler(logfile)
        try:
            with warnings.catch_warnings():
                warnings.showwarning = partial(_warned, warnings.showwarning)
                return run(setting, folder, name)
        except OSError as error:
            raise RecordsError(line(error)) from error
        except PruningError:
            raise
        except Exception as error:  # mostly of somebody's own model or scorer: one line here, the rest in the log
            with (folder / "run.log").open("a", encoding=logfile.encoding) as file:
                file.write(traceback.format_exc())
            at = traceback.extract_tb(error.__traceback__)[-1]
            raise PruningError(
                f"{type(error).__name__}: {error}, in {at.filename}, line {at.lineno}; traceback: {folder / 'run.log'}"
            ) from error
        finally:
            for logger in _LOGGERS:
                logger.removeHandler(logfile)
            logfile.close()


def _run_name(config: Configuration) -> str:
    """Name of a run and its folder, in words and a digest of all that makes its rows what they are."""
    ignored = BOOKKEEPING - {"seed", "density", "controls"}
    identity = {key: value for key, value in config.as_dict().items() if key not in ignored}
    words = (
        config.method or short_name(config.scorer),
        short_name(config.model),
        config.data["name"],
        f"seed{config.seed}",
    )
    return "-".join((*words, identity_key(identity)[:8]))


def _warned(others: Callable[..., None], message: Warning | str, category: type[Warning], *where: Any) -> None:
    """Log the library's own warnings in one line, without their place in its code."""
    if issubclass(category, DampingWarning | ToleranceWarning):
        log.warning("%s", message)
    else:
        others(message, category, *where)


def _command() -> str:
    """The command that repeats this job alone."""
    count = processes.world_size()
    words = ["torchrun", "--nproc-per-node", str(count)] if count > 1 else ["python"]
    words += ["-m", "experiments.run"]
    if HydraConfig.initialized():
        settings = HydraConfig.get()
        places = [source.path for source in settings.runtime.config_sources if source.provider == "command-line"]
        words = [*words, *(f"--config-dir={place}" for place in places), *settings.overrides.task]
        if settings.mode == RunMode.MULTIRUN and any(word.startswith("experiment=") for word in words):
            words.append("hydra.mode=RUN")  # the experiment may be a sweep by itself
    return shlex.join(words)


def hardware() -> str:
    """The processor, its cores that this process may use, and the GPUs."""
    gpus = [torch.cuda.get_device_name(place) for place in range(torch.cuda.device_count())]
    return ", ".join([processor(), f"{_cores()} cores", *gpus])


def _launcher() -> Mapping[str, Any]:
    """The launcher's settings; none outside of Hydra."""
    return HydraConfig.get().launcher if HydraConfig.initialized() else {}


def _parallel_jobs(launcher: Mapping[str, Any]) -> int:
    """The number of jobs of this sweep that run at once on this machine, as the launcher is configured."""
    jobs = launcher.get("n_jobs", 1)
    return _cores() if jobs in (None, -1) else max(1, int(jobs))


def _threads(jobs: int, launcher: Mapping[str, Any]) -> int:
    """A job's share of the cores. OMP_NUM_THREADS, as a cluster, Ray or a test runner sets it, comes first."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdigit() and int(given) > 0:
        return int(given)
    if "ray" in launcher:
        return max(1, int(launcher["ray"]["remote"].get("num_cpus", 1)))
    if "cpus_per_task" in launcher:  # submitit: on SLURM a job sees its cores alone, on one machine it sees all
        return int(launcher["cpus_per_task"] or os.environ.get("SLURM_CPUS_PER_TASK", "1"))
    return max(1, _cores() // jobs)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
