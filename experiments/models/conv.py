"""Conv-2, Conv-4 and Conv-6: the scaled-down VGGs of Frankle & Carbin 2019, figure 2."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from experiments.models.initialisation import initialise
from experiments.models.shapes import image_shape, scaled


def conv_2(shape: Sequence[int], outputs: int, init: str = "xavier_normal", width: float = 1.0) -> nn.Module:
    """Conv-2: two 3x3 convolutions of 64 channels, max pooling, then linear layers of 256, 256 and `outputs`.

    On [3, 32, 32] and 10 classes: 4,300,992 weights, 38,592 of them convolutional, and 650 biases. Glorot normal
    weights and zero biases as in the paper.

    Args:
        shape: [channels, height, width], at least 2x2 pixels (Conv-4: 4x4, Conv-6: 8x8).
        outputs: numbers for each example: a logit a class, or those of a regression.
        init: see `initialise`.
        width: factor of all hidden widths, above 0.

    Returns:
        A module from [batch, *shape] to [batch, outputs], with parameters conv1 ..., fc1, fc2, fc3.

    Raises:
        ModelError: images too small, or a shape or initialisation that does not exist.
    """
    return _conv("conv_2", (64,), shape, outputs, init, width)


def conv_4(shape: Sequence[int], outputs: int, init: str = "xavier_normal", width: float = 1.0) -> nn.Module:
    """Conv-4: `conv_2` with a second pair of convolutions, of 128 channels, and pooling.

    On [3, 32, 32] and 10 classes: 2,425,024 weights, 259,776 of them convolutional, and 906 biases.
    """
    return _conv("conv_4", (64, 128), shape, outputs, init, width)


def conv_6(shape: Sequence[int], outputs: int, init: str = "xavier_normal", width: float = 1.0) -> nn.Module:
    """Conv-6: `conv_4` with a third pair of convolutions, of 256 channels, and pooling.

    On [3, 32, 32] and 10 classes: 2,261,184 weights, 1,144,512 of them convolutional, and 1,418 biases.
    """
    return _conv("conv_6", (64, 128, 256), shape, outputs, init, width)


def _conv(name: str, widths: Sequence[int], shape: Sequence[int], outputs: int, init: str, width: float) -> nn.Module:
    shrunk = 2 ** len(widths)  # each pair of convolutions ends in a pooling that halves the image
    channels, rows, columns = image_shape(name, shape, outputs, smallest=shrunk)
    *convolutions, hidden = scaled(name, width, *widths, 256)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for pair, out_channels in enumerate(convolutions):
        for number in (2 * pair + 1, 2 * pair + 2):
            layers[f"conv{number}"] = nn.Conv2d(channels, out_channels, kernel_size=3, padding=1)
            layers[f"relu{number}"] = nn.ReLU()
            channels = out_channels
        layers[f"pool{pair + 1}"] = nn.MaxPool2d(2)
    layers["flatten"] = nn.Flatten()
    layers["fc1"] = nn.Linear(channels * (rows // shrunk) * (columns // shrunk), hidden)
    layers["fc1_relu"] = nn.ReLU()
    layers["fc2"] = nn.Linear(hidden, hidden)
    layers["fc2_relu"] = nn.ReLU()
    layers["fc3"] = nn.Linear(hidden, outputs)
    return initialise(nn.Sequential(layers), init)
