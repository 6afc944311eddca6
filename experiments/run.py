"""python -m experiments.run: one run, or with -m a sweep. It reads as the algorithm; the rest serves it.

    python -m experiments.run scorer=magnitude density=0.1
    python -m experiments.run -m scorer=magnitude,taylor seed=0,1,2 hydra/launcher=joblib

The rows of a run go to <folder>/<run>/rows.jsonl. The same command again resumes, or does nothing.
"""

import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable
from functools import lru_cache, partial
from itertools import count
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments import records, stages
from experiments.configuration import Configuration, arrives, checked, densities
from experiments.controls import check as check_controls
from experiments.controls import controls
from experiments.labels import BOOKKEEPING
from experiments.levels import Level, evaluate
from experiments.networks import Network
from experiments.setting import Setting
from experiments.store import Store, identity_key
from experiments.targets import built, short_name
from experiments.tracking import Guarded
from pruning.errors import ConfigurationError, DampingWarning, PruningError

log = logging.getLogger("experiments")
_CONF = Path(__file__).resolve().parents[1] / "conf"
ConfigStore.instance().store(name="schema", node=Configuration)


def run(setting: Setting, folder: Path, name: str) -> list[dict[str, Any]]:
    """All levels of a run; their rows, which are also in `folder`/rows.jsonl after each level."""
    config = setting.config
    tracker = Guarded(built("tracker", config["tracker"]))
    tracker.start(name, config)
    try:
        return _levels(setting, folder, name, tracker)
    finally:
        tracker.finish()


def _levels(setting: Setting, folder: Path, name: str, tracker: Guarded) -> list[dict[str, Any]]:
    config = setting.config
    rows: list[dict[str, Any]] = []
    schedule = _parts(setting)

    def report(row: dict[str, Any]) -> None:
        rows.append({"format": records.FORMAT, "run": name, **row, "config": config})
        records.write(folder, rows)
        tracker.row(row)
        title = f"{name}, {row['control']}" if row["control"] else name
        emptied = f" (emptied: {', '.join(row['emptied'])})" if row["emptied"] else ""
        log.info("%s: density %.4g, test accuracy %.4f%s", title, row["density"], row["test_accuracy"], emptied)

    scoring = lru_cache(maxsize=1)(partial(stages.score, setting))  # densities that branch from one network share it
    numbers = count(1)
    dense = stages.dense(setting)
    report(evaluate(setting, dense, Level(0, 0, 0, 1.0, 1.0), dense))
    for target in densities(config):
        network = stages.initial(setting) if config["when"] == "init" else dense
        steps = schedule(target)[1:]
        for number, density in enumerate(steps, start=1):
            begun = network if arrives(config) else stages.prune(setting, network, density, scoring)
            network = begun
            if number == len(steps) or config["recovery"]["rounds"] == "every" or arrives(config):
                network = stages.recover(setting, begun, density)
                level = Level(next(numbers), number, len(steps), density, target)
                ticket = evaluate(setting, network, level, dense)
                report(ticket)
                for row in controls(setting, Network(begun.weights, network.masks), ticket, level, dense):
                    report(row)
    return rows


def _parts(setting: Setting) -> Callable[[float | None], tuple[float | None, ...]]:
    """The schedule, after a look at all that can be wrong before hours of training rather than after."""
    config = setting.config
    for group in ("scorer", "compensate", "dynamic"):
        if config[group]:
            built(group, config[group])
    _ = setting.granularity, setting.allocation
    schedule: Callable[[float | None], tuple[float | None, ...]] = built("schedule", config["schedule"])
    for target in densities(config):
        schedule(target)
    if config["recovery"]["learning_rate"] == "replay" and setting.rewind_step > setting.total_steps:
        raise ConfigurationError(
            f"recovery.to={config['recovery']['to']}: training ends after {setting.total_steps} steps, of "
            f"{setting.epoch_steps} an epoch: name an earlier moment"
        )
    if config["recovery"]["learning_rate"] == "replay" and config["recovery"]["epochs"] is not None:
        log.info("recovery.epochs has no effect here: a replay goes on until the end of training")
    if config["dynamic"]:
        for target in densities(config):
            stages.check_dynamic(setting, target)
    check_controls(setting)
    setting.prunable(setting.new_model())
    setting.learning_rate(0.0)
    return schedule


def _job(config: DictConfig) -> None:
    """One job of Hydra's. A user's mistake is told here, in the process where it happened.

    A run then ends with code 1. A sweep ends so too, but goes through its other jobs first.
    """
    try:
        _prepared(config)
    except (PruningError, OSError) as error:
        alone = not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN
        if alone:
            raise SystemExit(_told(_line(error))) from None
        job = ",".join(HydraConfig.get().overrides.task)
        _told(f"{job}: {_line(error)}")
        raise PruningError("jobs of this sweep failed, as told above; mend and repeat it: all else is kept") from None


def _prepared(config: DictConfig) -> None:
    """Set threads and folder, then run."""
    plain = checked(config)
    jobs = _parallel_jobs()
    torch.set_num_threads(_threads(jobs) if plain["threads"] == "auto" else int(plain["threads"]))
    ignored = BOOKKEEPING - {"seed", "density", "controls"}
    identity = {key: value for key, value in plain.items() if key not in ignored}
    parts = (short_name(plain["scorer"]), short_name(plain["model"]), plain["data"]["name"], f"seed{plain['seed']}")
    name = "-".join((*parts, identity_key(identity)[:8]))
    folder = Path(plain["folder"]) / name
    folder.mkdir(parents=True, exist_ok=True)
    text = OmegaConf.to_yaml(OmegaConf.create(plain))
    written = folder / "config.yaml"
    if not written.exists() or written.read_text() != text:  # a finished run may lie where nobody can write any more
        written.write_text(text)
    logfile = logging.FileHandler(folder / "run.log")
    logfile.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.addHandler(logfile)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = partial(_warned, warnings.showwarning)
            run(Setting(plain, Store(Path(plain["store"])), alone=jobs == 1), folder, name)
    except (PruningError, OSError):
        raise
    except Exception as error:  # mostly of somebody's own model or scorer: one line here, the rest in the log
        logfile.stream.write(traceback.format_exc())
        at = traceback.extract_tb(error.__traceback__)[-1]
        raise PruningError(
            f"{type(error).__name__}: {error}, in {at.filename}, line {at.lineno}; traceback: {folder / 'run.log'}"
        ) from error
    finally:
        log.removeHandler(logfile)
        logfile.close()


def _warned(others: Callable[..., None], message: Warning | str, category: type[Warning], *where: Any) -> None:
    """A line in the log for what the library reports; where in its code that was says nothing to a user."""
    if issubclass(category, DampingWarning):
        log.warning("%s", message)
    else:
        others(message, category, *where)


def _parallel_jobs() -> int:
    """How many jobs of this sweep run at once on this machine, by the launcher's own setting."""
    if not HydraConfig.initialized():
        return 1
    jobs = HydraConfig.get().launcher.get("n_jobs", 1)
    return _cores() if jobs in (None, -1) else max(1, int(jobs))


def _threads(jobs: int) -> int:
    """A job's share of the cores; OMP_NUM_THREADS, as a cluster or a test runner sets it, comes first."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    return int(told) if told.isdigit() and int(told) > 0 else max(1, _cores() // jobs)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main() -> int:
    """The command line: what a user can mend is one line on standard error and exit code 1, never a traceback."""
    logging.raiseExceptions = False  # a closed terminal loses lines, never a result
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra hands its errors on; they are told in one line here
    try:
        hydra.main(config_path=str(_CONF), config_name="config", version_base="1.3")(_job)()
    except (PruningError, HydraException, OmegaConfBaseException, ValueError) as error:  # Hydra's own are all three
        cause = f": {error.__cause__}" if isinstance(error.__cause__, OmegaConfBaseException) else ""
        unknown = re.match(r"Could not override '(.+?)'", str(error))
        if unknown:
            return _told(
                f"{unknown[1]}: is no field of this configuration: `--cfg job` lists them all; in a sweep, an option "
                f"that only the swept choices have is set by ++{unknown[1]}="
            )
        return _told(f"{error}{cause}")
    except KeyboardInterrupt:
        return _told("interrupted: what is finished is kept, repeat the command to go on")
    return 0


def _line(error: Exception) -> str:
    if isinstance(error, OSError):
        where = error.filename or "the disk"
        return f"{where}: {error.strerror or error}: make room or give access, or set folder= and store="
    return str(error)


def _told(message: str) -> int:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
