"""Trainings that made their network worse, though its loss stayed finite."""

from collections.abc import Mapping
from typing import Any

GROWN = 10.0
"""A training has failed if its last epoch's mean loss is more than this many times the loss of its first step."""


def failed_training(row: Mapping[str, Any]) -> str:
    """ "training loss grew from 2.31 to 5.1e+28", by the last epoch of the training of `row`'s network; "" where it did
    not, or is not known, as in rows that were written before the loss of the first step was kept.
    """
    first, losses = row.get("first_loss"), row.get("losses")
    last = losses[-1][1] if isinstance(losses, list) and losses else None
    if not isinstance(first, float) or not isinstance(last, float) or not last > GROWN * first > 0:
        return ""
    return f"training loss grew from {first:.3g} to {last:.3g}"
