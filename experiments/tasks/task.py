"""Task: the loss that networks minimise and the metrics that judge them. Nothing else here knows either."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from experiments.data.examples import Batch, Data, Examples, consecutive, rows_of
from experiments.records.metrics import LOSS, Metric
from experiments.runtime.errors import kind_and_message
from experiments.tasks.metric import value_of
from pruning.errors import ConfigurationError, DataError
from pruning.evidence import output_tensor, untouched
from pruning.inputs import Inputs, arguments
from pruning.modes import eval_mode

if TYPE_CHECKING:
    import torchmetrics

Watch = Callable[[Tensor, Tensor, Tensor], None]
"""Gets answers, their probabilities, and the right answers."""

CALLS = ("keywords", "positional", "dictionary")

FAILURES = (RuntimeError, TypeError, ValueError, IndexError, AttributeError, KeyError)
"""What a user's model or task raises where it is called with something that it was not written for."""


@dataclass(kw_only=True)
class Task:
    """Base of all tasks: a subclass defines a loss and metrics.

    Losses are sums, and `count` is their denominator, so that means over padded tokens or weighted classes do not
    depend on how the data are cut into batches.

    Attributes:
        columns: columns that the model is called with; None: all but `targets`.
        targets: the column that is predicted.
        call: with several columns, whether the model takes them as "keywords", as "positional" arguments in their
            order, or as one "dictionary". A single column is the model's only argument, unless it is a dictionary.
        evaluation_batch: examples in a forward pass of the evaluation.
        metrics: torchmetrics objects that are measured besides, by name: see `measured`.
        better: of metrics of which torchmetrics does not say it, whether "higher" or "lower" is better, by name.
        additive: whether the loss of a batch is the sum of its examples' losses. Only a loss of whole batches, as a
            contrastive one, is not: then `training.accumulate` and per-example curvature mean something else.
    """

    columns: Sequence[str] | None = None
    targets: str = "targets"
    call: str = "keywords"
    evaluation_batch: int = 1000
    metrics: Mapping[str, torchmetrics.Metric] = field(default_factory=dict)
    better: Mapping[str, str] = field(default_factory=dict)
    additive: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.call not in CALLS:
            raise ConfigurationError(f"task.call={self.call}: choose {', '.join(CALLS)}")
        if self.evaluation_batch < 1:
            raise ConfigurationError(f"task.evaluation_batch={self.evaluation_batch}: give at least 1")

    # To be defined by a subclass

    def described(self) -> tuple[Metric, ...]:
        """Its own metrics; the first is the headline: y axis, best epoch, what `compare` calls better."""
        raise NotImplementedError

    def loss(self, outputs: Any, batch: Batch, training: bool = False) -> Tensor:
        """The SUM of the losses of all that counts in `batch`, a tensor of one element."""
        raise NotImplementedError

    def count(self, batch: Batch) -> float | Tensor:
        """Denominator of the loss of `batch`, which makes a mean: its number of examples, unless overridden."""
        return rows_of(batch)

    def measures(self) -> dict[str, torchmetrics.Metric]:
        """A fresh torchmetrics object for each of its own metrics that does not follow from the loss."""
        return {}

    def predictions(self, outputs: Any, batch: Batch) -> tuple[Tensor, ...]:
        """Predictions and targets, with which its own torchmetrics objects are updated."""
        return output_tensor(outputs), batch[self.targets]

    def measured(self, outputs: Any, batch: Batch) -> tuple[Tensor, ...]:
        """Predictions and targets, with which those of `metrics` are updated: `predictions`, unless these are no
        probabilities, of which torchmetrics would guess by their values whether they are.
        """
        return self.predictions(outputs, batch)

    def answers(self, outputs: Any, batch: Batch) -> tuple[Tensor, Tensor, Tensor] | None:
        """Answers, class indices int64 [n], their probabilities [n], and the right answers int64 [n]; None where an
        example has no single answer.
        """
        return None

    def derived(self, loss: float) -> dict[str, float]:
        """Metrics that follow from the mean loss."""
        return {}

    def check(self, data: Data, batch: Batch) -> None:
        """Raise `DataError` where `data`, which begin with `batch`, do not fit this task."""

    def augment(self, batch: Batch, generator: torch.Generator) -> Batch:
        """A batch of training as it is seen this time, by random numbers of `generator`."""
        return batch

    # Called by the application

    def all_metrics(self) -> tuple[Metric, ...]:
        """Descriptions of all numbers in `evaluate`, the headline first, the loss last."""
        others = tuple(Metric(name, self._is_higher_better(name, one)) for name, one in self.metrics.items())
        found = (*self.described(), *others, LOSS)
        names = [metric.name for metric in found]
        wrong = [name for name in names if names.count(name) > 1 or not re.fullmatch(r"[a-zA-Z]\w*", name)]
        if wrong or len(found) == 1:
            raise ConfigurationError(
                f"task={type(self).__name__}: has metrics {', '.join(map(repr, names))}: give at least one of its own, "
                "each with a name of its own, of letters, digits and underscores"
            )
        return found

    def _is_higher_better(self, name: str, measure: torchmetrics.Metric) -> bool:
        higher = measure.higher_is_better
        asked = self.better.get(name, None if higher is None else "higher" if higher else "lower")
        if asked not in ("higher", "lower"):
            raise ConfigurationError(
                f"task.metrics.{name}: {type(measure).__name__} does not say whether higher is better: set "
                f"++task.better.{name}=higher or lower"
            )
        return asked == "higher"

    def inputs(self, batch: Batch) -> Inputs:
        """The inputs of the model."""
        names = [name for name in batch if name != self.targets] if self.columns is None else self.columns
        missing = [name for name in names if name not in batch]
        if missing or not names:
            wanted = ", ".join(missing) or "any input"
            raise DataError(f"task: no column {wanted} in the data; they have {', '.join(batch)}: set task.columns")
        if self.call == "dictionary":
            return ({name: batch[name] for name in names},)
        if len(names) == 1 and isinstance(batch[names[0]], Tensor):
            found: Tensor = batch[names[0]]
            return found
        if self.call == "positional":
            return tuple(batch[name] for name in names)
        return {name: batch[name] for name in names}

    def evaluate(self, model: nn.Module, data: Data, watch: Watch | None = None) -> dict[str, float]:
        """Every metric over all of `data`, whatever the batches; `model` is in eval mode. `watch` gets the `answers` to
        every batch, where there are any.
        """
        device = next(model.parameters()).device
        own, others = self.measures(), {name: deepcopy(measure) for name, measure in self.metrics.items()}
        for measure in (*own.values(), *others.values()):
            measure.to(device)
        loss, count = 0.0, 0.0
        for batch in data.to(device).batches(consecutive(len(data), self.evaluation_batch)):
            outputs = call(self, model, batch)
            loss += float(self.loss(outputs, batch))
            count += float(self.count(batch))
            answered = None if watch is None else self.answers(outputs, batch)
            if watch is not None and answered is not None:
                watch(*answered)
            for where, measures, give in (("measures()", own, self.predictions), ("metrics", others, self.measured)):
                found = give(outputs, batch) if measures else ()
                for name, measure in measures.items():
                    _update(f"task.{where}.{name}", measure, found)
        if not count:
            raise DataError("task: nothing in these data counts, so that there is no mean: give labels")
        mean = loss / count
        values = self.derived(mean) | {"loss": mean}
        for where, measures in (("measures()", own), ("metrics", others)):
            values |= {name: _value(f"task.{where}.{name}", measure) for name, measure in measures.items()}
        return {metric.name: values[metric.name] for metric in self.all_metrics()}


def _update(name: str, measure: torchmetrics.Metric, found: Sequence[Tensor]) -> None:
    """Raise `ConfigurationError` where a torchmetrics object is not for such predictions and targets."""
    try:
        measure.update(*found)
    except FAILURES as error:
        given = " and ".join(f"{str(one.dtype).removeprefix('torch.')} {list(one.shape)}" for one in found)
        raise ConfigurationError(
            f"{name}: {type(measure).__name__} takes no predictions and targets that are {given} "
            f"({kind_and_message(error)}): give a metric that does, or a task whose measured() fits it"
        ) from error


def _value(name: str, measure: torchmetrics.Metric) -> float:
    try:
        return value_of(measure)
    except FAILURES as error:
        raise ConfigurationError(
            f"{name}: {type(measure).__name__} has no single number ({kind_and_message(error)}): give one that averages"
        ) from error


def targets_of(name: str, task: Task, data: Data, batch: Batch) -> Tensor:
    """The column that `task`, called `name`, predicts: of all examples that are in memory, otherwise those of `batch`.

    Raises `DataError` where there is none.
    """
    targets = data[task.targets] if isinstance(data, Examples) and task.targets in data else batch.get(task.targets)
    if not isinstance(targets, Tensor):
        raise DataError(f"task={name}: no column {task.targets} in the data; they have {', '.join(batch)}")
    return targets


def call(task: Task, model: nn.Module, batch: Batch) -> Any:
    """The model's outputs."""
    positional, named = arguments(task.inputs(batch))
    return model(*positional, **named)


def mean_loss(task: Task) -> Callable[[nn.Module, Batch], Tensor]:
    """The loss that scorers see."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return task.loss(call(task, model, batch), batch) / task.count(batch)

    return loss


def widened(outputs: Tensor) -> Tensor:
    """`outputs` in at least float32: sums of losses in half precision stop growing."""
    return outputs.float() if outputs.dtype in (torch.float16, torch.bfloat16) else outputs


def counts(task: Task) -> Callable[[Batch], float] | None:
    """The `count` of a task for `Evidence`; None where examples count 1 each."""
    if type(task).count is Task.count:
        return None
    return lambda batch: float(task.count(batch))


@torch.no_grad()
def evaluate(task: Task, model: nn.Module, data: Data, watch: Watch | None = None) -> dict[str, float]:
    """`task.evaluate` in eval mode; modes, buffers and random state are put back."""
    with untouched(model), eval_mode(model):
        return task.evaluate(model, data) if watch is None else task.evaluate(model, data, watch)
