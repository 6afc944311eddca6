"""Weights in four bits: NF4 of QLoRA, and linear layers that hold them.

A block of 64 weights shares a scale, its largest size; a weight is the nearest of 16 numbers in [-1, 1] that split the
mass of a normal law evenly. Zero is one of them, so that pruned weights stay zero. Dettmers et al. 2023, section 3.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pruning.errors import AdaptationError
from pruning.parameters import Choice, prunable, unwrapped

BLOCK = 64
_OFFSET = 0.9677083
"""Mean of 1 - 1/30 and 1 - 1/32: where the outermost quantiles lie. Appendix E of the paper."""


@cache
def levels() -> Tensor:
    """The 16 numbers, ascending, float32: quantiles of a normal law on either side of 0, the largest one being 1."""
    from scipy.stats import norm  # noqa: PLC0415  # slow to import

    above = norm.ppf(torch.linspace(_OFFSET, 0.5, 9)[:-1].double().numpy())
    below = -norm.ppf(torch.linspace(_OFFSET, 0.5, 8)[:-1].double().numpy())
    found = torch.tensor(sorted([*above, 0.0, *below]), dtype=torch.float64)
    return (found / found.max()).float()


@dataclass(frozen=True)
class FourBits:
    """A tensor in NF4.

    Attributes:
        codes: uint8 [ceil(n / 2)], two numbers of levels each, the earlier one in the upper half.
        scales: float32 [ceil(n / 64)], the largest size in each block.
        shape, dtype: of the tensor.
    """

    codes: Tensor
    scales: Tensor
    shape: torch.Size
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> "FourBits":
        """`tensor`, real and finite, rounded to the nearest level; `AdaptationError` for another."""
        flat = tensor.detach().reshape(-1).float()
        if not tensor.is_floating_point() or not bool(torch.isfinite(flat).all()):
            raise AdaptationError(f"four bits: {tensor.dtype} weights, or not all finite: give real numbers")
        padded = F.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
        scales = padded.abs().amax(1)
        middles = (levels()[1:] + levels()[:-1]) / 2
        codes = torch.bucketize(padded / scales.clamp(min=torch.finfo(torch.float32).tiny)[:, None], middles.to(flat))
        pairs = F.pad(codes.view(-1)[: len(flat)].to(torch.uint8), (0, len(flat) % 2)).view(-1, 2)
        return cls(pairs[:, 0] * 16 + pairs[:, 1], scales, tensor.shape, tensor.dtype)

    def dense(self) -> Tensor:
        """The rounded tensor, in its dtype and shape."""
        count = self.shape.numel()
        numbers = torch.stack([self.codes >> 4, self.codes & 15], 1).view(-1)[:count].int()
        scales = self.scales.repeat_interleave(BLOCK)[:count]
        return (levels().to(self.codes.device)[numbers] * scales).to(self.dtype).view(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales."""
        return self.codes.nbytes + self.scales.nbytes


class FourBitLinear(nn.Linear):
    """A Linear whose weight is held in four bits, and frozen. Reading `weight` gives a new, rounded tensor."""

    codes: Tensor
    scales: Tensor

    def __init__(self, layer: nn.Linear):
        """What `layer` is, with its weight rounded."""
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        found = FourBits.of(layer.weight)
        self._dtype = found.dtype
        self.register_buffer("codes", found.codes)
        self.register_buffer("scales", found.scales)
        self.bias = layer.bias
        self.train(layer.training)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]  # read-only here
        """The rounded weight, made at every reading."""
        return FourBits(self.codes, self.scales, torch.Size((self.out_features, self.in_features)), self._dtype).dense()

    def forward(self, input: Tensor) -> Tensor:
        """Compute what the layer does with its rounded weight, which backward makes again and does not keep."""
        product: Callable[..., Any] = _FourBitProduct.apply
        outputs: Tensor = product(input, self)
        return outputs if self.bias is None else outputs + self.bias


class _FourBitProduct(torch.autograd.Function):
    """x Wᵀ of a weight that exists only while it is multiplied."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, layer: FourBitLinear) -> Tensor:
        ctx.layer = layer
        return F.linear(input, layer.weight.to(input.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None]:
        return gradient @ ctx.layer.weight.to(gradient.dtype) if ctx.needs_input_grad[0] else None, None


def quantise_(model: nn.Module, include: Choice | None = None, exclude: Choice | None = None) -> tuple[str, ...]:
    """Put a FourBitLinear in the place of every Linear whose weight is chosen, as by `prunable`; names of the modules.

    Raises:
        AdaptationError: a chosen weight is no Linear's alone, or not finite.
        ParameterError: see `pruning.prunable`.
    """
    model = unwrapped(model)
    chosen = prunable(model, include, exclude, frozen=True)
    modules = dict(model.named_modules())
    found = []
    for name, parameter in chosen.items():
        path, _, attribute = name.rpartition(".")
        if type(modules[path]) is not nn.Linear or attribute != "weight" or not path:
            if include is None:
                continue
            raise AdaptationError(f"{name}: is not the weight of a Linear: leave it out of include=")
        users = [each for each in modules.values() if any(p is parameter for p in each._parameters.values())]
        if len(users) > 1:
            raise AdaptationError(f"{name}: is tied to another layer, which would keep all of its bits: exclude it")
        found.append(path)
    for path in found:
        above, _, own = path.rpartition(".")
        setattr(modules[above] if above else model, own, FourBitLinear(modules[path]))
    return tuple(found)
