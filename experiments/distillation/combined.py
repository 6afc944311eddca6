"""Several distillation losses at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from experiments.data.examples import Batch
from experiments.distillation.loss import DistillationLoss
from experiments.distillation.passes import Pass
from experiments.tasks import Task
from pruning.errors import ConfigurationError


@dataclass(frozen=True, kw_only=True)
class Combined(DistillationLoss):
    """The sum of `terms`, each times its weight.

    Attributes:
        terms: name → loss.
        weights: name → factor, above 0, for each of the terms.
    """

    terms: Mapping[str, DistillationLoss]
    weights: Mapping[str, float]

    def __post_init__(self) -> None:
        if not self.terms or set(self.terms) != set(self.weights):
            raise ConfigurationError(
                f"distillation.weights: are of {', '.join(self.weights) or 'nothing'}, and distillation.terms of "
                f"{', '.join(self.terms) or 'nothing'}: give each term a weight"
            )
        for name, term in self.terms.items():
            if not isinstance(term, DistillationLoss):
                raise ConfigurationError(
                    f"distillation.terms.{name}: is a {type(term).__name__}: give a loss of experiments.distillation"
                )
            if not self.weights[name] > 0:
                raise ConfigurationError(
                    f"distillation.weights.{name}={self.weights[name]}: give a factor above 0, or leave the term out"
                )

    def check(self, student: Pass) -> None:
        """As each of the terms."""
        for term in self.terms.values():
            term.check(student)

    def modules(self, student: nn.Module) -> tuple[str, ...]:
        """Those of all terms."""
        return tuple(dict.fromkeys(name for term in self.terms.values() for name in term.modules(student)))

    @property
    def attends(self) -> bool:
        """Whether a term compares attention."""
        return any(term.attends for term in self.terms.values())

    @property
    def outputs_alone(self) -> bool:
        """Whether that is enough for all terms."""
        return all(term.outputs_alone for term in self.terms.values())

    def __call__(self, student: Pass, teacher: Pass, task: Task, batch: Batch) -> Tensor:
        """The weighted sum of the terms' sums."""
        found = [self.weights[name] * term(student, teacher, task, batch) for name, term in self.terms.items()]
        total = found[0]
        for one in found[1:]:
            total = total + one
        return total
