"""Recipes: how networks are trained."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

Augmentation = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class Recipe:
    """Recipe of a training.

    Attributes:
        steps: the optimizer steps that are done, by their numbers in the order of the data, where an epoch follows the
            other; an empty range leaves the network as it is.
        total: steps over which `factor` is spread.
        batch_size: examples a step; the last step of an epoch takes what is left, and a single example left over joins
            the step before it: batch norm cannot train on one.
        optimizer: from parameters to an optimizer; its own learning rate is the base rate.
        factor: from progress in [0, 1), the number of a step by `total`, to a factor of the base rate.
        seed: seed of data order, augmentation and dropout.
        accumulate: parts into which a batch is cut to save memory; the step is the same, unless batch norm or dropout
            see the parts.
        clip: largest norm of the whole gradient, or None.
        best_on_validation: end with the weights of the epoch whose headline metric on the validation part is the best
            of *this* training.
        augment: from the inputs of a batch and a generator to the inputs that a step sees; None: those of the data.
        keep_end: give back a rewind point of the end.
        trainable: globs of the parameters that are trained, as a linear probe's are; None: all.
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
    trainable: Sequence[str] | None = None
