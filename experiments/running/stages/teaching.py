"""Teachers of trainings under masks: the run's dense network, or the network of another run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from experiments.configuration.targets import instantiate
from experiments.data import Data
from experiments.data.examples import Examples, take
from experiments.distillation import DistillationLoss, begin, forward
from experiments.running.basis import Basis
from experiments.running.models import row_of_run
from experiments.running.stages.trained import dense, is_distilled
from experiments.runtime.errors import kind_and_message
from experiments.runtime.seeding import seeded
from experiments.store.identity import EXECUTION, STRUCTURE, WITHOUT_EFFECT, code
from experiments.store.networks import load
from experiments.store.retrieval import network_of
from experiments.store.sources import digests
from experiments.tasks import Task
from experiments.tasks.task import FAILURES
from experiments.training.loop import MakeObjective, Objective
from pruning.errors import ConfigurationError, ModelError
from pruning.evidence import untouched

_OF_TEACHER = ("teacher", "level")
"""Options of a distillation for which the teacher's key stands in an identity."""


@dataclass(frozen=True)
class Teaching:
    """How trainings under masks are distilled.

    Attributes:
        fields: of the configuration, which such a training takes.
        identity: what it depends on besides: the teacher, and the code.
        objective: reads the teacher and makes what is minimised, when a training begins.
    """

    fields: tuple[str, ...]
    identity: Mapping[str, Any]
    objective: MakeObjective


def teaching(setting: Basis) -> Teaching:
    """The teaching of a run that is distilled. Raises `ModelError` where the teacher's training diverged."""
    config = setting.whole.distillation
    names = [name for name in config if name not in _OF_TEACHER]
    fields = tuple(f"distillation.{name}" for name in names)
    identity: dict[str, Any] = code(__name__, without=(*EXECUTION, *STRUCTURE))
    if config["teacher"] == "dense":
        network = dense(setting)
        _check_converged(network.history["diverged"], "the dense network")
        identity["teacher"] = network.key
        view = setting.only(*fields, after=network.fields)

        def read() -> nn.Module:
            return load(view.new_model(), network)
    else:
        row, view = _row(config), setting.only(*fields)
        _check_converged(row.get("diverged"), config["teacher"])
        identity["teacher"] = row["network"]
        known = digests({"model": row["config"]["model"]}, WITHOUT_EFFECT)
        identity |= {f"code of the teacher's {target}": digest for target, digest in known.items()}
        read = partial(_network, row)
    return Teaching(fields, identity, partial(_objective, view, names, read))


def check_teaching(setting: Basis, student: nn.Module | None = None) -> None:
    """Distil a few examples, so that what cannot be done raises before any training; nothing where there is no teacher.

    The teacher is another run's network, or the model at its initialisation, which is the student too by default.
    """
    if not is_distilled(setting.whole):
        return
    config = setting.whole.distillation
    names = [name for name in config if name not in _OF_TEACHER]
    loss, task = _loss(setting, names), setting.task
    own = config["teacher"] == "dense"
    with seeded(0, "teacher"):
        teacher = setting.new_model() if own else _network(_row(config))
    model = setting.new_model() if student is None else student
    few = Examples(**take(setting.splits.train, 4))
    with torch.no_grad(), seeded(0, "check"), untouched(model):
        model.train()
        examples, learn = begin(loss, float(config["alpha"]), teacher, model, task, few, fixed=True)
        try:
            found, _ = learn(model, take(examples, 4))
            loss.check(forward(task, model, take(few, 4), loss.modules(model), loss.attends))
        except FAILURES as error:
            raise ModelError(f"distillation: fails on the first examples ({kind_and_message(error)})") from error
    if not isinstance(found, Tensor) or found.numel() != 1:
        raise ConfigurationError(f"distillation={type(loss).__name__}: is no single number: give a sum over the batch")


def _objective(
    setting: Basis,
    names: list[str],
    read: Callable[[], nn.Module],
    student: nn.Module,
    task: Task,
    examples: Data,
    fixed: bool,
) -> tuple[Data, Objective]:
    with seeded(0, "teacher"):  # a model draws its first weights
        teacher = read()
    alpha = float(setting.config.distillation["alpha"])
    return begin(_loss(setting, names), alpha, teacher, student, task, examples, fixed)


def _loss(setting: Basis, names: list[str]) -> DistillationLoss:
    options = {name: setting.config.distillation[name] for name in names if name != "alpha"}
    loss = instantiate("distillation", options)
    if not isinstance(loss, DistillationLoss):
        raise ConfigurationError(
            f"distillation={options['_target_']}: makes a {type(loss).__name__}: give a subclass of "
            "experiments.distillation.DistillationLoss"
        )
    return loss


def _row(config: Mapping[str, Any]) -> dict[str, Any]:
    return row_of_run(config["teacher"], config.get("level"))


def _network(row: Mapping[str, Any]) -> nn.Module:
    return network_of(row, instantiate("model", row["config"]["model"]))


def _check_converged(diverged: float | None, name: str) -> None:
    if diverged is not None and not math.isnan(diverged):
        raise ModelError(
            f"distillation.teacher: the training of {name} diverged at step {diverged:.0f}: lower optimizer.lr, set "
            "training.clip, or name another teacher"
        )
