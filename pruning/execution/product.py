"""A matrix of few kept values times a batch, with the gradients at what is kept alone.

Blocks of a batch lie features first, [features, columns], so that every kept value works on a contiguous row. The
output of a small batch is handed on as the transposed view of such a tensor; element-wise operations keep that layout,
and nothing is copied in between. Larger batches are laid so block by block, within the processor's cache.

An output row is a sum of input rows, each times its value: a bag of embeddings with weights, and torch's kernel for
those is two to three times as fast as MKL's CSR product on batches of 32 and more. On a single example MKL's is the
faster by as much; in between, and in float64, it depends on processor and shape, so `few` is measured (`crossover`).
"""

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pruning.errors import ExecutionError

_ONE_BLOCK = 512
"""Rows of a Linear's batch that are one block, and stay features first from layer to layer."""
_COLUMNS = 112
"""Columns of a block of anything larger; no power of two, at which rows would compete for the same lines of cache."""
_VECTOR = 8
"""Columns below which torch's sampled product takes each by itself, up to thirteen times as slowly; one excepted."""


@dataclass(frozen=True)
class Pattern:
    """Where the kept values of a matrix of `shape` [outputs, inputs] lie, in row-major order: CSR.

    Columns are 16-bit where they fit, unless few are multiplied at a time, which would not pay for widening them; all
    else is 32-bit.

    Attributes:
        rows, columns: where each row begins, and the column of every value.
        few: blocks of as many columns or fewer are multiplied by MKL's CSR product, larger ones by bags; 0 without MKL.
    """

    shape: tuple[int, int]
    rows: Tensor
    columns: Tensor
    few: int = 0

    @classmethod
    def of(cls, mask: Tensor, few: int = 0) -> "Pattern":
        """Pattern of a bool matrix, True = kept."""
        _silence_beta_warning()
        outputs, inputs = mask.shape
        return cls(
            shape=(outputs, inputs),
            rows=_starts(mask.sum(1)),
            columns=_narrow(mask.nonzero()[:, 1], 2**31 if few else inputs),  # sorted by row, then column
            few=few if has_csr() else 0,
        )

    @cached_property
    def transposed(self) -> tuple[Tensor, Tensor, Tensor]:
        """Rows and columns of the transposed matrix, and where its values are among these; for gradients of inputs."""
        order = torch.argsort(self.columns, stable=True)
        rows = torch.repeat_interleave(torch.arange(self.shape[0], device=self.rows.device), self._counts())
        counts = torch.bincount(self.columns, minlength=self.shape[1])
        return _starts(counts), _narrow(rows[order], self.shape[0]), order.int()

    @property
    def nbytes(self) -> int:
        """What the places take in memory.

        2 bytes a kept value, or 4 with `few` or more than 32,768 inputs, and 4 a row; once there were gradients of
        inputs 6 more a value, or 8 with more than 32,768 outputs, and 4 a column.
        """
        tensors = (self.rows, self.columns, *vars(self).get("transposed", ()))
        return sum(value.nbytes for value in tensors)

    def times(self, values: Tensor, features: Tensor) -> Tensor:
        """The matrix of `values` times [inputs, batch]: [outputs, batch]."""
        return self._sums(self.shape, self.rows, self.columns, values, features)

    def transposed_times(self, values: Tensor, features: Tensor) -> Tensor:
        """The transposed matrix of `values` times [outputs, batch]: [inputs, batch]."""
        rows, columns, order = self.transposed
        return self._sums(self.shape[::-1], rows, columns, values.index_select(0, order), features)

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
            if 1 < left.shape[1] < _VECTOR:
                left, right = (F.pad(block, (0, _VECTOR - block.shape[1])) for block in (left, right))
            torch.sparse.sampled_addmm(places, left, right.t(), out=places)
        return found

    def flat(self) -> Tensor:
        """The places of the values in the flattened matrix."""
        row = torch.repeat_interleave(torch.arange(self.shape[0], device=self.rows.device), self._counts())
        return row * self.shape[1] + self.columns

    def _counts(self) -> Tensor:
        return (self.rows[1:] - self.rows[:-1]).long()

    def _sums(self, shape: tuple[int, int], rows: Tensor, columns: Tensor, values: Tensor, features: Tensor) -> Tensor:
        """The CSR matrix (rows, columns, values) of `shape` times `features`."""
        columns, values, features = columns.int(), values.detach(), features.detach()  # or torch readies gradients
        if features.shape[1] > self.few:
            sums: Tensor = torch.embedding_bag(features, columns, rows, False, 0, False, values, True)[0]
            return sums
        matrix = torch.sparse_csr_tensor(rows, columns, values, shape, check_invariants=False)
        return torch.mv(matrix, features[:, 0])[:, None] if features.shape[1] == 1 else torch.mm(matrix, features)


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
        multiplied = _OneBlock.apply if torch.is_grad_enabled() else _one_block
        found: Tensor = multiplied(inputs.t(), values, bias, pattern).t()
        return found if features_first else found.contiguous()
    outputs: Tensor = _Blocks.apply(inputs, values, bias, pattern)
    return outputs


def has_csr() -> bool:
    """Whether torch has MKL, and so the CSR product."""
    return bool(torch._C.has_mkl)


def block_columns(rows: int, positions: int = 0) -> int:
    """How many columns a block has: of so many rows, or of images of so many positions."""
    if positions == 0 and rows <= _ONE_BLOCK:
        return rows
    return min(positions or rows, _COLUMNS)


def _one_block(features: Tensor, values: Tensor, bias: Tensor | None, pattern: Pattern) -> Tensor:
    """W · features + bias, for [inputs, columns]: [outputs, columns]."""
    outputs = pattern.times(values, _contiguous(features))
    if bias is not None:
        outputs += bias[:, None]
    return outputs


class _OneBlock(torch.autograd.Function):
    """`_one_block` with gradients."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, values: Tensor, bias: Tensor | None, pattern: Pattern) -> Tensor:
        features = _contiguous(features)
        ctx.pattern = pattern
        ctx.save_for_backward(features if ctx.needs_input_grad[1] else None, values)
        return _one_block(features, values, bias, pattern)

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
    """`_one_block` with gradients, block by block: [rows, inputs] or [images, inputs, positions], in memory alike."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, values: Tensor, bias: Tensor | None, pattern: Pattern) -> Tensor:
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
    """Refuse second derivatives: torch's guard misses gradients that came from no graph, and would lose them."""
    if torch.is_grad_enabled():
        raise ExecutionError(
            "create_graph=True: layers of kept values have no second derivatives: train with execution=masked, or call "
            "dense_execution(model) first"
        )


def _by_blocks(times: Callable[[Tensor], Tensor], inputs: Tensor, features: int, bias: Tensor | None = None) -> Tensor:
    """Apply `times` to every block of `inputs` and add the bias; rows stay rows, images stay images."""
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
    if block.shape[1] == 1:
        return block.flatten()[:, None]  # torch calls any stride of one column contiguous, but is slow on all but 1
    return block if block.is_contiguous() else block[None].contiguous()[0]


def _narrow(places: Tensor, end: int) -> Tensor:
    """`places`, all below `end`, in as few bits as hold them."""
    return places.to(torch.int16 if end <= 2**15 else torch.int32)


def _starts(counts: Tensor) -> Tensor:
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)]).int()


def _silence_beta_warning() -> None:
    """Silence the warning, once a process, that torch's CSR is in beta: tests here cover what is used of it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        rows, nothing = torch.tensor([0, 0]), torch.tensor([], dtype=torch.int64)
        torch.sparse_csr_tensor(rows, nothing, nothing.float(), (1, 1), check_invariants=False)
