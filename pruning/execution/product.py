"""A matrix of few kept values times a batch, with the gradients at what is kept alone.

Batches lie features first, [features, batch], so that every kept value works on a contiguous row. An output is handed
on as the transposed view of such a tensor; element-wise operations keep that layout, and nothing is copied in between.

An output row is a sum of input rows, each times its value: a bag of embeddings with weights, and torch's kernel for
those is about twice as fast as its CSR products.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class Pattern:
    """Where the kept values of a matrix of `shape` [outputs, inputs] lie, in row-major order: CSR.

    Columns are 16-bit where they fit, all else is 32-bit.

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
            columns=_narrow(places[:, 1], inputs),
            rows_t=_starts(mask.sum(0)),
            columns_t=_narrow(places[order, 0], outputs),
            order=order.int(),
        )

    @property
    def nbytes(self) -> int:
        """What the places take in memory: 8 bytes a kept value (12 where a side is longer than 32,768), 4 a row and a column."""
        return sum(value.nbytes for value in vars(self).values() if isinstance(value, Tensor))

    def times(self, values: Tensor, features: Tensor) -> Tensor:
        """The matrix of `values` times [inputs, batch]: [outputs, batch]."""
        return _sums(features, self.columns, self.rows, values)

    def transposed_times(self, values: Tensor, features: Tensor) -> Tensor:
        """The transposed matrix of `values` times [outputs, batch]: [inputs, batch]."""
        return _sums(features, self.columns_t, self.rows_t, values.index_select(0, self.order))

    def sampled(self, left: Tensor, right: Tensor) -> Tensor:
        """left · rightᵀ at the kept places alone, for [outputs, batch] and [inputs, batch]; a vector like the values."""
        found = left.new_zeros(len(self.columns))  # what is there is multiplied by beta = 0, and a NaN would stay
        # the kernel is faster on 64-bit indices, by more than it takes to make them
        places = torch.sparse_csr_tensor(
            self.rows.long(), self.columns.long(), found, self.shape, check_invariants=False
        )
        torch.sparse.sampled_addmm(places, left, right.t(), beta=0.0, out=places)
        return found

    def flat(self) -> Tensor:
        """The places of the values in the flattened matrix."""
        counts = (self.rows[1:] - self.rows[:-1]).long()
        row = torch.repeat_interleave(torch.arange(self.shape[0], device=self.rows.device), counts)
        return row * self.shape[1] + self.columns


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
        features, values = inputs.t().contiguous(), values.detach()
        outputs = pattern.times(values, features)
        if bias is not None:
            outputs += bias[:, None]
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
            of_inputs = pattern.transposed_times(values, of_outputs).t()
        if ctx.needs_input_grad[1]:
            of_values = pattern.sampled(of_outputs, features)
        if ctx.needs_input_grad[2]:
            of_bias = of_outputs.sum(1)
        return of_inputs, of_values, of_bias, None


def _sums(features: Tensor, columns: Tensor, rows: Tensor, values: Tensor) -> Tensor:
    """The CSR matrix (rows, columns, values) times `features`."""
    sums: Tensor = torch.embedding_bag(features, columns.int(), rows, False, 0, False, values, True)[0]
    return sums


def _narrow(places: Tensor, end: int) -> Tensor:
    """`places`, all below `end`, in as few bits as hold them."""
    return places.to(torch.int16 if end <= 2**15 else torch.int32)


def _starts(counts: Tensor) -> Tensor:
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)]).int()


def _warned_once() -> None:
    """Torch says once a process that CSR is in beta. That is known here, tested here, and no news to a user."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        rows, nothing = torch.tensor([0, 0]), torch.tensor([], dtype=torch.int64)
        torch.sparse_csr_tensor(rows, nothing, nothing.float(), (1, 1), check_invariants=False)
