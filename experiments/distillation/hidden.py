"""Distillation of hidden states: Romero et al. 2015, "FitNets"; Jiao et al. 2020, "TinyBERT"."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from experiments.data.examples import Batch, rows_of
from experiments.distillation.loss import DistillationLoss, example_counts, example_mean
from experiments.distillation.passes import Pass
from experiments.models.names import unknown_name
from experiments.tasks import Task
from experiments.tasks.task import widened
from pruning.errors import ConfigurationError, ModelError

MEASURES = ("mse", "relative")

_SMALL = 1e-6


@dataclass(frozen=True, kw_only=True)
class Hidden(DistillationLoss):
    """Squared difference of what modules give: the mean over `layers`, units and positions, not over padding.

    An example weighs as it does in the task's loss. Masked units that are gone count too: they differ by a constant,
    which has no gradient, so that students of all densities have the same scale.

    Attributes:
        layers: globs of names of modules, of the student; the teacher has modules of the same names and widths.
        measure: "mse", or "relative": divided by the teacher's own mean square at the same example, plus 1e-6, so that
            layers of all scales weigh alike (SquareHead, Kurtic et al. 2023).
    """

    layers: Sequence[str]
    measure: str = "mse"

    def __post_init__(self) -> None:
        globs = self.layers
        if isinstance(globs, str) or not globs or not all(isinstance(glob, str) for glob in globs):
            raise ConfigurationError(f"distillation.layers={globs}: give a list of globs, as in [fc1,layer2.*]")
        if self.measure not in MEASURES:
            raise ConfigurationError(f"distillation.measure={self.measure}: choose {' or '.join(MEASURES)}")

    def modules(self, student: nn.Module) -> tuple[str, ...]:
        """The names that a glob matches. Raises `ConfigurationError` for one that matches none."""
        names = [name for name, _ in student.named_modules() if name]
        for glob in self.layers:
            if not any(fnmatchcase(name, glob) for name in names):
                raise ConfigurationError(unknown_name("distillation.layers", glob, names))
        return tuple(filter(self._compares, names))

    def __call__(self, student: Pass, teacher: Pass, task: Task, batch: Batch) -> Tensor:
        """The sum over examples of their means, each times what it counts."""
        found = []
        for name in filter(self._compares, student.states):  # there may be those of other terms
            own, given = student.states[name], teacher.states[name]
            if len(own) != len(given) or not own:
                raise ModelError(
                    f"distillation.layers: {name} is called {len(own)} times in the student and {len(given)} in the "
                    "teacher: leave it out"
                )
            found += [self._distances(name, *pair, batch) for pair in zip(own, given, strict=True)]
        distances = torch.stack(found).mean(0)
        return (distances * example_counts(task, batch).to(distances)).sum()

    def _compares(self, name: str) -> bool:
        return any(fnmatchcase(name, glob) for glob in self.layers)

    def _distances(self, name: str, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """The mean squared difference of each example, [n]."""
        if student.shape != teacher.shape:
            raise ModelError(
                f"distillation.layers: {name} gives {list(student.shape[1:])} an example in the student and "
                f"{list(teacher.shape[1:])} in the teacher: choose layers of one width, or distillation=logits"
            )
        if student.dim() < 2 or len(student) != rows_of(batch):
            raise ModelError(
                f"distillation.layers: {name} gives {list(student.shape)} for {rows_of(batch)} examples, which have no "
                "row each: choose another layer"
            )
        own, given = widened(student), widened(teacher)
        found = example_mean((own - given).square(), batch)
        return found if self.measure == "mse" else found / (example_mean(given.square(), batch) + _SMALL)
