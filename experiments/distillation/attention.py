"""Distillation of attention: Wang et al. 2020, "MiniLM"; Sun et al. 2020, "MobileBERT"."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from experiments.data.examples import Batch
from experiments.distillation.loss import DistillationLoss, example_counts
from experiments.distillation.passes import Pass
from experiments.tasks import Task
from experiments.tasks.task import widened
from pruning.errors import ConfigurationError, ModelError

MEASURES = ("kl", "mse")

_SMALL = 1e-12


@dataclass(frozen=True, kw_only=True)
class Attention(DistillationLoss):
    """Distance of attention probabilities: the mean over layers, heads and queries, not over padding.

    An example weighs as it does in the task's loss. Heads that are gone count too: they differ by a constant.

    Attributes:
        layers: numbers of layers, from 0, or from -1 backwards; None: all. MiniLM takes the last, [-1].
        measure: "kl", KL(teacher ‖ student) in nats, where probabilities below 1e-12 count as that; or "mse", the mean
            squared difference over keys.
    """

    layers: Sequence[int] | None = None
    measure: str = "kl"

    def __post_init__(self) -> None:
        if self.layers is not None and (
            isinstance(self.layers, str | int) or not self.layers or not all(type(n) is int for n in self.layers)
        ):
            raise ConfigurationError(f"distillation.layers={self.layers}: give a list of numbers, as in [-1], or null")
        if self.measure not in MEASURES:
            raise ConfigurationError(f"distillation.measure={self.measure}: choose {' or '.join(MEASURES)}")

    def check(self, student: Pass) -> None:
        """Raise `ModelError` where probabilities do not add up to 1: dropout has gone over them, as transformers give
        them, and cannot be undone.
        """
        for one in self._chosen(student):
            rows = one.float().sum(3)
            if bool((((rows - 1).abs() > 1e-2) & (rows != 0)).any()):
                raise ModelError(
                    "distillation=attention: the student's attention is dropped out in training, and does not add up "
                    "to 1: set its dropout to 0 (attention_probs_dropout_prob or attention_dropout: in model.config, "
                    "or with a plus as an option of a pretrained model)"
                )

    @property
    def attends(self) -> bool:
        """Attention is what it compares."""
        return True

    def __call__(self, student: Pass, teacher: Pass, task: Task, batch: Batch) -> Tensor:
        """The sum over examples of their means, each times what it counts."""
        own, given = self._chosen(student), self._chosen(teacher)
        if [one.shape for one in own] != [one.shape for one in given]:
            raise ModelError(
                f"distillation=attention: the student has {[list(one.shape[1:]) for one in own]}, the teacher "
                f"{[list(one.shape[1:]) for one in given]}: choose distillation.layers with as many heads, or logits"
            )
        distances = torch.stack([self._distances(*pair, batch) for pair in zip(own, given, strict=True)]).mean(0)
        return (distances * example_counts(task, batch).to(distances)).sum()

    def _chosen(self, found: Pass) -> list[Tensor]:
        count = len(found.attention)
        if self.layers is None:
            return list(found.attention)
        outside = [number for number in self.layers if not -count <= number < count]
        if outside:
            raise ConfigurationError(
                f"distillation.layers={list(self.layers)}: there are {count} layers with attention, from 0 to "
                f"{count - 1}: leave {outside[0]} out"
            )
        return [found.attention[number] for number in self.layers]

    def _distances(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """The mean distance of each example, [n], of probabilities [n, heads, queries, keys]."""
        own, given = widened(student), widened(teacher)
        mask = batch.get("attention_mask")
        real = own.new_ones(len(own), own.shape[2])
        if isinstance(mask, Tensor) and mask.shape == real.shape:
            real = (mask != 0).to(own.dtype)
        if self.measure == "kl":
            logs = given.clamp_min(_SMALL).log() - own.clamp_min(_SMALL).log()
            rows = (given * logs).sum(3)
        else:
            rows = (own - given).square().sum(3) / real.sum(1).clamp_min(1)[:, None, None]
        return (rows.mean(1) * real).sum(1) / real.sum(1).clamp_min(1)
