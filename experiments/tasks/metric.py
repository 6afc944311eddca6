"""The value of a metric that torchmetrics measures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    import torchmetrics


def value_of(measure: torchmetrics.Metric) -> float:
    """The value of a torchmetrics object. Counts become float64 first: its own division is in float32."""
    for name, state in measure.metric_state.items():
        if isinstance(state, Tensor) and not state.is_floating_point():
            setattr(measure, name, state.double())
    return float(measure.compute())
