"""The two LeNets on which pruning papers start: LeNet-300-100, fully connected, and LeNet-5, convolutional."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from experiments.models.initialisation import initialise
from experiments.models.mlp import mlp
from experiments.models.shapes import example_shape, image_shape, scaled


def lenet_300_100(shape: Sequence[int], outputs: int, init: str = "xavier_normal", width: float = 1.0) -> nn.Module:
    """LeNet-300-100 (LeCun et al. 1998): two hidden layers of 300 and 100 ReLUs; parameters fc1, fc2, fc3.

    On [1, 28, 28] and 10 classes: 266,200 weights and 410 biases. Glorot normal weights and zero biases as in
    Frankle & Carbin 2019.

    Args:
        shape: the shape of one example, of one dimension or more.
        outputs: numbers for each example: a logit a class, or those of a regression.
        init: see `initialise`.
        width: factor of all hidden widths, above 0.

    Returns:
        A module from [batch, *shape] to [batch, outputs].

    Raises:
        ModelError: a shape or initialisation that does not exist.
    """
    example_shape("lenet_300_100", shape, outputs)  # so that an error names this model rather than mlp
    return mlp(shape, outputs, hidden=scaled("lenet_300_100", width, 300, 100), init=init)


def lenet_5(shape: Sequence[int], outputs: int, init: str = "xavier_normal", width: float = 1.0) -> nn.Module:
    """LeNet-5 in the form of Caffe, which Han et al. 2015 and SNIP (Lee et al. 2019) prune: 20-50-500.

    No activation follows the convolutions, only max pooling; one ReLU follows fc1. On [1, 28, 28] and 10 classes:
    430,500 weights and 580 biases. Glorot normal weights and zero biases as the other networks of Frankle & Carbin.

    Args:
        shape: [channels, height, width], at least 16x16 pixels.
        outputs: numbers for each example: a logit a class, or those of a regression.
        init: see `initialise`.
        width: factor of all hidden widths, above 0.

    Returns:
        A module from [batch, *shape] to [batch, outputs].

    Raises:
        ModelError: images too small, or a shape or initialisation that does not exist.
    """
    channels, *sides = image_shape("lenet_5", shape, outputs, smallest=16)
    first, second, hidden = scaled("lenet_5", width, 20, 50, 500)
    rows, columns = (((size - 4) // 2 - 4) // 2 for size in sides)  # a 5x5 kernel takes 4, pooling halves
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(channels, first, kernel_size=5),
        pool1=nn.MaxPool2d(2),
        conv2=nn.Conv2d(first, second, kernel_size=5),
        pool2=nn.MaxPool2d(2),
        flatten=nn.Flatten(),
        fc1=nn.Linear(second * rows * columns, hidden),
        relu1=nn.ReLU(),
        fc2=nn.Linear(hidden, outputs),
    )
    return initialise(nn.Sequential(layers), init)
