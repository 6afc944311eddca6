"""What the stages of one run share: the checked configuration and what is built from it, when it is first needed."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from accelerate import Accelerator
from torch import nn

from experiments.configuration import built
from experiments.data import Splits
from experiments.progress import Progress, progress
from experiments.seeding import seeded
from experiments.store import Store
from experiments.training import Recipe, accelerator
from pruning import prunable
from pruning.errors import ConfigurationError, ModelError


@dataclass(frozen=True)
class Setting:
    """A run's configuration, its store, and whether it alone writes to the terminal. Its parts are built once."""

    config: dict[str, Any]
    store: Store
    alone: bool = True

    @cached_property
    def splits(self) -> Splits:
        """The data."""
        splits: Splits = built("data.load", self.config["data"]["load"])
        return splits

    @cached_property
    def accelerator(self) -> Accelerator:
        """Device and precision."""
        precision = self.config["training"]["precision"]
        made = accelerator(self.config["device"], precision)
        if precision == "fp16" and made.device.type == "cpu":
            raise ConfigurationError("training.precision=fp16: needs a GPU; on a CPU choose no or bf16")
        return made

    def new_model(self) -> nn.Module:
        """The model at its initialisation, a function of the seed."""
        with seeded(self.config["seed"], "initial weights"):
            model = built("model", self.config["model"])
        if not isinstance(model, nn.Module):
            raise ModelError(f"model={self.config['model']['_target_']}: makes a {type(model).__name__}, not a module")
        return model

    def prunable(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """The parameters that may be pruned."""
        return prunable(model, self.config["include"], self.config["exclude"])

    def recipe(self, epochs: int, factor: Callable[[float], float], first_epoch: int = 0) -> Recipe:
        """The training recipe for `epochs` with the learning-rate `factor`."""
        training = self.config["training"]
        augment = self.config["data"].get("augment")
        return Recipe(
            epochs=epochs,
            batch_size=training["batch_size"],
            optimizer=built("optimizer", self.config["optimizer"]),
            factor=factor,
            seed=self.config["seed"],
            first_epoch=first_epoch,
            accumulate=training["accumulate"],
            clip=training["clip"],
            label_smoothing=training["label_smoothing"],
            best_on_validation=training["best_on_validation"],
            augment=None if augment is None else built("data.augment", augment),
        )

    @cached_property
    def learning_rate(self) -> Callable[[float], float]:
        """The factor of the learning rate over the progress of training."""
        factor: Callable[[float], float] = built("learning_rate", self.config["learning_rate"])
        return factor

    @cached_property
    def last_learning_rate(self) -> Callable[[float], float]:
        """The factor that training ends with, held constant."""
        return partial(_always, self.learning_rate(1.0 - 1e-9))

    def progress(self, what: str) -> Progress:
        """How far `what` is."""
        return progress(what, self.alone)


def _always(value: float, progress: float) -> float:
    return value
