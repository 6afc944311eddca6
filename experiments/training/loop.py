"""One training loop. Data are read in the order of a permutation of (seed, epoch): columns on the device, or a Dataset.

A training is a range of steps in the order of its data, so that it can begin and end anywhere in it: at a rewind point,
or where a checkpoint was written. Random generators are seeded again at every epoch.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

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
from experiments.training.recipe import Recipe
from experiments.training.state import Epoch, TrainingState, from_tree, to_tree
from pruning import Masks, prunable
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

Adapt = Callable[[nn.Module], "Attached"]
"""Attaches an adaptation to a model: see `experiments.adaptation`."""

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
    model, adapted, optimizer = _begun(model, recipe, adapt)
    within = model if adapted is None else adapted
    base_rates = [group["lr"] for group in optimizer.param_groups]
    examples, validation = examples.to(device), validation.to(device)
    length = steps_per_epoch(len(examples), recipe.batch_size)
    prepared = accelerated.prepare(model) if _has_gradients(model) else model  # DDP takes none without
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
            found = _headline(task, model, validation) if ends and recipe.best_on_validation else None
            if ends:
                epoch = state.close(number, optimizer.param_groups[0]["lr"], found, _better(task), within)
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


def _better(task: Task) -> bool:
    return task.all_metrics()[0].higher_is_better


def _headline(task: Task, model: nn.Module, data: Data) -> float:
    return evaluate(task, model, data)[task.all_metrics()[0].name]


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
    _optimizer(recipe, _trainable(model, recipe))
    if recipe.augment is None:
        return
    batch = take(examples, 4)
    try:
        changed_inputs = augmented(recipe.augment, batch, torch.Generator().manual_seed(0))["inputs"]
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise DataError(f"data.augment: fails on the data's inputs ({kind_and_message(error)})") from error
    if len(changed_inputs) != len(batch["inputs"]):
        raise DataError("data.augment: gives another number of examples: give back as many")


def _begun(model: nn.Module, recipe: Recipe, adapt: Adapt | None) -> tuple[nn.Module, Attached | None, Optimizer]:
    """The model that is called, what is attached to it, and the optimizer of what is trained."""
    if adapt is None:
        return model, None, _optimizer(recipe, _trainable(model, recipe))
    adapted = adapt(model)
    return adapted.model, adapted, check_adapted(recipe, adapted)


def check_adapted(recipe: Recipe, adapted: Attached) -> Optimizer:
    """The optimizer of what is attached, which follows it. Raises one-line errors where it cannot be."""
    optimizer = _optimizer(recipe, list(adapted.parameters()), adapted)
    adapted.follow(optimizer)
    return optimizer


def _has_gradients(model: nn.Module) -> bool:
    """Whether any parameter gets a gradient that is its own, and not left to a sparse update."""
    ignored = set(getattr(model, "_ddp_params_and_buffers_to_ignore", ()))
    return any(p.requires_grad and name not in ignored for name, p in model.named_parameters())


def _trainable(model: nn.Module, recipe: Recipe) -> list[nn.Parameter]:
    """What a training without an adaptation trains; all other parameters get no gradient."""
    if recipe.trainable is None:
        return [p for p in model.parameters() if p.requires_grad]
    chosen = list(prunable(model, include=list(recipe.trainable)).values())
    kept = set(map(id, chosen))
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in kept)
    return chosen


def start_training(model: nn.Module, whole: bool) -> None:
    """Put `model` in training mode. Where it is not trained as a `whole`, batch norms of which nothing is trained keep
    their statistics: a frozen network stays what it is.
    """
    model.train()
    if whole or all(parameter.requires_grad for parameter in model.parameters()):
        return
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase) and not any(p.requires_grad for p in module.parameters()):
            module.eval()


def state_bytes(optimizer: Optimizer, parameters: Iterable[nn.Parameter]) -> int:
    """Bytes of the tensors that an optimizer keeps of these parameters."""
    states = (optimizer.state.get(parameter, {}) for parameter in parameters)
    return sum(value.nbytes for state in states for value in state.values() if isinstance(value, Tensor))


def _optimizer(recipe: Recipe, trained: Sequence[nn.Parameter], adapted: Attached | None = None) -> Optimizer:
    """The recipe's optimizer; what an adaptation trains of its own has its own rate."""
    groups: Any = list(trained)
    if adapted is not None:
        parts = [(adapted.own().values(), adapted.rate), (adapted.dense.values(), adapted.dense_rate)]
        groups = [
            {"params": list(parameters), **({} if rate is None else {"lr": rate})}
            for parameters, rate in parts
            if parameters
        ]
    try:
        return recipe.optimizer(groups)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"optimizer: {error}: check its options") from error


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
