"""One training loop, and evaluation. Data are tensors on the device, sliced by a permutation of (seed, epoch)."""

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from experiments.data import Examples
from experiments.progress import Progress
from experiments.seeding import generator, seeded
from pruning import Masks
from pruning.errors import ConfigurationError, MaskError

Augmentation = Callable[[Tensor, torch.Generator], Tensor]
_EVALUATION_BATCH = 1000


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
        epochs: passes over the training data; 0 leaves the network as it is.
        batch_size: examples a step; the last step of an epoch takes what is left, and a single example left over joins
            the step before it: batch norm cannot train on one.
        optimizer: from parameters to an optimizer; its own learning rate is the base rate.
        factor: from progress in [0, 1) through this training to a factor of the base rate.
        seed: of data order, augmentation and dropout.
        first_epoch: number of the first epoch in the order of the data; any epoch can be replayed.
        accumulate: parts into which a batch is cut to save memory; the step is the same, unless batch norm or dropout
            see the parts.
        clip: largest norm of the whole gradient, or None.
        label_smoothing: in [0, 1).
        best_on_validation: end with the weights of the epoch with the best validation accuracy of *this* training.
    """

    epochs: int
    batch_size: int
    optimizer: Callable[[Iterator[nn.Parameter]], Optimizer]
    factor: Callable[[float], float]
    seed: int
    first_epoch: int = 0
    accumulate: int = 1
    clip: float | None = None
    label_smoothing: float = 0.0
    best_on_validation: bool = False
    augment: Augmentation | None = None


@dataclass(frozen=True)
class Measured:
    """Accuracy in [0, 1] = correct / seen, and the mean cross-entropy over all examples."""

    accuracy: float
    loss: float


@dataclass(frozen=True)
class Epoch:
    """What one epoch left: its number, learning rate at its end, mean training loss, validation, seconds."""

    number: int
    learning_rate: float
    loss: float
    validation_accuracy: float | None
    seconds: float


def accelerator(device: str = "auto", precision: str = "no") -> Accelerator:
    """A fresh Accelerator: its state is shared by a process, and the runs of a sweep may differ in precision."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    return Accelerator(cpu=device == "cpu", mixed_precision=precision)


def train(
    model: nn.Module,
    examples: Examples,
    validation: Examples,
    recipe: Recipe,
    accelerated: Accelerator,
    masks: Masks | None = None,
    progress: Progress | None = None,
) -> list[Epoch]:
    """Train `model` in place, under `masks` if given; its removed weights are zero at the end. The epochs' records."""
    device = accelerated.device
    model.to(device)
    try:
        optimizer = recipe.optimizer(p for p in model.parameters() if p.requires_grad)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"optimizer: {error}: check its options") from error
    base_rates = [group["lr"] for group in optimizer.param_groups]
    examples, validation = examples.to(device), validation.to(device)
    total = recipe.epochs * len(_cut(torch.arange(len(examples)), recipe.batch_size))
    history: list[Epoch] = []
    best: tuple[float, dict[str, Tensor]] | None = None
    step = 0
    held = nullcontext() if masks is None else masks.to(device).attach(model, optimizer)
    prepared = accelerated.prepare(model)
    # accelerate's wrapper of an optimizer only matters to a gradient scaler, and costs a small network 5 % of a step
    stepper = optimizer if accelerated.scaler is None else accelerated.prepare(optimizer)
    with held, seeded(recipe.seed, "training", recipe.first_epoch):
        for number in range(recipe.first_epoch, recipe.first_epoch + recipe.epochs):
            start = time.perf_counter()
            prepared.train()
            loss_sum = torch.zeros((), device=device)
            for inputs, targets in batches(examples, recipe.batch_size, recipe.seed, number, recipe.augment):
                factor = recipe.factor(step / total)
                for group, rate in zip(optimizer.param_groups, base_rates, strict=True):
                    group["lr"] = rate * factor
                loss_sum += _step(prepared, stepper, inputs, targets, recipe, accelerated)
                step += 1
            accuracy = None
            if recipe.best_on_validation:
                accuracy = evaluate(model, validation).accuracy
                if best is None or accuracy > best[0]:
                    best = accuracy, {name: value.clone() for name, value in model.state_dict().items()}
            loss = float(loss_sum) / len(examples)
            seconds = time.perf_counter() - start
            history.append(Epoch(number, optimizer.param_groups[0]["lr"], loss, accuracy, seconds))
            if progress is not None:
                progress.epoch(number - recipe.first_epoch + 1, recipe.epochs, loss)
    if best is not None:
        model.load_state_dict(best[1])
    accelerated.free_memory()  # it would keep every model that it ever prepared
    if masks is not None:
        if recipe.epochs and not masks.agree(model):
            raise MaskError("removed weights came back in training: something writes to them past the optimizer")
        masks.apply_(model)
    return history


def batches(
    examples: Examples, size: int, seed: int, epoch: int, augment: Augmentation | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of an epoch, in an order that is a function of (seed, epoch)."""
    order = torch.randperm(len(examples), generator=generator(seed, "order", epoch)).to(examples.inputs.device)
    noise = generator(seed, "augmentation", epoch)
    for chosen in _cut(order, size):
        inputs = examples.inputs[chosen]
        yield (inputs if augment is None else augment(inputs, noise)), examples.targets[chosen]


def _cut(order: Tensor, size: int) -> list[Tensor]:
    parts = list(order.split(size))
    if size > 1 and len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts


@torch.no_grad()
def evaluate(model: nn.Module, examples: Examples) -> Measured:
    """Accuracy and loss in eval mode; the model's mode is put back."""
    device = next(model.parameters()).device
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    correct, loss = 0, 0.0
    for start in range(0, len(examples), _EVALUATION_BATCH):
        inputs = examples.inputs[start : start + _EVALUATION_BATCH].to(device)
        targets = examples.targets[start : start + _EVALUATION_BATCH].to(device)
        outputs = model(inputs)
        correct += int((outputs.argmax(1) == targets).sum())
        loss += float(F.cross_entropy(outputs.float(), targets, reduction="sum"))
    for module, training in modes:
        module.training = training
    return Measured(correct / len(examples), loss / len(examples))


def _step(
    model: nn.Module,
    optimizer: Optimizer,
    inputs: Tensor,
    targets: Tensor,
    recipe: Recipe,
    accelerated: Accelerator,
) -> Tensor:
    """One optimizer step; the sum of the losses of its examples, on the device."""
    optimizer.zero_grad()
    loss_sum = torch.zeros((), device=inputs.device)
    for part, wanted in zip(inputs.chunk(recipe.accumulate), targets.chunk(recipe.accumulate), strict=True):
        with accelerated.autocast():
            outputs = model(part)
            loss = F.cross_entropy(outputs, wanted, label_smoothing=recipe.label_smoothing, reduction="sum")
        accelerated.backward(loss / len(inputs))
        loss_sum += loss.detach()
    if recipe.clip is not None:
        accelerated.clip_grad_norm_(model.parameters(), recipe.clip)
    optimizer.step()
    return loss_sum
