"""Prune LeNet-300-100 at initialisation and train what is left: the experiment of many papers, small."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import partial

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.data import Examples, Splits
from experiments.models import mlp
from experiments.results.intervals import Interval, mean_interval
from experiments.runtime.seeding import generator, seeded
from experiments.tasks import Classification, evaluate
from experiments.training.batches import steps_per_epoch
from experiments.training.learning_rate import step
from experiments.training.loop import accelerator, train
from experiments.training.recipe import Recipe
from pruning import Evidence, Masks, prunable, prune
from pruning.evidence import Scorer

MILESTONES = (1 / 3, 2 / 3)


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The mean loss."""
    return F.cross_entropy(model(batch[0]), batch[1])


def initial(data: Examples, seed: int, hidden: Sequence[int] = (300, 100)) -> nn.Module:
    """LeNet-300-100, or another width, with Glorot normal weights that are a function of the seed."""
    classes = int(data["targets"].max()) + 1
    with seeded(seed, "initialisation"):
        return mlp(list(data["inputs"].shape[1:]), classes, hidden=hidden, init="xavier_normal")


def batch(data: Examples, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """The examples on which scores at initialisation are taken."""
    chosen = torch.randperm(len(data), generator=generator(seed, "scoring"))[:size]
    return data["inputs"][chosen], data["targets"][chosen]


def pruned(
    model: nn.Module, scorer: Scorer, densities: Sequence[float], batches: Sequence[tuple[Tensor, Tensor]]
) -> Masks:
    """Masks after scoring and global pruning to each of `densities` in turn; `model` itself stays as it is."""
    model = deepcopy(model)
    parameters = prunable(model)
    masks = Masks.dense(parameters)
    for density in densities:
        masks = prune(scorer(Evidence(model, parameters, batches, cross_entropy, masks)), density, within=masks)
        masks.apply_(model)
    return masks


def trained(
    model: nn.Module, splits: Splits, epochs: int, seed: int, masks: Masks | None = None, rate: float = 0.1
) -> float:
    """Train `model` in place as Lee et al. 2019 do, and return its test error in percent.

    SGD with momentum 0.9, batches of 100, weight decay 5e-4; the rate falls to a tenth at each third of the training.
    """
    optimizer = partial(torch.optim.SGD, lr=rate, momentum=0.9, weight_decay=5e-4, fused=True)
    total = epochs * steps_per_epoch(len(splits.train), 100)
    recipe = Recipe(range(total), total, 100, optimizer, partial(step, milestones=MILESTONES, gamma=0.1), seed)
    assert isinstance(splits.train, Examples)
    task = Classification(classes=int(splits.train["targets"].max()) + 1)
    train(model, splits.train, splits.validation, recipe, task, accelerator("cpu"), masks)
    return 100 * (1 - evaluate(task, model, splits.test)["accuracy"])


def paired(rows: pd.DataFrame, value: str, first: Mapping[str, object], second: Mapping[str, object]) -> Interval:
    """The mean over seeds of `value` in the rows with `first` (column → value) minus that in those with `second`."""
    chosen = []
    for wanted in (first, second):
        match = (rows[list(wanted)] == pd.Series(wanted)).all(axis=1)
        chosen.append(rows[match].set_index("seed")[value])
    return mean_interval((chosen[0] - chosen[1]).tolist())


def ends(interval: Interval, digits: int = 1) -> str:
    """The t-interval, as a spread: "[1.2, 1.4]"."""
    return f"[{interval.low:.{digits}f}, {interval.high:.{digits}f}]"
