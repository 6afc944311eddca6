"""Whether data, model and task fit together, found before anything is trained."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from experiments.data.examples import Batch, Examples, Splits, chunks, rows_of, take
from experiments.runtime.errors import kind_and_message
from experiments.tasks.task import FAILURES, Task, call
from pruning.errors import ConfigurationError, DataError, ModelError, ScoreError
from pruning.evidence import untouched


@torch.no_grad()
def check_fit(task: Task, model: nn.Module, splits: Splits, what: str, trained: bool = True) -> None:
    """Raise a one-line error where data do not fit the task, `model` cannot be called with them, or its loss fails; in
    train mode too, if it is to be `trained`.
    """
    if not isinstance(splits, Splits):
        raise DataError(f"data.load: returns {type(splits).__name__}: give experiments.data.Splits")
    for name in ("test", "validation", "train"):
        data = getattr(splits, name)
        try:
            task.check(data, take(data, 4))
        except DataError as error:
            raise DataError(f"{error} (in the {name} part)") from error
    with untouched(model):
        model.eval()
        batch = take(splits.train, 4)
        _check_own(task, model, batch, _called(task, model, batch, what))
        if trained:
            model.train()
            _called(task, model, take(splits.train, 4), f"{what}, in train mode,")


def _called(task: Task, model: nn.Module, batch: Batch, what: str) -> Any:
    """The loss of `batch`. Raises a one-line error where the model or the loss fails."""
    columns = ", ".join(f"{name} {list(rows.shape)}" for name, rows in batch.items() if isinstance(rows, Tensor))
    try:
        outputs = call(task, model, batch)
    except FAILURES as error:
        raise ModelError(f"{what}: cannot be called with the data's {columns} ({kind_and_message(error)})") from error
    try:
        return task.loss(outputs, batch, training=model.training)
    except (ModelError, ScoreError) as error:  # the second of outputs that are no tensor
        raise ModelError(f"{what}: {error}") from error
    except FAILURES as error:
        given = list(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ModelError(
            f"{what}: gives {given} for {columns}, but the loss of task={type(task).__name__} fails "
            f"({kind_and_message(error)})"
        ) from error


def _check_own(task: Task, model: nn.Module, batch: Batch, loss: Any) -> None:
    """Raise `ConfigurationError` where a task that is not ours lacks something, or averages its loss."""
    name = f"task={type(task).__name__}"
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise ConfigurationError(f"{name}: its loss is no single number: give a sum over the batch")
    try:
        metrics = task.all_metrics()
    except NotImplementedError as error:
        raise ConfigurationError(f"{name}: has no metrics: define described(self)") from error
    if type(task).__module__.startswith("experiments.tasks.") and not task.metrics:
        return  # torchmetrics takes seconds to import, and a run that is finished needs none
    alone = [float(task.loss(call(task, model, one), one)) for one in chunks(batch, rows_of(batch))]
    total = math.fsum(alone)
    close = abs(float(loss) - total) <= 1e-3 * max(map(abs, (total, *alone)))  # not where an example's is NaN
    if task.additive and math.isfinite(float(loss)) and not close:
        raise ConfigurationError(
            f"{name}: its loss of {len(alone)} examples together is {float(loss):.4g}, and {total:.4g} one by one: give"
            ' the sum, as by reduction="sum", and its denominator by count(); or set additive = False in a task whose '
            "loss is of whole batches"
        )
    try:
        found = task.evaluate(model, Examples(**batch))
    except FAILURES as error:
        raise ConfigurationError(f"{name}: cannot be evaluated ({kind_and_message(error)})") from error
    lacking = [metric.name for metric in metrics if not isinstance(found.get(metric.name), float)]
    if lacking:
        raise ConfigurationError(f"{name}: evaluate() gives no number for {', '.join(lacking)}")
