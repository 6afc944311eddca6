"""A matrix of few kept values times a batch, with the gradients at what is kept alone: three products of CSR kernels.

Batches lie features first, [features, batch], so that every kept value works on a contiguous row. An output is handed
on as the transposed view of such a tensor; element-wise operations keep that layout, and nothing is copied in between.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class Pattern:
    """Where the kept values of a matrix of `shape` [outputs, inputs] lie, in row-major order: CSR, 32-bit.

    Attributes:
        rows, columns: where each row begins, and the column of every value.
        rows_t, columns_t, order: the same of the transposed matrix; `order` is where its values are among those.
    """

    shape: tuple[int, int]
    rows: Tensor
    columns: Tensor
    rows_t: Tensor
    columns_t: Tensor
    order: Tensor

    @classmethod
    def of(cls, mask: Tensor) -> "Pattern":
        """Of a bool matrix, True = kept."""
        _warned_once()
        outputs, inputs = mask.shape
        places = mask.nonzero()  # sorted by row, then column
        order = torch.argsort(places[:, 1], stable=True)
        return cls(
            shape=(outputs, inputs),
            rows=_starts(mask.sum(1)),
            columns=places[:, 1].int(),
            rows_t=_starts(mask.sum(0)),
            columns_t=places[order, 0].int(),
            order=order.int(),
        )

    def tensors(self) -> dict[str, Tensor]:
        """All but the shape, by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def csr(self, values: Tensor) -> Tensor:
        """The matrix of `values`."""
        return torch.sparse_csr_tensor(self.rows, self.columns, values, self.shape, check_invariants=False)

    def csr_t(self, values: Tensor) -> Tensor:
        """The transposed matrix of `values`."""
        turned = values.index_select(0, self.order)
        return torch.sparse_csr_tensor(self.rows_t, self.columns_t, turned, self.shape[::-1], check_invariants=False)

    def flat(self) -> Tensor:
        """The places of the values in the flattened matrix."""
        counts = (self.rows[1:] - self.rows[:-1]).long()
        row = torch.repeat_interleave(torch.arange(self.shape[0], device=self.rows.device), counts)
        return row * self.shape[1] + self.columns


def _warned_once() -> None:
    """Torch says once a process that CSR is in beta. That is known here, tested here, and no news to a user."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        rows, nothing = torch.tensor([0, 0]), torch.tensor([], dtype=torch.int64)
        torch.sparse_csr_tensor(rows, nothing, nothing.float(), (1, 1), check_invariants=False)


def product(inputs: Tensor, values: Tensor, bias: Tensor | None, pattern: Pattern) -> Tensor:
    """inputs · Wᵀ + bias, for inputs [batch, inputs] and W the matrix of `values`; [batch, outputs].

    Its gradients are those of the dense product, for `values` at the kept places alone. They cannot be differentiated
    once more.
    """
    found: Tensor = _Product.apply(inputs, values, bias, pattern)
    return found


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, values: Tensor, bias: Tensor | None, pattern: Pattern) -> Tensor:
        features = inputs.t().contiguous()
        matrix = pattern.csr(values)
        if bias is None:
            outputs = torch.mm(matrix, features)
        else:
            outputs = torch.addmm(bias[:, None].expand(-1, features.shape[1]), matrix, features)
        ctx.save_for_backward(features if ctx.needs_input_grad[1] else None, values)
        ctx.pattern = pattern
        return outputs.t()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        features, values = ctx.saved_tensors
        pattern = ctx.pattern
        of_outputs = gradient.t().contiguous()
        of_inputs = of_values = of_bias = None
        if ctx.needs_input_grad[0]:
            of_inputs = torch.mm(pattern.csr_t(values), of_outputs).t()
        if ctx.needs_input_grad[1]:
            of_values = torch.zeros_like(values)
            places = pattern.csr(of_values)
            torch.sparse.sampled_addmm(places, of_outputs, features.t(), out=places)
        if ctx.needs_input_grad[2]:
            of_bias = of_outputs.sum(1)
        return of_inputs, of_values, of_bias, None


def _starts(counts: Tensor) -> Tensor:
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)]).int()
