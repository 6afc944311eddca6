"""Metrics: numbers by which networks are judged, described so that tables and figures know how to show them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torchmetrics


@dataclass(frozen=True)
class Metric:
    """A number in every row: "accuracy" is in the columns `validation_accuracy` and `test_accuracy`.

    Attributes:
        name: in rows; letters, digits and underscores.
        higher_is_better: which way is up in figures, in comparisons, and in the choice of the best epoch.
        scale, unit: of axes and tables; 100 and "%" for shares.
        chance: what guessing reaches; None where that is not known.
        log: whether its axis is logarithmic, as of a perplexity.
    """

    name: str
    higher_is_better: bool = True
    scale: float = 1.0
    unit: str = ""
    chance: float | None = None
    log: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for rows."""
        return asdict(self)


LOSS = Metric("loss", higher_is_better=False)


def share(name: str, chance: float | None = None) -> Metric:
    """A metric from 0 to 1, shown in percent; higher is better."""
    return Metric(name, scale=100.0, unit="%", chance=chance)


def value_of(measure: torchmetrics.Metric) -> float:
    """What a torchmetrics object has measured. Counts become float64 first: its own division is in float32."""
    for name, state in measure.metric_state.items():
        if getattr(state, "is_floating_point", lambda: True)() is False:
            setattr(measure, name, state.double())
    return float(measure.compute())
