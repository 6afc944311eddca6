"""A case: how a network is made, what it sees, and the number of units of each family."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Case = tuple[Callable[[], nn.Module], Callable[[], Any], tuple[int, ...]]


def images(*shape: int) -> Tensor:
    return torch.randn(2, *shape)
