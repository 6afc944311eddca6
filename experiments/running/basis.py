"""Basis of a run: configuration, store, data, model and recipe, made when first needed."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from hydra.utils import get_object
from torch import nn

from experiments.configuration.targets import instantiate, short_name, without_return_check
from experiments.configuration.views import FREE, UndeclaredFieldError, covers, view
from experiments.data import Splits
from experiments.data.content import content_of_data, content_of_files, content_of_tensors
from experiments.running.parts import made_from
from experiments.runtime.processes import on_cpu
from experiments.runtime.progress import Progress, progress
from experiments.runtime.seeding import seeded
from experiments.store import Artefact, Store
from experiments.store.attributes import content_of_attributes
from experiments.store.identity import WITHOUT_EFFECT, identity_of
from experiments.store.sources import digests
from experiments.tasks import Task
from experiments.training.batches import steps_per_epoch
from experiments.training.checkpoints import Checkpoints
from experiments.training.loop import accelerator
from experiments.training.recipe import Recipe
from pruning import prunable
from pruning.errors import ConfigurationError, ModelError
from pruning.execution import ExecutionPolicy, masked
from pruning.rewind import step_of

if TYPE_CHECKING:
    from accelerate import Accelerator
    from typing_extensions import Self

    from experiments.configuration import Configuration


_FROM_FILES = ("experiments.models.transformers_model",)
"""Models that take seconds to read, and that a deep copy copies whole."""


@dataclass(frozen=True)
class Basis:
    """A run's checked configuration, its store, and whether it alone writes to the terminal.

    A stage works with `only` the fields of the configuration that it takes, and its `identity` is that of these fields.
    A stage that takes this rather than a `Setting` knows nothing of units, and its results do not depend on their code.

    Attributes:
        whole: the configuration with all its fields: for checks, and for what stands beside a result.
        taken: fields that the identity holds; None: all can be read, and there is no identity.
        inherited: fields that can be read too, as the key of what a stage starts from holds them.
        made: the parts that are made already, by name; views share them.
    """

    whole: Configuration
    store: Store
    alone: bool = True
    taken: frozenset[str] | None = None
    inherited: frozenset[str] = frozenset()
    made: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def config(self) -> Configuration:
        """The configuration: of a view, the fields that it may read."""
        return self.whole if self.taken is None else view(self.whole, self.fields)

    @property
    def fields(self) -> frozenset[str]:
        """The fields that a view may read: those taken, and those in the key of what it starts from."""
        return (self.taken or frozenset()) | self.inherited

    def only(self, *fields: str, after: Iterable[str] = ()) -> Self:
        """The same for a stage that takes these `fields`, and goes on from a result whose key holds those of `after`.

        The stage adds that key to its identity: `after` may be read, but `identity` does not have it. Raises
        `UndeclaredFieldError` for a view that does not have the fields itself.
        """
        for name in fields:
            if self.taken is not None and not covers(self.fields | FREE, name):
                raise UndeclaredFieldError(f"{name}: is used by a stage that takes {', '.join(sorted(self.fields))}")
        return replace(self, taken=frozenset(fields), inherited=frozenset(after))

    def identity(self) -> dict[str, Any]:
        """Identity of a result of this view: the fields taken, the code behind them, and the content of data and
        weights that come from files.
        """
        assert self.taken is not None
        found = identity_of(self.whole.as_dict(), *sorted(self.taken))
        if covers(self.taken, "data.load"):
            found["content of data"] = self.only("data.load").content
        if covers(self.taken, "task") and not self.whole.task["_target_"].startswith("experiments.tasks."):
            found["content of task"] = content_of_attributes(self.only("task").first_task)
        files = content_of_files({name: part for name, part in found.items() if name != "model"})
        if files:
            found["content of files"] = files
        if covers(self.taken, "model") and self._reads_files:
            found["content of weights"] = replace(self, taken=None, inherited=frozenset()).initial_content
        return found

    def obtain(self, kind: str, identity: Mapping[str, Any], make: Callable[[Path], None]) -> Artefact:
        """The artefact of this view's identity and of `identity` besides; made first where it is not there."""
        found = self.store.obtain(kind, self._identity_with(identity), make)
        return replace(found, fields=self.fields)

    def _identity_with(self, identity: Mapping[str, Any]) -> dict[str, Any]:
        """This view's identity and `identity` besides, neither of which may replace a part of the other."""
        own = self.identity()
        twice = sorted(own.keys() & identity.keys())
        if twice:
            raise ValueError(
                f"identity: {', '.join(twice)} would stand for two things: name those of the stage otherwise"
            )
        return {**identity, **own}

    @made_from("data.load")
    def splits(self) -> Splits:
        """The data."""
        with seeded(0, "data"):  # what a loader draws without a seed is the same each time
            splits: Splits = instantiate("data.load", self.config.data["load"])
        return splits

    @property
    def task(self) -> Task:
        """The task: loss and metrics; a copy each time, so that no stage finds what another has changed in it."""
        return deepcopy(self.first_task)

    @made_from("task")
    def first_task(self) -> Task:
        """The task as it was made."""
        task: Task = instantiate("task", self.config.task)
        if not isinstance(task, Task):
            raise ConfigurationError(
                f"task={self.config.task['_target_']}: makes a {type(task).__name__}: give a subclass of "
                "experiments.tasks.Task"
            )
        return task

    @made_from("data.load")
    def content(self) -> list[str]:
        """Digests of the data."""
        return content_of_data(self.splits)

    @property
    def _reads_files(self) -> bool:
        """Whether initial weights may depend on more than their arguments and the seed: only our own are known, and
        those not where they hand arguments on to a library, which may read a checkpoint.
        """
        make = get_object(self.whole.model["_target_"])
        ours = inspect.isfunction(make) and make.__module__.startswith("experiments.models.")
        hands_on = ours and any(p.kind is p.VAR_KEYWORD for p in inspect.signature(make).parameters.values())
        return self.whole.when == "pretrained" or hands_on or not ours

    @made_from("model", "seed")
    def initial_content(self) -> list[Any]:
        """Digests of the initial weights, of what the model says of its form, and of the code of its modules."""
        model = self.new_model()
        form: Mapping[str, Any] = getattr(getattr(model, "config", None), "to_dict", dict)()
        kinds = {f"{type(module).__module__}.{type(module).__qualname__}" for module in model.modules()}
        known = [{"_target_": kind} for kind in sorted(kinds) if "<locals>" not in kind]
        code = digests(known, WITHOUT_EFFECT)
        masks = getattr(model, "starting_masks", None)
        found = [content_of_tensors(model.state_dict()), json.dumps(form, sort_keys=True, default=str), code]
        found.append(content_of_attributes(model))
        return [*found, content_of_tensors(masks)] if masks is not None else found

    @made_from("device")
    def device(self) -> torch.device:
        """The device on which networks are."""
        if on_cpu(self.config.device):
            return torch.device("cpu")
        device: torch.device = accelerator(self.config.device, "no").device
        return device

    def new_accelerator(self) -> Accelerator:
        """Device and precision, for one training: it keeps every model that it prepares, and a gradient scaler."""
        precision = self.config.training.precision
        made = accelerator(self.config.device, precision)
        if precision == "fp16" and made.device.type == "cpu":
            raise ConfigurationError("training.precision=fp16: needs a GPU; on a CPU choose no or bf16")
        return made

    @property
    def rewind_step(self) -> int:
        """The step of the dense training that `recovery.to` names."""
        return step_of(self.config.recovery.to, self.epoch_steps)

    def checkpoints(self, kind: str, identity: Mapping[str, Any]) -> Checkpoints | None:
        """The checkpoints of the training of an artefact that `obtain` makes; None if it writes none."""
        often = self.config.checkpoint
        if often.seconds is None and often.steps is None:
            return None
        place = self.store.scratch(kind, self._identity_with(identity)) / "checkpoint.safetensors"
        return Checkpoints(place, often.seconds, often.steps)

    def new_model(self, draw: str = "initial weights") -> nn.Module:
        """The model at its initialisation, a function of the seed; each `draw` is another one."""
        if self._is_read_once and draw == "initial weights":
            read: nn.Module = deepcopy(self.initial_model)
            return read
        return self._made_model(draw)

    @made_from("model", "seed")
    def initial_model(self) -> nn.Module:
        """The model as it was read from its files, to be copied: that takes a tenth of the time."""
        return self._made_model("initial weights")

    @property
    def _is_read_once(self) -> bool:
        return self.whole.when == "pretrained" and self.whole.model["_target_"] in _FROM_FILES

    def _made_model(self, draw: str) -> nn.Module:
        with seeded(self.config.seed, draw):
            model = instantiate("model", self.config.model)
        if not isinstance(model, nn.Module):
            raise ModelError(f"model={self.config.model['_target_']}: makes a {type(model).__name__}, not a module")
        return model

    def prunable(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """The parameters that may be pruned. Raises `ConfigurationError` if the model brings masks, but none of one."""
        found = prunable(model, self.config.include, self.config.exclude)
        masks = getattr(model, "starting_masks", None)
        without = [] if masks is None else [name for name in found if name not in masks]
        if without:
            raise ConfigurationError(
                f"{without[0]}: has no mask in the run that the model is from: set include and exclude as there"
            )
        return found

    @made_from("execution")
    def execution(self) -> ExecutionPolicy:
        """Execution policy: which layers of a masked network run on their kept weights alone."""
        policy: ExecutionPolicy = instantiate("execution", self.config.execution)
        return masked if getattr(policy, "func", policy) is masked else without_return_check(policy)

    @made_from("data.load", "training.batch_size")
    def epoch_steps(self) -> int:
        """Optimizer steps of an epoch."""
        return steps_per_epoch(len(self.splits.train), self.config.training.batch_size)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the dense network's training."""
        epochs: int = self.config.training.epochs
        return epochs * self.epoch_steps

    def recipe(self, steps: range, factor: Callable[[float], float], total: int) -> Recipe:
        """The training recipe for `steps` of the data's order, with the learning-rate `factor` spread over `total`."""
        training = self.config.training
        augment = self.config.data.get("augment")
        return Recipe(
            steps=steps,
            total=max(1, total),
            batch_size=training.batch_size,
            optimizer=instantiate("optimizer", self.config.optimizer),
            factor=factor,
            seed=self.config.seed,
            accumulate=training.accumulate,
            clip=training.clip,
            best_on_validation=training.best_on_validation,
            trainable=training.trainable,
            augment=None if augment is None else without_return_check(instantiate("data.augment", augment)),
        )

    @made_from("learning_rate")
    def learning_rate(self) -> Callable[[float], float]:
        """The factor of the learning rate over the progress of training."""
        factor: Callable[[float], float] = without_return_check(instantiate("learning_rate", self.config.learning_rate))
        return factor

    @made_from("learning_rate", "recovery.factor")
    def recovery_rate(self) -> Callable[[float], float]:
        """The factor that training ends with, times that of the recovery, held constant."""
        return partial(_always, self.learning_rate(1.0 - 1e-9) * self.config.recovery.factor)

    def progress(self, what: str) -> Progress:
        """A display of how far `what` is, with the run's scorer and seed."""
        return progress(f"{short_name(self.whole.scorer)}, seed {self.whole.seed}, {what}", self.alone)


def _always(value: float, progress: float) -> float:
    return value
