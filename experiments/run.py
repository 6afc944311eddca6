"""python -m experiments.run: one run, or with -m a sweep. It reads as the algorithm; the rest serves it.

    python -m experiments.run scorer=magnitude density=0.1
    python -m experiments.run -m scorer=magnitude,taylor seed=0,1,2 hydra/launcher=joblib

The rows of a run go to <folder>/<run>/rows.jsonl. The same command again resumes, or does nothing.
"""

import logging
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache, partial
from itertools import count
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from experiments import records
from experiments.configuration import CONF, Configuration, densities
from experiments.configuration.targets import instantiate, short_name
from experiments.evaluation import compare_rows
from experiments.records.losses import failed_training
from experiments.results.tracked import results
from experiments.running import jobs, stages
from experiments.running.controls import check as check_controls
from experiments.running.controls import controls
from experiments.running.jobs import JobError, check_directions, check_objective, jobs_failed
from experiments.running.levels import Level, evaluate
from experiments.running.setting import Setting
from experiments.runtime.errors import report_error
from experiments.runtime.extras import PLUGINS, missing
from experiments.runtime.processes import is_main_process
from experiments.store.artefacts import AbsentError, Made
from experiments.store.identity import read_code
from experiments.store.networks import Network
from experiments.tasks import check_fit
from experiments.tracking import Guarded, Nothing, leave
from experiments.training.loop import check_recipe
from pruning.errors import ConfigurationError, PruningError

log = logging.getLogger("experiments")
ConfigStore.instance().store(name="schema", node=Configuration)

Schedule = Callable[[float | None], tuple[float | None, ...]]
"""From the density that is asked for to the densities of all rounds, that of the dense network first."""


def run(setting: Setting, folder: Path, name: str) -> list[dict[str, Any]]:
    """All levels of a run; their rows, which are also in `folder`/rows.jsonl after each level."""
    config = setting.config
    tracker = Guarded(instantiate("tracker", config.tracker) if is_main_process() else Nothing())
    tracker.start(name, config.as_dict())
    done = False
    try:
        rows = _levels(setting, folder, name, tracker)
        tracker.results(partial(results, rows, setting.store.root))
        done = True
        return rows
    finally:
        tracker.finish(done)


def _levels(setting: Setting, folder: Path, name: str, tracker: Guarded) -> list[dict[str, Any]]:
    config = setting.config
    plain = config.as_dict()
    rows: list[dict[str, Any]] = []
    schedule: Schedule = instantiate("schedule", config.schedule)
    _check_before_training(setting, schedule)

    def report(row: dict[str, Any]) -> None:
        row |= compare_rows(row, rows[0] if rows else row)
        rows.append({"format": records.FORMAT, "run": name, **row, "config": plain})
        if not is_main_process():
            return
        records.write(folder, rows)
        tracker.row(row)
        title = f"{name}, {row['control']}" if row["control"] else name
        emptied = f" (emptied: {', '.join(row['emptied'])})" if row["emptied"] else ""
        headline = row["metrics"][0]["name"]
        value = row[f"test_{headline}"]
        said = "not finite" if value is None else f"{value:.4f}"
        log.info("%s: density %.4g, test %s %s%s", title, row["density"], headline, said, emptied)
        if failed_training(row):
            log.warning("%s: %s: lower optimizer.lr, or set training.clip", title, failed_training(row))

    scoring = lru_cache(maxsize=1)(partial(stages.score, setting))  # densities that branch from one network share it
    prune = stages.prune if config.calibration == "whole" else stages.prune_blocks
    numbers = count(1)
    dense = stages.dense(setting)
    report(evaluate(setting, dense, Level(0, 0, 0, 1.0, 1.0), dense))
    check_objective(config.objective, rows[0])
    pruned_in_training = stages.reaches_density_while_training(config)
    for target in densities(config.density):
        network = stages.initial(setting) if config.when == "init" else dense
        steps = schedule(target)[1:]
        for number, density in enumerate(steps, start=1):
            if not pruned_in_training:
                network = prune(setting, network, density, scoring)
                if number < len(steps) and config.recovery.rounds == "last":
                    continue
            begun, at = network, Level(0, number, len(steps), density, target)
            for found in _recovered(setting, begun, at):
                network, level = found, replace(at, number=next(numbers))
                ticket = evaluate(setting, network, level, dense)
                report(ticket)
                for row in controls(setting, Network(begun.weights, network.masks), ticket, level, dense):
                    report(row)
    return rows


def _recovered(setting: Setting, network: Network, level: Level) -> Iterator[Network]:
    """`network` after its recovery, or after an adaptation within each budget."""
    if setting.config.adaptation:
        yield from stages.adapt(setting, network, level.density, str(level))
    else:
        yield stages.recover(setting, network, level.density, title=str(level))


def _check_before_training(setting: Setting, schedule: Schedule) -> None:
    """Make and check everything that can be wrong, before hours of training rather than after."""
    config = setting.config
    read_code(config.as_dict(), "experiments.running.stages", "experiments.running.levels")
    check_directions(config.objective, setting.task.all_metrics())
    for group in ("scorer", "compensate", "dynamic", "adaptation"):
        if getattr(config, group):
            instantiate(group, getattr(config, group))
    own = getattr(setting.allocation, "density", None)
    for target in densities(config.density):
        if own is not None and target not in (None, own):
            raise ConfigurationError(f"density={target:g}: this allocation keeps {own:g} of all: set density=null")
    _ = setting.granularity
    for target in densities(config.density):
        schedule(target)
    if config.recovery.learning_rate == "replay" and setting.rewind_step > setting.total_steps:
        raise ConfigurationError(
            f"recovery.to={config.recovery.to}: training ends after {setting.total_steps} steps, of "
            f"{setting.epoch_steps} an epoch: name an earlier moment"
        )
    ends = abs(setting.learning_rate(1.0 - 1e-9))
    if config.recovery.learning_rate == "last" and config.recovery.epochs and not config.adaptation and ends < 1e-6:
        raise ConfigurationError(
            f"recovery.learning_rate=last: {short_name(config.learning_rate)} ends at a factor of {ends:.1g}, at which "
            "nothing trains: set recovery.learning_rate=restart, or learning_rate.final"
        )
    if config.recovery.learning_rate == "replay" and config.recovery.epochs is not None:
        log.info("recovery.epochs has no effect here: a replay goes on until the end of training")
    _check_training(setting)
    if config.calibration == "sequential" and stages.reaches_density_while_training(config):
        raise ConfigurationError(
            "calibration=sequential: nothing is pruned before a training whose dynamic masks reach the density: set "
            "dynamic=none, or calibration=whole"
        )
    stages.check_teaching(setting)
    check_controls(setting)
    model = setting.new_model()
    if config.calibration == "sequential":
        stages.check_blocks(setting, model)
    _check_what_is_left(setting, model, schedule)
    _check_tokens(setting, model)
    if config.training.accumulate > 1 and not setting.task.additive:
        raise ConfigurationError(
            f"training.accumulate={config.training.accumulate}: the loss of this task is of whole batches, which it "
            "would cut: set it to 1"
        )
    trained = config.when != "pretrained" or config.recovery.epochs != 0
    check_fit(setting.task, model, setting.splits, f"model={short_name(config.model)}", trained)
    setting.learning_rate(0.0)
    recipe = setting.recipe(range(0), setting.learning_rate, 1)
    check_recipe(recipe, model, setting.splits.train)
    _check_scorer(setting)


def _check_training(setting: Setting) -> None:
    """Make what follows a pruning once, for a throw-away network."""
    config = setting.config
    if config.adaptation:
        stages.check_adaptation(setting, densities(config.density))
    if config.dynamic:
        for target in densities(config.density):
            stages.check_dynamic(setting, target)


def _check_scorer(setting: Setting) -> None:
    """Score a few examples where the dense network is still to be trained, and anything is scored at all."""
    config = setting.config
    if config.when == "pretrained" or stages.reaches_density_while_training(config):
        return
    try:
        stages.dense(replace(setting, store=Made(setting.store.root)))
    except AbsentError:
        check = stages.check_scorer if config.calibration == "whole" else stages.check_block_scorer
        check(setting)
        if config.adaptation:
            stages.check_support(setting)


def _check_tokens(setting: Setting, model: nn.Module) -> None:
    """Raise `ConfigurationError` where a pretrained language model would read numbers that are not its tokens."""
    config = setting.config
    if config.when != "pretrained":
        return
    if config.model.get("config"):
        log.warning("when=pretrained: model.config gives random weights, which are pruned as they are")
    own, known = config.data.get("vocabulary"), getattr(getattr(model, "config", None), "vocab_size", None)
    if own is not None and known is not None and own != known:
        raise ConfigurationError(
            f"data={config.data['name']}: has {own} tokens of its own, and the pretrained model {known:,} others: take "
            "text in its tokens (data=books, data=wikitext2), or set data.vocabulary where these are"
        )


def _check_what_is_left(setting: Setting, model: nn.Module, schedule: Schedule) -> None:
    """Raise `ConfigurationError` where a model that brings masks keeps less than the first round is to keep."""
    masks, parameters = getattr(model, "starting_masks", None), setting.prunable(model)
    if masks is None:
        return
    kept, total = sum(int(masks[name].sum()) for name in parameters), sum(p.numel() for p in parameters.values())
    for target in densities(setting.config.density):
        first = schedule(target)[1]
        if first is not None and round(first * total) > kept:
            left = f"{math.floor(1e6 * kept / total) / 1e6:.6g}"  # not more than is left
            raise ConfigurationError(
                f"density={first:.4g}: the network of that run keeps {left} of its weights: give at most that, in "
                f"rounds with ++schedule.start={left}"
            )


def job(config: DictConfig) -> float | tuple[float, ...] | None:
    """One job of Hydra's."""
    return jobs.job(run, config)


def main() -> int:
    """Run the command line: an error that the user can fix is one line on standard error and exit code 1."""
    since = time.time()
    logging.raiseExceptions = False  # a closed terminal loses lines, never a result
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra passes its errors on; they are reported in one line here
    try:
        hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")(job)()
    except JobError as error:
        return jobs_failed(error, since)
    except (PruningError, HydraException, OmegaConfBaseException, ValueError) as error:  # Hydra's own are all three
        return report_error(_reason(error))
    except KeyboardInterrupt:
        return report_error("interrupted: what is finished is kept, repeat the command to continue")
    return 0


def _reason(error: Exception) -> str:
    """Why Hydra, or what it runs, failed, and what to do about it."""
    cause = f": {error.__cause__}" if isinstance(error.__cause__, OmegaConfBaseException) else ""
    unknown = re.match(r"Could not override '(.+?)'", str(error))
    plugin = re.search(r"Could not find '(hydra/(?:launcher|sweeper))/(\w+)'", str(error))
    if plugin and plugin[2] in PLUGINS:
        return f"{plugin[1]}={plugin[2]}: {missing(PLUGINS[plugin[2]])}"
    if unknown:
        return (
            f"{unknown[1]}: is no field of this configuration: `--cfg job` lists them all; in a sweep, an option "
            f"that only the swept choices have is set by ++{unknown[1]}="
        )
    if str(error).startswith("No trials are completed"):  # Optuna's own, where any number of them may fail
        return "every trial of this search failed, as reported above: fix and repeat it"
    return f"{error}{cause}"


def command() -> NoReturn:
    """`main` as a process of its own; modules in the folder where it runs can be imported, as with python -m."""
    if not getattr(sys.flags, "safe_path", False) and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    leave(main())


if __name__ == "__main__":
    command()
