"""Norms of activations and of weights."""

import warnings
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

from tests.pruning.structure.zoo.case import Case, images


class Normalise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1)


class Scaled(nn.Module):
    """Its attribute is no size, though it is equal to one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        return x * self.width**-0.5


class BatchNormSum(nn.Module):
    """The weights and biases of a batch norm make zeros, whatever its statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(4, 6), nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.layer(x)).sum(1)


class Standardised(nn.Module):
    """Weights that are standardised over their inputs in the forward pass: without an input, all are others."""

    def __init__(self, by_batch_norm: bool = False) -> None:
        super().__init__()
        self.by_batch_norm = by_batch_norm
        self.first, self.second, self.third = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3), nn.Conv2d(4, 5, 1)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        weight = self.second.weight
        if self.by_batch_norm:
            weight = F.batch_norm(weight.flatten(1)[None], None, None, training=True).view_as(weight)
        else:
            weight = (weight - weight.mean((1, 2, 3), keepdim=True)) / weight.std((1, 2, 3), keepdim=True)
        x = F.relu(F.conv2d(x, weight, self.second.bias))
        return self.head(F.relu(self.third(x)).mean((2, 3)))


class Norms(nn.Module):
    """Convolutions with a norm in between."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm, self.next, self.head = nn.Conv2d(3, 8, 3), norm, nn.Conv2d(8, 6, 1), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.next(F.relu(self.norm(self.conv(x))))).mean((2, 3)))


class Rows(nn.Module):
    """Linear layers with a norm of the inner width."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.first, self.norm, self.second, self.head = nn.Linear(5, 8), norm, nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.second(F.relu(self.norm(self.first(x))))))


def _weight_norm(norm: Any = parametrizations.weight_norm, **options: Any) -> nn.Module:
    layers = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    for number in (0, 2):
        norm(layers[number], **options)
    return layers


def _old(norm: Any) -> Any:
    """A norm by a hook, which torch advises against."""

    def normed(layer: nn.Module, **options: Any) -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return norm(layer, **options)

    return normed


def _normed_convolutions(norm: Any) -> nn.Module:
    first, second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3, bias=False)
    layers = nn.Sequential(first, nn.ReLU(), second, nn.Flatten(), nn.Linear(24, 3))
    for number in (0, 2):
        norm(layers[number])
    return layers


def _spectral_norm() -> nn.Module:
    layers = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 7), nn.Linear(7, 3))
    parametrizations.spectral_norm(layers[2])
    return layers


CASES: dict[str, Case] = {
    "normalised": (lambda: Rows(Normalise()), lambda: images(5), (6, 8)),
    "scaled by an attribute": (lambda: Rows(Scaled(8)), lambda: images(5), (6, 8)),
    "sum after batch norm": (BatchNormSum, lambda: images(4), (6,)),
    "standardised weights": (Standardised, lambda: images(3, 6, 6), (5,)),
    "weights standardised by batch norm": (lambda: Standardised(by_batch_norm=True), lambda: images(3, 6, 6), (4, 5)),
    "weight norm": (_weight_norm, lambda: images(5), (6, 8)),
    "weight norm of columns": (lambda: _weight_norm(dim=1), lambda: images(5), (6, 8)),
    "weight norm of the whole": (lambda: _weight_norm(dim=None), lambda: images(5), (6, 8)),
    "weight norm by a hook": (lambda: _weight_norm(_old(weight_norm)), lambda: images(5), (6, 8)),
    "weight norm of convolutions": (
        lambda: _normed_convolutions(parametrizations.weight_norm),
        lambda: images(3, 6, 6),
        (6, 8),
    ),
    "weight norm of convolutions by a hook": (
        lambda: _normed_convolutions(_old(weight_norm)),
        lambda: images(3, 6, 6),
        (6, 8),
    ),
    "spectral norm by a hook": (lambda: _weight_norm(_old(spectral_norm)), lambda: images(5), (6, 8)),
    "spectral norm of convolutions": (
        lambda: _normed_convolutions(parametrizations.spectral_norm),
        lambda: images(3, 6, 6),
        (6, 8),
    ),
    "spectral norm": (_spectral_norm, lambda: images(5), (6, 7, 8)),
    "batch norm": (lambda: Norms(nn.BatchNorm2d(8)), lambda: images(3, 6, 6), (6, 8)),
    "batch norm without weights": (lambda: Norms(nn.BatchNorm2d(8, affine=False)), lambda: images(3, 6, 6), (6, 8)),
    "instance norm": (lambda: Norms(nn.InstanceNorm2d(8, affine=True)), lambda: images(3, 6, 6), (6, 8)),
    "instance norm, tracked": (
        lambda: Norms(nn.InstanceNorm2d(8, track_running_stats=True)),
        lambda: images(3, 6, 6),
        (6, 8),
    ),
    "group norm": (lambda: Norms(nn.GroupNorm(4, 8)), lambda: images(3, 6, 6), (6,)),
    "group norm of single channels": (lambda: Norms(nn.GroupNorm(8, 8)), lambda: images(3, 6, 6), (6, 8)),
    "group norm of single channels without weights": (
        lambda: Norms(nn.GroupNorm(8, 8, affine=False)),
        lambda: images(3, 6, 6),
        (6, 8),
    ),
    "batch norm of rows": (lambda: Rows(nn.BatchNorm1d(8)), lambda: images(5), (6, 8)),
    "layer norm": (lambda: Rows(nn.LayerNorm(8)), lambda: images(5), (6,)),
    "rms norm": (lambda: Rows(nn.RMSNorm(8)), lambda: images(5), (6,)),
    "prelu": (lambda: Rows(nn.PReLU(8)), lambda: images(5), (6, 8)),
}
