"""A matrix of few kept values times a batch, with the gradients at what is kept alone.

Blocks of a batch lie features first, [features, columns], so that every kept value works on a contiguous row. The
output of a small batch is handed on as the transposed view of such a tensor; element-wise operations keep that layout,
and nothing is copied in between. Larger batches are laid so block by block, within the processor's cache.

An output row is a sum of input rows, each times its value: a bag of embeddings with weights, and torch's kernel for
those is about twice as fast as its CSR products.
"""

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_ONE_BLOCK = 512
"""As many rows of a Linear's batch are one block, and stay features first from layer to layer."""
_COLUMNS = 112
"""Columns of a block of anything larger; no power of two, at which rows would compete for the same lines of cache."""


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
        """What the places take in memory: 8 bytes a kept value (10 or 12 where a side is over 32,768), 4 a row and column."""
        return sum(value.nbytes for value in vars(self).values() if isinstance(value, Tensor))

    def times(self, values: Tensor, features: Tensor) -> Tensor:
        """The matrix of `values` times [inputs, batch]: [outputs, batch]."""
        return _sums(features, self.columns, self.rows, values)

    def transposed_times(self, values: Tensor, features: Tensor) -> Tensor:
        """The transposed matrix of `values` times [outputs, batch]: [inputs, batch]."""
        return _sums(features, self.columns_t, self.rows_t, values.index_select(0, self.order))

    def sampled(self, left: Iterable[Tensor], right: Iterable[Tensor]) -> Tensor:
        """Σ left · rightᵀ at the kept places alone, over pairs of [outputs, columns] and [inputs, columns].

        A vector like the values.
        """
        found: Tensor | None = None
        for a, b in zip(left, right, strict=True):
            if found is None:
                found = a.new_zeros(len(self.columns))
                # the kernel is faster on 64-bit indices, by more than it takes to make them
                places = torch.sparse_csr_tensor(
                    self.rows.long(), self.columns.long(), found, self.shape, check_invariants=False
                )
            torch.sparse.sampled_addmm(places, a.contiguous(), b.contiguous().t(), out=places)
        assert found is not None
        return found

    def flat(self) -> Tensor:
        """The places of the values in the flattened matrix."""
        counts = (self.rows[1:] - self.rows[:-1]).long()
        row = torch.repeat_interleave(torch.arange(self.shape[0], device=self.rows.device), counts)
        return row * self.shape[1] + self.columns


def product(inputs: Tensor, values: Tensor, bias: Tensor | None, pattern: Pattern) -> Tensor:
    """W · x + bias for every x in `inputs`, W being the matrix of `values`.

    Its gradients are those of the dense product, for `values` at the kept places alone. They cannot be differentiated
    once more.

    Args:
        inputs: [rows, inputs], as a Linear takes them, or [images, inputs, positions], as a convolution does.

    Returns:
        [rows, outputs] or [images, outputs, positions].
    """
    found: Tensor = _Product.apply(inputs, values, bias, pattern)
    return found


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, values: Tensor, bias: Tensor | None, pattern: Pattern) -> Tensor:
        values = values.detach()
        if _is_one_block(inputs):
            inputs = inputs.t().contiguous().t()  # here, as the backward pass needs it so too
        ctx.save_for_backward(inputs if ctx.needs_input_grad[1] else None, values)
        ctx.pattern = pattern
        return _by_blocks(partial(pattern.times, values), inputs, pattern.shape[0], bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs, values = ctx.saved_tensors
        pattern = ctx.pattern
        if _is_one_block(gradient):
            gradient = gradient.t().contiguous().t()
        of_inputs = of_values = of_bias = None
        if ctx.needs_input_grad[0]:
            of_inputs = _by_blocks(partial(pattern.transposed_times, values), gradient, pattern.shape[1])
        if ctx.needs_input_grad[1]:
            of_values = pattern.sampled(_blocks(gradient), _blocks(inputs))
        if ctx.needs_input_grad[2]:
            of_bias = gradient.sum(0 if gradient.dim() == 2 else (0, 2))
        return of_inputs, of_values, of_bias, None


def _is_one_block(inputs: Tensor) -> bool:
    return inputs.dim() == 2 and len(inputs) <= _ONE_BLOCK


def _blocks(inputs: Tensor) -> list[Tensor]:
    """`inputs` as views [features, columns] that are small enough for a processor's cache."""
    if _is_one_block(inputs):
        return [inputs.t()]
    images = [inputs.t()] if inputs.dim() == 2 else inputs.unbind()
    return [block for image in images for block in torch.split(image, _COLUMNS, 1)]


def _by_blocks(times: Callable[[Tensor], Tensor], inputs: Tensor, features: int, bias: Tensor | None = None) -> Tensor:
    """Every block of `inputs` under `times`, and the bias added; in memory like `inputs`."""
    if _is_one_block(inputs):
        found = times(inputs.t())
        return (found if bias is None else found.add_(bias[:, None])).t()
    outputs = inputs.new_empty(
        (len(inputs), features) if inputs.dim() == 2 else (len(inputs), features, inputs.shape[2])
    )
    for block, into in zip(_blocks(inputs), _blocks(outputs), strict=True):
        found = times(block.contiguous())
        if bias is not None:
            found += bias[:, None]
        into.t().copy_(found.t())  # turned, as torch has a faster kernel for contiguous rows from transposed ones
    return outputs


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
