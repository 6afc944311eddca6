"""VGG-16 with batch norm for CIFAR: the thirteen convolutions of Simonyan & Zisserman 2015, then one linear layer."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from experiments.models.initialisation import initialise
from experiments.models.shapes import image_shape, scaled

# Configuration D of the paper: the widths of the 3x3 convolutions between two poolings
WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def vgg16_bn(shape: Sequence[int], outputs: int, init: str = "kaiming_normal", width: float = 1.0) -> nn.Module:
    """VGG-16 with batch norm as lottery-ticket and SynFlow studies prune it: one linear layer, 512 to `outputs`.

    On [3, 32, 32] and 10 classes: 14,724,042 parameters. (Codes whose convolutions keep a bias have 4,224 more; before
    batch norm a bias has no effect and no gradient, so there is none here.) Max pooling ends all stages but the last,
    which ends in global average pooling. Kaiming normal weights (He et al. 2015); batch norm starts as the identity.

    Args:
        shape: [channels, height, width], at least 16x16 pixels.
        outputs: numbers for each example: a logit a class, or those of a regression.
        init: see `initialise`.
        width: factor of all hidden widths, above 0.

    Returns:
        A module from [batch, *shape] to [batch, outputs], with parameters conv1, bn1, ..., conv13, bn13, fc.

    Raises:
        ModelError: images too small, or a shape or initialisation that does not exist.
    """
    channels, _, _ = image_shape("vgg16_bn", shape, outputs, smallest=2 ** (len(WIDTHS) - 1))
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    number = 0
    for stage, widths in enumerate(WIDTHS):
        if stage > 0:
            layers[f"pool{stage}"] = nn.MaxPool2d(2)
        for out_channels in scaled("vgg16_bn", width, *widths):
            number += 1
            layers[f"conv{number}"] = nn.Conv2d(channels, out_channels, kernel_size=3, padding=1, bias=False)
            layers[f"bn{number}"] = nn.BatchNorm2d(out_channels)
            layers[f"relu{number}"] = nn.ReLU()
            channels = out_channels
    layers["average"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["fc"] = nn.Linear(channels, outputs)
    return initialise(nn.Sequential(layers), init)
