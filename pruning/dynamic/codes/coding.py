"""A coding layer: from the activations of a batch to a code for each unit of a family."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from pruning.dynamic.codes.reading import Reader
from pruning.seeding import generator
from pruning.structure.coupling.families import Family

_POOLING = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


class Coding:
    """v = σ(α·x), x = W·p + b; p are activations, their mean over the batch after 2 x 2 max pooling. Luo & Wu 2020.

    W is a filter of the size of what is pooled, so that x is one number a unit. A side of 1 is not pooled, and of an
    odd side the last row is left out. W is normal with variance 2 / (units · positions), b uniform in ±1/√inputs: as
    in the authors' code for MobileNet-v2, whose α begins at 0.1 too.

    Attributes:
        reader: whose inputs are looked at.
        alive: [units], those that may stay; the code of others is 0.
        weight, bias: W [units, inputs] and b [units]; leaves that take gradients.
        alpha: α of the next pass.
    """

    def __init__(self, family: Family, reader: Reader, alive: Tensor, like: Tensor, alpha: float, purpose: str):
        """Draw W and b by `purpose`, of the type and on the device of `like`."""
        self.reader, self.alive, self.alpha = reader, alive.to(like.device), alpha
        own = reader.reads(family.units)[:: len(reader.units) // reader.shape[0]]  # of channels, once each
        self._places = torch.nonzero(own).flatten().to(like.device)
        self._window = [min(2, side) for side in reader.shape[1:]]
        positions = math.prod(side // over for side, over in zip(reader.shape[1:], self._window, strict=True))
        inputs = len(self._places) * positions
        draws = generator(purpose)
        weight = torch.randn(family.size, inputs, generator=draws) * math.sqrt(2 / (family.size * positions))
        bias = (2 * torch.rand(family.size, generator=draws) - 1) / math.sqrt(inputs)
        self.weight, self.bias = (drawn.to(like).requires_grad_(True) for drawn in (weight, bias))

    def __call__(self, inputs: Tensor) -> Tensor:
        """[units]: the code of a batch, of all that `reader` gets; in the type of W, whatever autocast says."""
        with torch.autocast(inputs.device.type, enabled=False):
            pooled = self.reader.examples(inputs).to(self.weight.dtype).mean(0)[self._places]
            if self._window:
                pooled = _POOLING[len(self._window)](pooled[None], self._window)[0]
            return (self.alpha * (self.weight @ pooled.flatten() + self.bias)).sigmoid() * self.alive

    def decided(self, code: Tensor) -> float:
        """The share of living units whose code is below 0.1 or above 0.9."""
        return float((((code < 0.1) | (code > 0.9)) & self.alive).sum() / self.alive.sum().clamp(min=1))
