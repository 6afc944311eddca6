"""Gradients of some places of a weight alone, while its layer computes with the whole weight as ever.

A weight gets its dense gradient, of which the trained places are taken as soon as it is there, and the rest is freed:
right for any layer, device and dtype. A call of a Linear on the CPU has no dense gradient: it is a product of what came
in and what came back, sampled at the trained places in the time of a low-rank update. Where such a weight is used
elsewhere too, as in `F.linear(x, layer.weight)`, the gradient of that use comes the first way, and both add up.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.nn import functional as F

from pruning.errors import ExecutionError
from pruning.execution.product import Pattern

SAMPLED = 0.1
"""Share of a weight's places up to which the sampled product is faster than the dense one (benchmark `adaptation`)."""


@dataclass(frozen=True)
class Kept:
    """Where the trained places of `weight` [outputs, inputs] lie, ascending, and their values, which get gradients."""

    weight: nn.Parameter
    values: nn.Parameter
    places: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        return int(self.weight.shape[0]), int(self.weight.shape[1])

    @cached_property
    def rows(self) -> Tensor:
        """Numbers of the outputs with a trained place, ascending."""
        found: Tensor = torch.unique(self.places // self.shape[1])
        return found

    @cached_property
    def columns(self) -> Tensor:
        """Numbers of the inputs with a trained place, ascending."""
        found: Tensor = torch.unique(self.places % self.shape[1])
        return found

    @cached_property
    def whole(self) -> bool:
        """Whether whole rows of some columns are trained, as rows, columns, heads and everything are."""
        return len(self.rows) * len(self.columns) == len(self.places)

    @cached_property
    def pattern(self) -> Pattern:
        """The places as a sparse matrix."""
        mask = torch.zeros(self.shape, dtype=torch.bool)
        mask.view(-1)[self.places] = True
        return Pattern.of(mask)

    def gradient(self, outputs: Tensor, inputs: Tensor) -> Tensor:
        """Σ outputs · inputsᵀ over rows of [rows, outputs] and [rows, inputs], at the trained places."""
        if self.whole:
            left = outputs if len(self.rows) == self.shape[0] else outputs[:, self.rows]
            right = inputs if len(self.columns) == self.shape[1] else inputs[:, self.columns]
            return (left.t() @ right).reshape(-1)
        return self.pattern.sampled(self.values, [(outputs.t().contiguous(), inputs.t().contiguous())])


class KeptLinear(nn.Linear):
    """A Linear of which only the `kept` places of the weight get a gradient; see `keep_` and `release_`."""

    kept: Kept

    def forward(self, input: Tensor) -> Tensor:
        """Compute what the Linear does."""
        if self.weight is not self.kept.weight:  # another tensor in its place, as of functional_call
            return F.linear(input, self.weight, self.bias)
        outputs: Tensor = _linear(self, input)
        return outputs

    def __reduce_ex__(self, protocol: Any) -> Any:
        """A copy, in memory or in a file, is not tuned: it is a Linear."""
        return _plain, ({name: value for name, value in vars(self).items() if name != "kept"},)


def _plain(state: dict[str, Any]) -> nn.Linear:
    """The Linear with these attributes."""
    found = nn.Linear.__new__(nn.Linear)
    vars(found).update(state)
    return found


def can_keep(module: nn.Module, attribute: str, count: int) -> bool:
    """Whether gradients of `count` places of this parameter of `module` are better sampled: see `SAMPLED`."""
    weight = module._parameters.get(attribute)
    return (
        type(module) is nn.Linear
        and "forward" not in vars(module)  # as offloading writes there
        and attribute == "weight"
        and weight is not None
        and weight.device.type == "cpu"
        and weight.dtype in (torch.float32, torch.float64)
        and weight.is_contiguous()
        and count <= SAMPLED * weight.numel()
    )


def keep_(module: nn.Module, kept: Kept) -> None:
    """Make `module`, which `can_keep`, a KeptLinear, in place."""
    module.__class__ = KeptLinear
    module.kept = kept  # type: ignore[assignment]  # torch types attributes as modules and tensors


def release_(module: nn.Module) -> None:
    """Make a KeptLinear a Linear again; nothing, for another module."""
    if isinstance(module, KeptLinear):
        del module.kept
        module.__class__ = nn.Linear  # type: ignore[assignment]  # a class of its own instance


@_disable_dynamo  # as torch.compiler.disable, without importing the compiler before it is needed
def _linear(module: KeptLinear, input: Tensor) -> Tensor:
    kept, weight = module.kept, module.weight.detach()
    if not torch.is_grad_enabled():
        return F.linear(input, weight, module.bias)
    if torch.is_autocast_enabled(input.device.type):  # which casts what goes into a product, and its gradient back
        return F.linear(input, _differentiable(weight, kept), module.bias)
    outputs: Tensor = _Sampled.apply(input, weight, module.bias, kept.values, kept)
    return outputs


def _differentiable(weight: Tensor, kept: Kept) -> Tensor:
    """`weight` as it is, as a function of the trained values."""
    flat = weight.reshape(-1)
    there = flat[kept.places] + (kept.values - kept.values.detach()).to(weight.dtype)
    return flat.index_put((kept.places,), there).view(weight.shape)


class _Sampled(torch.autograd.Function):
    """A Linear, with the gradient of its weight at the trained places alone."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, values: Tensor, kept: Kept) -> Tensor:
        ctx.kept = kept
        ctx.save_for_backward(input, weight)
        return F.linear(input, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise ExecutionError(
                "create_graph=True: a sparse update has no second derivatives: finish() the tuning first"
            )
        input, weight = ctx.saved_tensors
        rows = gradient.reshape(-1, gradient.shape[-1])
        needs_input, _, needs_bias, needs_values, _ = ctx.needs_input_grad
        return (
            gradient @ weight if needs_input else None,
            None,
            rows.sum(0) if needs_bias else None,
            ctx.kept.gradient(rows, input.reshape(-1, input.shape[-1])) if needs_values else None,
            None,
        )


def gather_gradient(weight: nn.Parameter, values: nn.Parameter, places: Tensor) -> None:
    """Move the trained places of the gradient of `weight` to that of `values`, and free it."""
    dense = weight.grad
    assert dense is not None
    found = (dense.to_dense() if dense.is_sparse else dense).reshape(-1)[places].to(values.dtype)
    values.grad = found if values.grad is None else values.grad + found
    weight.grad = None
