"""The value of a metric that torchmetrics measures."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torchmetrics


def value_of(measure: torchmetrics.Metric) -> float:
    """What a torchmetrics object has measured. Counts become float64 first: its own division is in float32."""
    for name, state in measure.metric_state.items():
        if getattr(state, "is_floating_point", lambda: True)() is False:
            setattr(measure, name, state.double())
    return float(measure.compute())
