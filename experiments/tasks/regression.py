"""Numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from experiments.data.examples import Batch, Data
from experiments.records.metrics import Metric
from experiments.tasks.task import Task, targets_of
from pruning.errors import ConfigurationError, DataError, ModelError
from pruning.evidence import output_tensor

if TYPE_CHECKING:
    import torchmetrics

LOSSES: dict[str, Callable[..., Tensor]] = {"mse": F.mse_loss, "mae": F.l1_loss, "huber": F.huber_loss}


@dataclass(kw_only=True)
class Regression(Task):
    """R² and errors of numbers, float [n] or [n, outputs] in the column `targets`, by outputs of as many elements.

    Attributes:
        outputs: numbers an example.
        criterion: what is minimised: "mse", "mae" or "huber", with `delta`.
        delta: where Huber's loss turns from squares to absolute values, above 0. Huber 1964.
    """

    outputs: int = 1
    criterion: str = "mse"
    delta: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.criterion not in LOSSES:
            raise ConfigurationError(f"task.criterion={self.criterion}: choose {', '.join(LOSSES)}")
        if self.outputs < 1 or not self.delta > 0:
            raise ConfigurationError(
                f"task.outputs={self.outputs}, task.delta={self.delta}: give at least 1, and a number above 0"
            )

    def described(self) -> tuple[Metric, ...]:
        """R² = 1 - Σ(y - ŷ)² / Σ(y - ȳ)², averaged over outputs; 0 is what the mean reaches. And mean errors."""
        errors = (Metric(name, higher_is_better=False) for name in ("mse", "mae"))
        return (Metric("r2", chance=0.0), *errors)

    def loss(self, outputs: Any, batch: Batch, training: bool = False) -> Tensor:
        """The sum over examples and outputs."""
        options = {"delta": self.delta} if self.criterion == "huber" else {}
        predicted, wanted = self._paired(outputs, batch)
        return LOSSES[self.criterion](predicted, wanted.to(predicted.dtype), reduction="sum", **options)

    def count(self, batch: Batch) -> float:
        """Examples times outputs."""
        targets: Tensor = batch[self.targets]
        return targets.numel()

    def measures(self) -> dict[str, torchmetrics.Metric]:
        """Measures of torchmetrics, summed in float64."""
        from torchmetrics import MeanAbsoluteError, MeanSquaredError, R2Score  # noqa: PLC0415  # takes seconds

        class Shifted(R2Score):
            """From the first targets on, as R² is the same then: sums of squares of large numbers cancel."""

            shift: Tensor | None = None

            def update(self, found: Tensor, wanted: Tensor) -> None:
                if self.shift is None:
                    self.shift = wanted.mean(0)
                super().update(found - self.shift, wanted - self.shift)

        found = {"r2": Shifted(), "mse": MeanSquaredError(), "mae": MeanAbsoluteError()}
        return {name: measure.set_dtype(torch.float64) for name, measure in found.items()}

    def predictions(self, outputs: Any, batch: Batch) -> tuple[Tensor, ...]:
        """Both as float64 [n] or [n, outputs]."""
        found, wanted = self._paired(outputs, batch)
        return found.double(), wanted.double()

    def _paired(self, outputs: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        found, wanted = output_tensor(outputs), batch[self.targets]
        if found.numel() != wanted.numel() or len(found) != len(wanted):
            raise ModelError(f"gives {list(found.shape)} for targets {list(wanted.shape)}: give one output for each")
        shape = (len(wanted),) if self.outputs == 1 else (len(wanted), -1)
        return found.reshape(shape), wanted.reshape(shape)

    def check(self, data: Data, batch: Batch) -> None:
        """Floats, `outputs` an example."""
        targets = targets_of("regression", self, data, batch)
        if not targets.is_floating_point():
            raise DataError(
                f"task=regression: {self.targets} are {targets.dtype}: give floats, or set task=classification"
            )
        if len(data) < 2:
            raise DataError("task=regression: one example alone has no R²: give at least 2 in every part")
        if targets[0].numel() != self.outputs:
            raise DataError(
                f"task=regression: {self.targets} have {targets[0].numel()} numbers an example: set task.outputs"
            )
