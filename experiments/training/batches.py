"""Batches: the order of data as a function of seed and epoch."""

from collections.abc import Iterator

import torch
from torch import Tensor

from experiments.data import Batch, Data
from experiments.runtime.seeding import derived_seed, generator
from experiments.tasks import Task
from experiments.training.recipe import Augmentation, Recipe
from pruning.errors import DataError


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Batches into which `count` examples are cut."""
    return len(_cut(torch.arange(count), batch_size))


def batches(examples: Data, size: int, seed: int, epoch: int, numbers: slice = slice(None)) -> Iterator[Batch]:
    """The batches of an epoch, or those of `numbers` among them; each is a function of (seed, epoch, number)."""
    order = torch.randperm(len(examples), generator=generator(seed, "order", epoch))
    yield from examples.batches(_cut(order, size)[numbers], derived_seed(seed, "examples", epoch))


def upcoming(examples: Data, recipe: Recipe, task: Task, steps: range, length: int) -> Iterator[Batch]:
    """The batches of `steps`, augmented as in training; an epoch has `length` steps."""
    augmenting = type(task).augment is not Task.augment  # a generator takes as long as a small step's gathering
    for epoch in range(steps.start // length, -(-steps.stop // length)):
        begin = max(0, steps.start - epoch * length)
        numbers = slice(begin, min(length, steps.stop - epoch * length))
        for number, batch in enumerate(batches(examples, recipe.batch_size, recipe.seed, epoch, numbers), begin):
            if recipe.augment is not None:
                batch = augmented(recipe.augment, batch, generator(recipe.seed, "augmentation", epoch, number))
            if augmenting:
                batch = task.augment(batch, generator(recipe.seed, "task", epoch, number))
            yield batch


def augmented(augment: Augmentation, batch: Batch, noise: torch.Generator) -> Batch:
    """`batch` with its column "inputs" changed."""
    if "inputs" not in batch:
        raise DataError(
            f"data.augment: changes the column inputs, and the data have {', '.join(batch)}: set data.augment=null"
        )
    return batch | {"inputs": augment(batch["inputs"], noise)}


def _cut(order: Tensor, size: int) -> list[Tensor]:
    parts = list(torch.split(order, size))
    if size > 1 and len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts
