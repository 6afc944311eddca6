"""One training loop. Data are read in the order of a permutation of (seed, epoch): columns on the device, or a Dataset.

A training is a range of steps in the order of its data, so that it can begin and end anywhere in it: at a rewind point,
or where a checkpoint was written. Random generators are seeded again at every epoch.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from experiments.data import Batch, Data
from experiments.data.examples import chunks, cut, rows_of, take
from experiments.runtime.errors import kind_and_message
from experiments.runtime.processes import is_main_process, on_cpu, rank, world_size
from experiments.runtime.progress import Progress
from experiments.runtime.seeding import reseed, seeded
from experiments.store.attributes import Kept
from experiments.tasks import Task, call, evaluate
from experiments.training.batches import augmented, steps_per_epoch, upcoming
from experiments.training.checkpoints import Checkpoints
from experiments.training.execution import execution_of
from experiments.training.parts import Adapt, begun, has_gradients, optimizer_of, start_training, state_bytes, trainable
from experiments.training.recipe import Recipe
from experiments.training.state import Epoch, TrainingState, from_tree, to_tree
from pruning import Masks
from pruning.dynamic import FixedMasks, Regime
from pruning.errors import ConfigurationError, DataError, MaskError
from pruning.execution import Execution, ExecutionPolicy, masked
from pruning.rewind import RewindPoint

if TYPE_CHECKING:
    from accelerate import Accelerator

    from experiments.adaptation import Attached

log = logging.getLogger("experiments")

MakeRegime = Callable[[nn.Module, Optimizer], Regime]
"""Factory of masks that change during training, called with the model and its optimizer: see `pruning.dynamic`."""


Objective = Callable[[nn.Module, Batch], tuple[Tensor, Tensor]]
"""From a model and a batch to what is minimised, and the task's own loss, which is recorded: both sums."""

MakeObjective = Callable[[nn.Module, Task, Data, bool], tuple[Data, Objective]]
"""Factory of an objective, called with the model, the task, the examples and whether these are the same in every epoch;
it gives the examples back, with what the objective needs of each: see `experiments.distillation`.
"""


@dataclass(frozen=True)
class Trained:
    """Result of a training, besides the weights of its model.

    Attributes:
        epochs: their records, in order.
        masks: at its end; None for dense weights.
        end: a rewind point of its end, if the recipe asks for one.
        sparse: the weights that ran sparsely.
        diverged: the first step whose loss was not finite, where the last epoch's was not either and no better epoch is
            kept.
        first_loss: mean loss of the first step in which something counted; None where there was none.
        adapted: what was attached, if anything was; it is not finished.
        optimizer_bytes: size of the optimizer's state of what it trained of its own, at the end.
        steps: optimizer steps.
    """

    epochs: list[Epoch]
    masks: Masks | None
    end: RewindPoint | None
    sparse: tuple[str, ...] = ()
    diverged: int | None = None
    first_loss: float | None = None
    adapted: Attached | None = None
    optimizer_bytes: int = 0
    steps: int = 0


def accelerator(device: str = "auto", precision: str = "no") -> Accelerator:
    """A fresh Accelerator: its state is shared by a process, and the runs of a sweep may differ in precision."""
    from accelerate import Accelerator  # noqa: PLC0415  # slow to import
    from accelerate.state import AcceleratorState, GradientState  # noqa: PLC0415  # as accelerate itself

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    made = Accelerator(cpu=on_cpu(device), mixed_precision=precision)
    if made.num_processes != world_size():  # each would train alone, on its share of every batch
        raise ConfigurationError(
            f"device={device}: accelerate sees {made.num_processes} of {world_size()} processes: set device=cpu"
        )
    return made


def train(
    model: nn.Module,
    examples: Data,
    validation: Data,
    recipe: Recipe,
    task: Task,
    accelerated: Accelerator,
    masks: Masks | None = None,
    regime: MakeRegime | None = None,
    begin: RewindPoint | None = None,
    progress: Progress | None = None,
    checkpoints: Checkpoints | None = None,
    policy: ExecutionPolicy = masked,
    adapt: Adapt | None = None,
    objective: MakeObjective | None = None,
) -> Trained:
    """Train `model` in place; removed weights are zero at the end.

    Args:
        model: trained from the weights that it has.
        examples, validation: the data.
        recipe: how to train.
        task: what to learn.
        accelerated: device and precision; made for this training, as it keeps the models that it prepares.
        masks: hold throughout.
        regime: makes masks that change, instead of `masks`.
        begin: rewind point with the optimizer state and random state to begin with; None: fresh ones.
        progress: called after every epoch.
        checkpoints: checkpoints to write; an existing one is resumed. The caller deletes them afterwards.
        policy: which layers run sparsely while masks hold on them; see `pruning.execution`.
        adapt: attaches what is trained in the place of all weights, which is then left on the model; masks are its own
            business.
        objective: makes what is minimised, instead of the task's loss.
    """
    device = accelerated.device
    model.to(device)
    model, adapted, optimizer = begun(model, recipe, adapt)
    within = model if adapted is None else adapted
    base_rates = [group["lr"] for group in optimizer.param_groups]
    examples, validation = examples.to(device), validation.to(device)
    length, headline = steps_per_epoch(len(examples), recipe.batch_size), task.all_metrics()[0]
    prepared = accelerated.prepare(model) if has_gradients(model) else model  # DDP takes none without
    # accelerate's wrapper of an optimizer only matters to a gradient scaler, and costs a small network 5 % of a step
    stepper = optimizer if accelerated.scaler is None else accelerated.prepare(optimizer)
    state = TrainingState(recipe.steps.start, torch.zeros((), device=device))
    with seeded(recipe.seed, "training", state.step // length):
        if begin is not None:
            begin.restore(optimizer=optimizer, random=True)
        masking = _masking(prepared, optimizer, None if masks is None else masks.to(device), regime)
        part = task.inputs(take(examples, -(-recipe.batch_size // recipe.accumulate), device))
        execution = None if masking is None else execution_of(masking, policy, part, accelerated)
        tree = None if checkpoints is None else checkpoints.read(device)
        if tree is not None:
            state = from_tree(tree, model, optimizer, execution, accelerated, adapted)
        examples, learn = _objective_of(objective, model, task, examples, recipe)
        start_training(prepared, adapted is None and recipe.trainable is None)
        kept = None if tree is not None else Kept.of(model=model, task=task)
        began, last_saved = time.perf_counter() - state.seconds, time.monotonic()
        for batch in upcoming(examples, recipe, task, range(state.step, recipe.steps.stop), length):
            number, place = divmod(state.step, length)
            if place == 0:
                reseed(recipe.seed, "training", number)
            _set_rates(optimizer, base_rates, recipe.factor(state.step / recipe.total))
            count = task.count(batch)
            state.add(_step(prepared, stepper, batch, count, recipe, learn, accelerated, execution, adapted), count)
            if kept is not None:  # asked once, after the first step
                checkpoints, kept = (None if kept.report_changes() else checkpoints), None
            ends = state.step % length == 0 or state.step == recipe.steps.stop
            state.seconds = time.perf_counter() - began
            found = evaluate(task, model, validation)[headline.name] if ends and recipe.best_on_validation else None
            if ends:
                epoch = state.close(number, optimizer.param_groups[0]["lr"], found, headline.higher_is_better, within)
                began = time.perf_counter()
                if progress is not None:
                    progress.epoch(len(state.epochs), -(-len(recipe.steps) // length), epoch.loss)
            if checkpoints is not None and is_main_process() and checkpoints.due(state.step, last_saved):
                checkpoints.write(to_tree(state, model, optimizer, execution, accelerated, adapted), device)
                last_saved = time.monotonic()
        sparse = () if execution is None else execution.dense()
        end = RewindPoint.capture(model, optimizer, step=state.step) if recipe.keep_end else None
    if state.best is not None:
        within.load_state_dict(state.best[1])
    final = None if masking is None else _finished(masking, model, trained=bool(recipe.steps))
    accelerated.unwrap_model(prepared, keep_fp32_wrapper=False)  # what follows is in full precision
    held = 0 if adapted is None else state_bytes(optimizer, adapted.own().values())
    return Trained(state.epochs, final, end, sparse, state.lost, state.first_loss, adapted, held, len(recipe.steps))


def _finished(masking: Regime, model: nn.Module, trained: bool) -> Masks:
    """The masks at the end, which hold in `model`."""
    if trained and not masking.masks.agree(model):
        raise MaskError("removed weights came back in training: something writes to them past the optimizer")
    final = masking.finish()
    final.apply_(model)
    return final


def check_recipe(recipe: Recipe, model: nn.Module, examples: Data) -> None:
    """Raise one-line errors for an optimizer that cannot be made of `model`, and an augmentation that fails on the
    first of `examples`.
    """
    optimizer_of(recipe, trainable(model, recipe))
    if recipe.augment is None:
        return
    batch = take(examples, 4)
    try:
        changed_inputs = augmented(recipe.augment, batch, torch.Generator().manual_seed(0))["inputs"]
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise DataError(f"data.augment: fails on the data's inputs ({kind_and_message(error)})") from error
    if len(changed_inputs) != len(batch["inputs"]):
        raise DataError("data.augment: gives another number of examples: give back as many")


def _set_rates(optimizer: Optimizer, base_rates: list[float], factor: float) -> None:
    for group, rate in zip(optimizer.param_groups, base_rates, strict=True):
        group["lr"] = rate * factor


def _masking(model: nn.Module, optimizer: Optimizer, masks: Masks | None, regime: MakeRegime | None) -> Regime | None:
    """The regime of a training: the one that `regime` makes, or `masks` throughout; None for dense weights."""
    if regime is not None:
        return regime(model, optimizer)
    return None if masks is None else FixedMasks(model, optimizer, masks)


def _step(
    model: nn.Module,
    optimizer: Optimizer,
    batch: Batch,
    count: float | Tensor,
    recipe: Recipe,
    learn: Objective,
    accelerated: Accelerator,
    execution: Execution | None,
    adapted: Attached | None,
) -> Tensor:
    """One optimizer step on the mean over `count`; the sum of the task's losses of this process, on the device."""
    if execution is not None:
        execution.ready()
    optimizer.zero_grad()
    loss_sum = torch.zeros((), device=accelerated.device)
    own, counted = _share(rows_of(batch))
    # processes average their gradients; where nothing counts, nothing is learned
    count = count.double() if isinstance(count, Tensor) else count  # an integer tensor would divide in float32
    weight = world_size() / count if counted and count else 0.0
    parts = chunks(cut(batch, own) if world_size() > 1 else batch, recipe.accumulate)
    for number, part in enumerate(parts, start=1):
        with nullcontext() if number == len(parts) else accelerated.no_sync(model):
            with accelerated.autocast():
                minimised, loss = learn(model, part)
            accelerated.backward(minimised * weight)
        if counted:
            loss_sum += loss.detach()
    if recipe.clip is not None:
        # Looked up now: execution puts others in the place of masked weights
        accelerated.clip_grad_norm_(model.parameters() if adapted is None else adapted.parameters(), recipe.clip)
    if execution is not None:
        execution.regime.before_step()
    optimizer.step()
    if execution is not None:
        execution.regime.after_step()
    return loss_sum


def _objective_of(
    objective: MakeObjective | None, model: nn.Module, task: Task, examples: Data, recipe: Recipe
) -> tuple[Data, Objective]:
    """The examples and the objective of a training: the task's loss alone where none is asked for."""
    if objective is None:
        return examples, partial(_task_alone, task)
    return objective(model, task, examples, recipe.augment is None and type(task).augment is Task.augment)


def _task_alone(task: Task, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """The task's loss, to be minimised and to be recorded."""
    loss = task.loss(call(task, model, batch), batch, training=True)
    return loss, loss


def _share(count: int) -> tuple[slice, bool]:
    """The examples, of `count` in a batch, that this process trains on, and whether they count.

    No process gets a single example: batch norm has no variance of it. Where there are too few for all processes, the
    last ones get two that do not count.
    """
    parts = max(1, min(world_size(), count // 2))
    if rank() >= parts:
        return slice(0, 2), False
    return slice(rank() * count // parts, (rank() + 1) * count // parts), True
