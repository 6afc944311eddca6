"""Metrics: numbers by which networks are judged, described so that tables and figures know how to show them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any


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

    @property
    def percent(self) -> bool:
        """Whether it is shown in percent, so that its differences are points."""
        return self.scale == 100.0 and self.unit == "%"

    @property
    def fraction(self) -> bool:
        """Whether it lies in [0, 1]: shown in percent, higher is better; but a score whose chance is 0, as R², may be
        below it.
        """
        return self.percent and self.higher_is_better and self.chance != 0

    @property
    def words(self) -> str:
        """Its name as text has it: "top-5 accuracy", "R²"."""
        return " ".join(_WORDS.get(word, _TOP.sub(r"top-\1", word)) for word in self.name.split("_"))

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for rows."""
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Metric:
        """The metric that `as_dict` describes; fields that `plain` lacks have their defaults."""
        return cls(**{field.name: plain[field.name] for field in fields(cls) if field.name in plain})


LOSS = Metric("loss", higher_is_better=False)


def share(name: str, chance: float | None = None) -> Metric:
    """A metric from 0 to 1, shown in percent; higher is better."""
    return Metric(name, scale=100.0, unit="%", chance=chance)


def error_share(name: str) -> Metric:
    """A metric from 0 to 1, shown in percent; lower is better."""
    return Metric(name, higher_is_better=False, scale=100.0, unit="%")


ANSWER_METRICS = (
    *(error_share("churn"), error_share("lost"), share("gained")),
    *(share("worst_class_accuracy"), error_share("calibration_error")),
)
"""Metrics of the answers to single examples, of the test part alone: see `experiments.evaluation`."""

_WORDS = {name: name.upper() for name in ("mse", "mae", "rmse", "f1", "auc", "auroc", "map", "iou")} | {"r2": "R²"}
_WORDS |= {name: f"examples {name}" for name in ("lost", "gained")}
_TOP = re.compile(r"^top(\d+)$")
