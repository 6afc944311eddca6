"""Convolutional networks: residual, dense, grouped, shuffled, padded, flattened."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.pruning.structure.zoo.case import Case, images


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv1, self.norm1 = nn.Conv2d(6, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.norm2 = nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(x + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))
        return self.head(x.mean((2, 3)))


class Dense(nn.Module):
    """Each layer reads all before it, through a norm and an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(3 + 4 * i, 4, 3, padding=1) for i in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm2d(3 + 4 * i) for i in range(3))
        self.head = nn.Linear(15, 3)

    def forward(self, x: Tensor) -> Tensor:
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = torch.cat([x, layer(F.relu(norm(x)))], 1)
        return self.head(x.mean((2, 3)))


class Pad(nn.Module):
    """A shortcut that appends channels of zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 3, padding=1), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(F.pad(x, (0, 0, 0, 0, 1, 1)) + self.conv(F.relu(x)))
        return self.head(x.mean((2, 3)))


class Appended(nn.Module):
    """A shortcut that appends a number of zeros, which happens to be that of its channels."""

    def __init__(self, channels: int, more: int) -> None:
        super().__init__()
        self.more, self.conv = more, nn.Conv2d(channels, channels + more, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(F.pad(x, (0, 0, 0, 0, 0, self.more)) + self.conv(x))


class ShuffleByHand(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 12, 3, groups=3)
        self.conv3 = nn.Conv2d(12, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        batch, channels, height, width = x.shape
        x = x.view(batch, 3, channels // 3, height, width).transpose(1, 2).reshape(batch, channels, height, width)
        return self.conv3(F.relu(self.conv2(x))).mean((2, 3))


class NHWC(nn.Module):
    """Channels last, and a linear layer over all of height, width and channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.inner, self.head = nn.Conv2d(3, 5, 3), nn.Linear(5, 4), nn.Linear(4 * 4 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.inner(F.relu(self.conv(x)).permute(0, 2, 3, 1)))
        return self.head(x.flatten(1))


class ByView(nn.Module):
    """A linear layer whose outputs are the channels of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.lift, self.up, self.out = nn.Linear(4, 6 * 9), nn.ConvTranspose2d(6, 4, 2, 2), nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.lift(x)).view(len(x), -1, 3, 3)
        return self.out(F.relu(self.up(x)))


class Squeeze(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.down, self.up, self.out = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.norm(self.conv(x)))
        gate = self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))).sigmoid()
        return self.out((x * gate).mean((2, 3)))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.deep = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1, stride=2)
        self.up, self.out = nn.Conv2d(10, 5, 3, padding=1), nn.Conv2d(5, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = F.relu(self.down(x))
        deep = F.interpolate(F.relu(self.deep(skip)), scale_factor=2.0, mode="bilinear")
        return self.out(F.relu(self.up(torch.cat([deep, skip], 1))))


def _grouped(transposed: bool, groups: int, multiplier: int = 1) -> nn.Module:
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    middle = kind(6, 6 * multiplier, 3, padding=1, groups=groups)
    layers = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), middle, nn.BatchNorm2d(6 * multiplier), nn.ReLU()
    return nn.Sequential(*layers, nn.Conv2d(6 * multiplier, 3, 1))


CASES: dict[str, Case] = {
    "residual": (Residual, lambda: images(3, 6, 6), (4, 6)),
    "dense": (Dense, lambda: images(3, 6, 6), (4, 4, 4)),
    "padded shortcut": (Pad, lambda: images(3, 6, 6), (4,)),
    "appended zeros": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), Appended(4, 4), Appended(8, 8), nn.Conv2d(16, 2, 1)),
        lambda: images(3, 6, 6),
        (4,),
    ),
    "depthwise": (lambda: _grouped(False, 6), lambda: images(3, 6, 6), (6,)),
    "depthwise with multiplier": (lambda: _grouped(False, 6, 2), lambda: images(3, 6, 6), (6,)),
    "grouped": (lambda: _grouped(False, 2), lambda: images(3, 6, 6), (3, 3)),
    "transposed": (lambda: _grouped(True, 1), lambda: images(3, 6, 6), (6, 6)),
    "transposed grouped": (lambda: _grouped(True, 2), lambda: images(3, 6, 6), (3, 3)),
    "transposed depthwise": (lambda: _grouped(True, 6, 2), lambda: images(3, 6, 6), (6,)),
    "one channel comes and goes": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 6, 3), nn.ReLU(), nn.ConvTranspose2d(6, 4, 3), nn.ReLU(), nn.Conv2d(4, 1, 1)
        ),
        lambda: images(1, 6, 6),
        (4, 6),
    ),
    "one channel in between": (
        lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 1, 1), nn.ConvTranspose2d(1, 4, 2), nn.Conv2d(4, 2, 1)),
        lambda: images(3, 6, 6),
        (4, 6),
    ),
    "pixel shuffle": (
        lambda: nn.Sequential(nn.Conv2d(3, 12, 3), nn.PixelShuffle(2), nn.ReLU(), nn.Conv2d(3, 2, 1)),
        lambda: images(3, 6, 6),
        (3,),
    ),
    "pixel unshuffle": (
        lambda: nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.PixelUnshuffle(2), nn.Conv2d(20, 2, 1)),
        lambda: images(3, 6, 6),
        (5,),
    ),
    "channel shuffle": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 12, 1), nn.ReLU(), nn.ChannelShuffle(3), nn.Conv2d(12, 12, 3, groups=3), nn.Conv2d(12, 3, 1)
        ),
        lambda: images(3, 6, 6),
        (4,),
    ),
    "channel shuffle by hand": (ShuffleByHand, lambda: images(3, 6, 6), (4,)),
    "channels last": (NHWC, lambda: images(3, 6, 6), (4, 5)),
    "flatten": (
        lambda: nn.Sequential(nn.Conv2d(3, 5, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(20, 6), nn.Linear(6, 3)),
        lambda: images(3, 6, 6),
        (5, 6),
    ),
    "unflatten": (
        lambda: nn.Sequential(nn.Linear(4, 54), nn.ReLU(), nn.Unflatten(1, (6, 3, 3)), nn.Conv2d(6, 3, 1)),
        lambda: images(4),
        (6,),
    ),
    "convolution after view": (ByView, lambda: images(4), (4, 6)),
    "squeeze and excitation": (Squeeze, lambda: images(3, 6, 6), (4, 8)),
    "u-net": (UNet, lambda: images(3, 6, 6), (4, 5, 6)),
}
