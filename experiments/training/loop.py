"""One training loop. Data are read in the order of a permutation of (seed, epoch): columns on the device, or a Dataset.

A training is a range of steps in the order of its data, so that it can begin and end anywhere in it: at a rewind point,
or where a checkpoint was written. Whatever it draws at random is begun anew with every epoch.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from experiments.training.checkpoints import Checkpoints
from experiments.training.state import Course, Epoch, restored, saved
from experiments.data import Batch, Data
from experiments.data.examples import chunks, cut, rows_of, take
from experiments.training.execution import execution_of
from experiments.runtime.processes import first, on_cpu, rank, world
from experiments.runtime.progress import Progress
from experiments.runtime.seeding import derived_seed, generator, reseed, seeded
from experiments.tasks import Task, call, evaluate
from pruning import Masks
from pruning.dynamic import Held
from pruning.errors import ConfigurationError, MaskError
from pruning.execution import Choose, Execution, masked
from pruning.rewind import RewindPoint

if TYPE_CHECKING:
    from accelerate import Accelerator

log = logging.getLogger("experiments")

Augmentation = Callable[[Tensor, torch.Generator], Tensor]
Regime = Callable[[nn.Module, Optimizer], Held]
"""From a model and its optimizer to masks that change while it trains: see `pruning.dynamic`."""


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
        steps: the optimizer steps that are done, by their numbers in the order of the data, where an epoch follows the
            other; an empty range leaves the network as it is.
        total: steps over which `factor` is spread.
        batch_size: examples a step; the last step of an epoch takes what is left, and a single example left over joins
            the step before it: batch norm cannot train on one.
        optimizer: from parameters to an optimizer; its own learning rate is the base rate.
        factor: from progress in [0, 1), the number of a step by `total`, to a factor of the base rate.
        seed: of data order, augmentation and dropout.
        accumulate: parts into which a batch is cut to save memory; the step is the same, unless batch norm or dropout
            see the parts.
        clip: largest norm of the whole gradient, or None.
        best_on_validation: end with the weights of the epoch whose headline metric on the validation part is the best
            of *this* training.
        keep_end: give back a rewind point of the end.
    """

    steps: range
    total: int
    batch_size: int
    optimizer: Callable[[Iterator[nn.Parameter]], Optimizer]
    factor: Callable[[float], float]
    seed: int
    accumulate: int = 1
    clip: float | None = None
    best_on_validation: bool = False
    augment: Augmentation | None = None
    keep_end: bool = False


@dataclass(frozen=True)
class Trained:
    """What a training gives besides the weights of its model.

    Attributes:
        epochs: one after the other.
        masks: at its end.
        end: a rewind point of its end, if the recipe asks for one.
        sparse: the weights that ran sparsely.
        diverged: the first step whose loss was not finite, where the last epoch's was not either.
    """

    epochs: list[Epoch]
    masks: Masks | None
    end: RewindPoint | None
    sparse: tuple[str, ...] = ()
    diverged: int | None = None


def accelerator(device: str = "auto", precision: str = "no") -> Accelerator:
    """A fresh Accelerator: its state is shared by a process, and the runs of a sweep may differ in precision."""
    from accelerate import Accelerator  # noqa: PLC0415  # slow to import
    from accelerate.state import AcceleratorState, GradientState  # noqa: PLC0415

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    made = Accelerator(cpu=on_cpu(device), mixed_precision=precision)
    if made.num_processes != world():  # each would train alone, on its share of every batch
        raise ConfigurationError(
            f"device={device}: accelerate sees {made.num_processes} of {world()} processes: set device=cpu"
        )
    return made


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Batches into which `count` examples are cut."""
    return len(_cut(torch.arange(count), batch_size))


def train(
    model: nn.Module,
    examples: Data,
    validation: Data,
    recipe: Recipe,
    task: Task,
    accelerated: Accelerator,
    masks: Masks | None = None,
    regime: Regime | None = None,
    begin: RewindPoint | None = None,
    progress: Progress | None = None,
    checkpoints: Checkpoints | None = None,
    choose: Choose = masked,
) -> Trained:
    """Train `model` in place; removed weights are zero at the end.

    Args:
        model: begins with the weights that it has.
        examples, validation: the data.
        recipe: how.
        task: what is learned.
        accelerated: device and precision; made for this training, as it keeps the models that it prepares.
        masks: hold throughout.
        regime: instead, masks that change.
        begin: whose optimizer state and random state the training begins with; None: fresh ones.
        progress: is told of every epoch.
        checkpoints: where it saves itself. What lies there is gone on with; who calls removes it in the end.
        choose: which layers run sparsely while masks hold on them; see `pruning.execution`.
    """
    device = accelerated.device
    model.to(device)
    optimizer = _optimizer(recipe, model)
    base_rates = [group["lr"] for group in optimizer.param_groups]
    examples, validation = examples.to(device), validation.to(device)
    length = steps_per_epoch(len(examples), recipe.batch_size)
    headline, warned = task.all_metrics()[0], False
    epochs = -(-len(recipe.steps) // length)
    prepared = accelerated.prepare(model)
    # accelerate's wrapper of an optimizer only matters to a gradient scaler, and costs a small network 5 % of a step
    stepper = optimizer if accelerated.scaler is None else accelerated.prepare(optimizer)
    course = Course(recipe.steps.start, torch.zeros((), device=device))
    with seeded(recipe.seed, "training", course.step // length):
        if begin is not None:
            begin.restore(optimizer=optimizer, random=True)
        held = _held(prepared, optimizer, None if masks is None else masks.to(device), regime)
        part = task.inputs(take(examples, -(-recipe.batch_size // recipe.accumulate), device))
        execution = None if held is None else execution_of(held, choose, part, accelerated)
        tree = None if checkpoints is None else checkpoints.read(device)
        if tree is not None:
            course = restored(tree, model, optimizer, execution, accelerated)
        prepared.train()
        began, last_saved = time.perf_counter() - course.seconds, time.monotonic()
        for batch in _upcoming(examples, recipe, task, range(course.step, recipe.steps.stop), length):
            number, place = divmod(course.step, length)
            if place == 0:
                reseed(recipe.seed, "training", number)
            factor = recipe.factor(course.step / recipe.total)
            for group, rate in zip(optimizer.param_groups, base_rates, strict=True):
                group["lr"] = rate * factor
            count = task.count(batch)
            course.add(_step(prepared, stepper, batch, count, recipe, task, accelerated, execution), count)
            ends = course.step % length == 0 or course.step == recipe.steps.stop
            found = evaluate(task, model, validation)[headline.name] if ends and recipe.best_on_validation else None
            course.seconds = time.perf_counter() - began
            if ends:
                epoch = course.close(
                    number, rate := optimizer.param_groups[0]["lr"], found, headline.higher_is_better, model
                )
                if course.diverged is not None and not warned:
                    log.warning(
                        "the loss is not finite at step %d, learning rate %g: lower optimizer.lr, or set training.clip",
                        *(course.diverged, rate),
                    )
                    warned = True
                began = time.perf_counter()
                if progress is not None:
                    progress.epoch(len(course.epochs), epochs, epoch.loss)
            if checkpoints is not None and first() and checkpoints.due(course.step, last_saved):
                checkpoints.write(saved(course, model, optimizer, execution, accelerated), device)
                last_saved = time.monotonic()
        sparse = () if execution is None else execution.dense()
        end = RewindPoint.capture(model, optimizer, step=course.step) if recipe.keep_end else None
    if course.best is not None:
        model.load_state_dict(course.best[1])
    diverged = course.diverged if course.epochs and not math.isfinite(course.epochs[-1].loss) else None
    if held is None:
        return Trained(course.epochs, None, end, diverged=diverged)
    if recipe.steps and not held.masks.agree(model):
        raise MaskError("removed weights came back in training: something writes to them past the optimizer")
    final = held.finish()
    final.apply_(model)
    return Trained(course.epochs, final, end, sparse, diverged)


def _optimizer(recipe: Recipe, model: nn.Module) -> Optimizer:
    try:
        return recipe.optimizer(p for p in model.parameters() if p.requires_grad)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"optimizer: {error}: check its options") from error


def _held(model: nn.Module, optimizer: Optimizer, masks: Masks | None, regime: Regime | None) -> Held | None:
    if regime is not None:
        return regime(model, optimizer)
    return None if masks is None else Held(model, optimizer, masks)


def batches(examples: Data, size: int, seed: int, epoch: int, numbers: slice = slice(None)) -> Iterator[Batch]:
    """The batches of an epoch, or those of `numbers` among them; each is a function of (seed, epoch, number)."""
    order = torch.randperm(len(examples), generator=generator(seed, "order", epoch))
    yield from examples.batches(_cut(order, size)[numbers], derived_seed(seed, "examples", epoch))


def _upcoming(examples: Data, recipe: Recipe, task: Task, steps: range, length: int) -> Iterator[Batch]:
    """The batches of `steps`, of which an epoch has `length`, as they are seen in training."""
    augmenting = type(task).augment is not Task.augment  # a generator takes as long as a small step's gathering
    for epoch in range(steps.start // length, -(-steps.stop // length)):
        first = max(0, steps.start - epoch * length)
        numbers = slice(first, min(length, steps.stop - epoch * length))
        for number, batch in enumerate(batches(examples, recipe.batch_size, recipe.seed, epoch, numbers), first):
            if recipe.augment is not None:
                noise = generator(recipe.seed, "augmentation", epoch, number)
                batch["inputs"] = recipe.augment(batch["inputs"], noise)
            if augmenting:
                batch = task.augment(batch, generator(recipe.seed, "task", epoch, number))
            yield batch


def _cut(order: Tensor, size: int) -> list[Tensor]:
    parts = list(order.split(size))
    if size > 1 and len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts


def _step(
    model: nn.Module,
    optimizer: Optimizer,
    batch: Batch,
    count: float | Tensor,
    recipe: Recipe,
    task: Task,
    accelerated: Accelerator,
    execution: Execution | None,
) -> Tensor:
    """One optimizer step on the mean over `count`; the sum of the losses of this process, on the device."""
    if execution is not None:
        execution.ready()
    optimizer.zero_grad()
    loss_sum = torch.zeros((), device=accelerated.device)
    own, counted = _share(rows_of(batch))
    # processes average their gradients; where nothing counts, nothing is learned
    weight = world() / count if counted and count else 0.0
    parts = chunks(cut(batch, own) if world() > 1 else batch, recipe.accumulate)
    for number, part in enumerate(parts, start=1):
        with nullcontext() if number == len(parts) else accelerated.no_sync(model):
            with accelerated.autocast():
                loss = task.loss(call(task, model, part), part, training=True)
            accelerated.backward(loss * weight)
        if counted:
            loss_sum += loss.detach()
    if recipe.clip is not None:
        accelerated.clip_grad_norm_(model.parameters(), recipe.clip)
    if execution is not None:
        execution.regime.before_step()
    optimizer.step()
    if execution is not None:
        execution.regime.after_step()
    return loss_sum


def _share(count: int) -> tuple[slice, bool]:
    """Which of `count` examples this process trains on, and whether they count.

    Nobody gets a single example, of which batch norm has no variance. Where there are too few for all, the last
    processes get some that do not count.
    """
    parts = max(1, min(world(), count // 2))
    if rank() >= parts:
        return slice(0, 2), False
    return slice(rank() * count // parts, (rank() + 1) * count // parts), True
