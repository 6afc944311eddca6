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

from pruning.errors import ExecutionError

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
        _silence_beta_warning()
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
        """What the places take in memory: 8 bytes a kept value, or 12 with sides over 32,768; 4 a row and column."""
        return sum(value.nbytes for value in vars(self).values() if isinstance(value, Tensor))

    def times(self, values: Tensor, features: Tensor) -> Tensor:
        """The matrix of `values` times [inputs, batch]: [outputs, batch]."""
        return _sums(features, self.columns, self.rows, values)

    def transposed_times(self, values: Tensor, features: Tensor) -> Tensor:
        """The transposed matrix of `values` times [outputs, batch]: [inputs, batch]."""
        return _sums(features, self.columns_t, self.rows_t, values.index_select(0, self.order))

    def sampled(self, values: Tensor, pairs: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
        """Σ left · rightᵀ at the kept places alone, over pairs of [outputs, columns] and [inputs, columns].

        A vector like `values`.
        """
        found = torch.zeros_like(values)
        # the kernel is faster on 64-bit indices, by more than it takes to make them
        places = torch.sparse_csr_tensor(
            self.rows.long(), self.columns.long(), found, self.shape, check_invariants=False
        )
        for left, right in pairs:
            torch.sparse.sampled_addmm(places, left, right.t(), out=places)
        return found

    def flat(self) -> Tensor:
        """The places of the values in the flattened matrix."""
        counts = (self.rows[1:] - self.rows[:-1]).long()
        row = torch.repeat_interleave(torch.arange(self.shape[0], device=self.rows.device), counts)
        return row * self.shape[1] + self.columns


def product(
    inputs: Tensor, values: Tensor, bias: Tensor | None, pattern: Pattern, features_first: bool = True
) -> Tensor:
    """W · x + bias for every x in `inputs`, W being the matrix of `values`.

    Its gradients are those of the dense product, for `values` at the kept places alone.

    Args:
        inputs: [rows, inputs], as a Linear takes them, or [images, inputs, positions], as a convolution does.
        features_first: of no more rows than one block, the output may lie in memory as [outputs, rows].

    Returns:
        [rows, outputs] or [images, outputs, positions].

    Raises:
        ExecutionError: in a backward pass that is to be differentiated once more.
    """
    if inputs.dim() == 2 and len(inputs) <= _ONE_BLOCK:
        found: Tensor = _OneBlock.apply(inputs.t(), values, bias, pattern).t()
        return found if features_first else found.contiguous()
    outputs: Tensor = _Blocks.apply(inputs, values, bias, pattern)
    return outputs


class _OneBlock(torch.autograd.Function):
    """W · features + bias, for [inputs, columns]: [outputs, columns]."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, values: Tensor, bias: Tensor | None, pattern: Pattern) -> Tensor:
        features, values = _contiguous(features), values.detach()
        outputs = pattern.times(values, features)
        if bias is not None:
            outputs += bias[:, None]
        ctx.pattern = pattern
        ctx.save_for_backward(features if ctx.needs_input_grad[1] else None, values)
        return outputs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        _once()
        (features, values), pattern = ctx.saved_tensors, ctx.pattern
        needs_features, needs_values, needs_bias, _ = ctx.needs_input_grad
        gradient = _contiguous(gradient)
        return (
            pattern.transposed_times(values, gradient) if needs_features else None,
            pattern.sampled(values, [(gradient, features)]) if needs_values else None,
            gradient.sum(1) if needs_bias else None,
            None,
        )


class _Blocks(torch.autograd.Function):
    """The same block by block, for [rows, inputs] or [images, inputs, positions], and in memory like these."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, values: Tensor, bias: Tensor | None, pattern: Pattern) -> Tensor:
        values = values.detach()
        ctx.pattern = pattern
        ctx.save_for_backward(inputs if ctx.needs_input_grad[1] else None, values)
        return _by_blocks(partial(pattern.times, values), inputs, pattern.shape[0], bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        _once()
        (inputs, values), pattern = ctx.saved_tensors, ctx.pattern
        needs_inputs, needs_values, needs_bias, _ = ctx.needs_input_grad
        of_inputs = of_values = None
        if needs_inputs:
            of_inputs = _by_blocks(partial(pattern.transposed_times, values), gradient, pattern.shape[1])
        if needs_values:
            blocks = zip(_blocks(gradient), _blocks(inputs), strict=True)
            of_values = pattern.sampled(values, ((_contiguous(left), _contiguous(right)) for left, right in blocks))
        of_bias = gradient.sum(0 if gradient.dim() == 2 else (0, 2)) if needs_bias else None
        return of_inputs, of_values, of_bias, None


def _once() -> None:
    """Torch's own guard sees only gradients that themselves came from a graph, and would lose others in silence."""
    if torch.is_grad_enabled():
        raise ExecutionError(
            "create_graph=True: layers of kept values have no second derivatives: train with execution=masked, or call "
            "dense_execution(model) first"
        )


def _by_blocks(times: Callable[[Tensor], Tensor], inputs: Tensor, features: int, bias: Tensor | None = None) -> Tensor:
    """Every block of `inputs` under `times`, and the bias added; rows as rows, images as images."""
    shape = (len(inputs), features) if inputs.dim() == 2 else (len(inputs), features, inputs.shape[2])
    outputs = inputs.new_empty(shape)
    for block, into in zip(_blocks(inputs), _blocks(outputs), strict=True):
        found = times(_contiguous(block))
        if bias is not None:
            found += bias[:, None]
        into.copy_(found)
    return outputs


def _blocks(inputs: Tensor) -> list[Tensor]:
    """Rows or images as views [features, columns] that are small enough for a processor's cache."""
    images = [inputs.t()] if inputs.dim() == 2 else inputs.unbind()
    return [block for image in images for block in torch.split(image, _COLUMNS, 1)]


def _contiguous(block: Tensor) -> Tensor:
    """A matrix, row by row. Torch turns a matrix on one thread, but what has three dimensions on all of them."""
    return block if block.is_contiguous() else block[None].contiguous()[0]


def _sums(features: Tensor, columns: Tensor, rows: Tensor, values: Tensor) -> Tensor:
    """The CSR matrix (rows, columns, values) times `features`."""
    sums: Tensor = torch.embedding_bag(features, columns.int(), rows, False, 0, False, values, True)[0]
    return sums


def _narrow(places: Tensor, end: int) -> Tensor:
    """`places`, all below `end`, in as few bits as hold them."""
    return places.to(torch.int16 if end <= 2**15 else torch.int32)


def _starts(counts: Tensor) -> Tensor:
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)]).int()


def _silence_beta_warning() -> None:
    """Torch says once a process that CSR is in beta. That is known here, tested here, and no news to a user."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        rows, nothing = torch.tensor([0, 0]), torch.tensor([], dtype=torch.int64)
        torch.sparse_csr_tensor(rows, nothing, nothing.float(), (1, 1), check_invariants=False)
