"""The residual networks for CIFAR of He et al. 2016, section 4.2: depth 6n + 2, widths 16, 32 and 64."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from experiments.models.initialisation import initialise
from experiments.models.names import unknown_name
from experiments.models.shapes import image_shape, scaled
from pruning.errors import ModelError

SHORTCUTS = ("A", "B")


def resnet20(
    shape: Sequence[int], outputs: int, shortcut: str = "A", init: str = "kaiming_normal", width: float = 1.0
) -> nn.Module:
    """ResNet-20: 269,722 parameters on [3, 32, 32] and 10 classes.

    Kaiming normal weights (He et al. 2015) and no biases but the last layer's, which is 0; batch norm starts as the
    identity.

    Args:
        shape: [channels, height, width], of any size.
        outputs: numbers for each example: a logit a class, or those of a regression.
        shortcut: where a block changes the shape, "A" subsamples the identity and appends channels of zeros, without
            parameters, as in the paper's CIFAR networks; "B" is a 1x1 convolution with batch norm.
        init: see `initialise`.
        width: factor of all hidden widths, above 0.

    Returns:
        A module from [batch, *shape] to [batch, outputs].

    Raises:
        ModelError: a shape, shortcut or initialisation that does not exist.
    """
    return _resnet(20, shape, outputs, shortcut, init, width)


def resnet32(
    shape: Sequence[int], outputs: int, shortcut: str = "A", init: str = "kaiming_normal", width: float = 1.0
) -> nn.Module:
    """ResNet-32: 464,154 parameters on [3, 32, 32] and 10 classes; arguments and errors of `resnet20`."""
    return _resnet(32, shape, outputs, shortcut, init, width)


def resnet56(
    shape: Sequence[int], outputs: int, shortcut: str = "A", init: str = "kaiming_normal", width: float = 1.0
) -> nn.Module:
    """ResNet-56: 853,018 parameters on [3, 32, 32] and 10 classes; arguments and errors of `resnet20`."""
    return _resnet(56, shape, outputs, shortcut, init, width)


def _resnet(depth: int, shape: Sequence[int], outputs: int, shortcut: str, init: str, width: float) -> nn.Module:
    channels, _, _ = image_shape(f"resnet{depth}", shape, outputs)
    if shortcut not in SHORTCUTS:
        raise ModelError(unknown_name(f"resnet{depth}: shortcut", shortcut, SHORTCUTS))
    blocks = (depth - 2) // 6  # three stages of blocks of two convolutions, and the first and last layer
    return initialise(
        CifarResNet(blocks, channels, outputs, shortcut, scaled(f"resnet{depth}", width, 16, 32, 64)), init
    )


class CifarResNet(nn.Module):
    """Three stages of `blocks` basic blocks each, the second and third starting with stride 2; then global pooling."""

    def __init__(
        self, blocks: int, channels: int, outputs: int, shortcut: str, widths: Sequence[int] = (16, 32, 64)
    ) -> None:
        super().__init__()
        first, second, third = widths
        self.conv1 = nn.Conv2d(channels, first, kernel_size=3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.relu = nn.ReLU()
        self.layer1 = _stage(first, first, blocks, 1, shortcut)
        self.layer2 = _stage(first, second, blocks, 2, shortcut)
        self.layer3 = _stage(second, third, blocks, 2, shortcut)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(third, outputs)

    def forward(self, images: Tensor) -> Tensor:
        features = self.relu(self.bn1(self.conv1(images)))
        features = self.layer3(self.layer2(self.layer1(features)))
        logits: Tensor = self.fc(self.flatten(self.pool(features)))
        return logits


class BasicBlock(nn.Module):
    """relu(shortcut(x) + bn(conv(relu(bn(conv(x))))), with 3x3 convolutions, the first of the given stride."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = _shortcut(in_channels, out_channels, stride, shortcut)

    def forward(self, features: Tensor) -> Tensor:
        residual = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(features)))))
        activations: Tensor = self.relu(self.shortcut(features) + residual)
        return activations


class PaddedIdentity(nn.Module):
    """Shortcut A: every `stride`-th pixel, followed by `extra` channels of zeros. It has no parameters."""

    def __init__(self, stride: int, extra: int) -> None:
        super().__init__()
        self.stride = stride
        self.extra = extra

    def forward(self, features: Tensor) -> Tensor:
        return F.pad(features[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra))


def _stage(in_channels: int, out_channels: int, blocks: int, stride: int, shortcut: str) -> nn.Sequential:
    first = BasicBlock(in_channels, out_channels, stride, shortcut)
    return nn.Sequential(first, *(BasicBlock(out_channels, out_channels, 1, shortcut) for _ in range(blocks - 1)))


def _shortcut(in_channels: int, out_channels: int, stride: int, shortcut: str) -> nn.Module:
    if in_channels == out_channels and stride == 1:
        return nn.Identity()
    if shortcut == "A":
        return PaddedIdentity(stride, out_channels - in_channels)
    convolution = nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels))
