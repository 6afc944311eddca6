"""Answers of a network to single examples, beside those of the dense one: what pruning takes first.

Hooker et al. 2019 ("What do compressed deep neural networks forget?") find that networks of the same accuracy differ in
which examples they lose; Milani Fard et al. 2016 call the share of changed answers churn. A calibration error is of
confidence against accuracy in bins, Guo et al. 2017, equation 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from experiments.records.answers import decode, encode

BINS = 15
"""Bins of confidence, as of Guo et al. 2017."""


@dataclass(frozen=True)
class Answered:
    """Answers of a network.

    Attributes:
        answers, targets: classes, int64 [examples].
        confidences: probabilities of the answers, float32 [examples].
    """

    answers: Tensor
    confidences: Tensor
    targets: Tensor


@dataclass
class AnswerCollector:
    """Answers of batch after batch; `add` is what an evaluation calls."""

    parts: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)

    def add(self, answers: Tensor, confidences: Tensor, targets: Tensor) -> None:
        """Those of a batch."""
        self.parts.append((answers.cpu(), confidences.float().cpu(), targets.cpu()))

    def together(self) -> Answered | None:
        """All of them; None where there are none."""
        return Answered(*map(torch.cat, zip(*self.parts, strict=True))) if self.parts else None


def describe_answers(found: Answered | None) -> dict[str, Any]:
    """Columns of one network: its answers, the right ones, the class with the lowest accuracy, and calibration error.

    Classes without an example have no accuracy. The calibration error is the mean of |accuracy - confidence| over 15
    bins of equal width, each weighted by its examples; None where a confidence is not finite. All are None without
    answers.
    """
    names = ("answers", "targets", "worst_class", "test_worst_class_accuracy", "test_calibration_error")
    if found is None:
        return dict.fromkeys(names)
    from torchmetrics.functional.classification import binary_calibration_error  # noqa: PLC0415  # takes seconds

    right = found.answers == found.targets
    accuracies = torch.bincount(found.targets, right.double()) / torch.bincount(found.targets)
    worst = int(accuracies.nan_to_num(2.0).argmin())
    error = None
    if bool(torch.isfinite(found.confidences).all()):
        error = float(binary_calibration_error(found.confidences, right.long(), n_bins=BINS))
    texts = encode(found.answers.numpy()), encode(found.targets.numpy())
    return dict(zip(names, (*texts, worst, float(accuracies[worst]), error), strict=True))


def compare_rows(row: Mapping[str, Any], dense: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of a row beside that of the dense network, from the `answers` of both; null without answers.

    The right answers are the same for all rows: those of the dense network keep them.
    """
    found: dict[str, Any] = dict.fromkeys(("test_churn", "test_lost", "test_gained"))
    if row.get("answers") and dense.get("answers"):
        texts = row["answers"], dense["answers"], dense["targets"]
        answers, before, targets = (torch.from_numpy(decode(one)) for one in texts)
        found = {f"test_{name}": value for name, value in measure_churn(answers, before, targets).items()}
    return {**found, "targets": dense.get("targets") if row is dense else None}


def measure_churn(answers: Tensor, dense: Tensor, targets: Tensor) -> dict[str, float]:
    """Shares of the examples: answered otherwise than by the dense network (churn), right in the dense network alone
    (lost), and right in this one alone (gained). `churn` ≥ `lost` + `gained`: the rest is wrong in two ways.
    """
    right, before = answers == targets, dense == targets
    shares = {"churn": answers != dense, "lost": before & ~right, "gained": right & ~before}
    return {name: float(share.double().mean()) for name, share in shares.items()}
