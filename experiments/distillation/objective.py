"""What a student minimises: its task's loss and a distillation loss, with a teacher whose weights stay."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from experiments.data import Batch, Data
from experiments.data.examples import Examples, consecutive, take
from experiments.distillation.loss import DistillationLoss
from experiments.distillation.passes import Pass, forward, undisturbed, with_attention
from experiments.tasks import Task
from pruning.errors import ConfigurationError
from pruning.evidence import output_tensor, untouched

Learn = Callable[[nn.Module, Batch], tuple[Tensor, Tensor]]
"""From the student and a batch to what is minimised, and the task's own loss: both sums over all that counts."""

LIMIT = 2**28
"""Bytes of a teacher's outputs for all examples, up to which they are kept; above they are computed as they come."""

TAUGHT = "the teacher's outputs"
"""The column that has those which are kept."""


def begin(
    loss: DistillationLoss,
    alpha: float,
    teacher: nn.Module,
    student: nn.Module,
    task: Task,
    examples: Data,
    fixed: bool,
) -> tuple[Data, Learn]:
    """The examples of a training, and what it minimises: (1 - alpha) · task + alpha · `loss`.

    The teacher is in eval mode and in full precision, as it is evaluated. Where a loss needs its outputs alone, the
    examples are in memory and they are `fixed`, the same in every epoch, its outputs are computed once, in the order of
    the data, and kept as a further column up to `LIMIT`. Otherwise it is called with each batch; the difference is
    rounding.

    Args:
        alpha: in [0, 1].
        teacher, student: changed in place: the teacher moves to the device of the student, both to an attention that
            can be read where it is compared.
        examples: on that device.
        fixed: whether a training sees them as they are, each time.

    Raises:
        ConfigurationError: the teacher lacks a module that is compared. `ModelError`: a model without attention.
    """
    device = next(student.parameters()).device
    teacher.to(device).eval().requires_grad_(False)
    modules, attends = loss.modules(student), loss.attends
    there = {name for name, _ in teacher.named_modules()}
    lacking = [name for name in modules if name not in there]
    if lacking:
        raise ConfigurationError(
            f"distillation.layers: the teacher has no {lacking[0]}: choose a teacher of the student's form, or "
            "distillation=logits"
        )
    if attends:
        for model in (student, teacher):
            with_attention(model)
            with undisturbed(device), untouched(model):  # the first pass installs hooks, which is no change in training
                forward(task, model.eval(), take(examples, 1, device), attention=True)
    if fixed and loss.outputs_alone and isinstance(examples, Examples):
        kept = _outputs(teacher, task, examples, device)
        if kept is not None:
            examples = Examples(**examples, **{TAUGHT: kept})

    def learn(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        given = batch.get(TAUGHT)
        batch = {name: column for name, column in batch.items() if name != TAUGHT}
        if given is None:
            seen = {name: tree_map(Tensor.clone, column) for name, column in batch.items()}  # models may write into it
            with undisturbed(device):
                teachers = forward(task, teacher, seen, modules, attends)
        else:
            teachers = Pass(given)
        own = forward(task, model, batch, modules, attends)
        plain = task.loss(own.outputs, batch, training=True)
        taught = alpha * loss(own, teachers, task, batch)
        return taught if alpha == 1 else (1 - alpha) * plain + taught, plain

    return examples, learn


def _outputs(teacher: nn.Module, task: Task, examples: Examples, device: torch.device) -> Tensor | None:
    """The teacher's output tensor for all examples, [n, …]; None where that is more than `LIMIT`, or it has no row an
    example.
    """
    found: list[Tensor] = []
    chosen = consecutive(len(examples), task.evaluation_batch)
    for part, batch in zip(chosen, examples.batches(chosen), strict=True):
        with undisturbed(device):
            outputs = output_tensor(forward(task, teacher, batch).outputs)
        rows = part.stop - part.start
        if not outputs.dim() or len(outputs) != rows:
            return None
        if outputs.nbytes // rows * len(examples) > LIMIT:
            return None
        found.append(outputs)
    return torch.cat(found)
