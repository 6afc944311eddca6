"""Products: the operators in whose multiply-accumulates a weight takes part, and how many a removed weight saves.

Everything is a product [batch, M, K] x [batch, K, N] or a convolution, in which a weight works at several positions.
Torch's own counter does not know all of them.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

_aten = torch.ops.aten

Removed = Callable[[Tensor], Tensor | None]
"""Of a tensor, which of its entries are removed weights, a bool tensor of its shape; None: none."""

MATRIX_PRODUCTS = {"mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1, "addbmm": 1}
"""Operators that multiply matrices, and where in their arguments the first factor is."""

VECTOR_PRODUCTS = {"mv": 0, "dot": 0, "vdot": 0, "addmv": 1}
"""The same, where the second factor is a vector."""

GROUPED_PRODUCTS = {"grouped_mm": 0, "grouped_mm_fallback": 0}
"""The same, of groups of rows with a matrix each, as experts have them: torch's, and that of transformers."""


def operator_name(function: Any) -> str:
    """The name of an ATen operator without overload and underscores, as in "add" for aten::add_.Tensor."""
    return str(function.__name__.split(".")[0].strip("_"))


def saved(function: Any, args: tuple[Any, ...], output: Any, removed: Removed) -> int:
    """Multiply-accumulates of this operator in which a removed weight takes part."""
    name = operator_name(function)
    first = {**MATRIX_PRODUCTS, **VECTOR_PRODUCTS}.get(name)
    if first is not None:
        return _saved_by_factors(args[first], args[first + 1], removed)
    uses = 0
    if name == "convolution":
        uses = args[0].numel() // args[0].shape[1] if args[6] else output.numel() // output.shape[1]
    elif name == "trilinear":
        uses = _trilinear_examples(*args)
    elif name == "conv_tbc":
        uses = output.numel() // output.shape[-1]
    elif name in GROUPED_PRODUCTS:
        return _saved_by_groups(args, removed)
    return uses * int(gone.sum()) if uses and (gone := removed(args[1])) is not None else 0


def _saved_by_factors(left: Tensor, right: Tensor, removed: Removed) -> int:
    gone = removed(left), removed(right)
    if gone == (None, None):
        return 0
    rows, columns = (_as_matrices(t, g, side) for t, g, side in zip((left, right), gone, (0, 1), strict=True))
    whole = rows.shape[-2] * columns.shape[-1] * rows.shape[0] * rows.shape[-1]
    return int(whole - (rows.sum(-2) * columns.sum(-1)).sum())


def _saved_by_groups(args: tuple[Any, ...], removed: Removed) -> int:
    """Of rows [S, K], the first ones by the first matrix of [groups, K, N], up to the first of the given ends."""
    gone = removed(args[1]) if args[0].dim() == 2 and args[1].dim() == 3 else None
    if gone is None:
        return 0
    ends = args[2].to(gone.device)
    return int((ends.diff(prepend=ends.new_zeros(1)) * gone.sum((1, 2))).sum())


def copied_mask(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], removed: Removed) -> Tensor | None:
    """Removed entries of a copy, slice or gather of a weight; None for other operators."""
    if function is _aten.cat.default or function is _aten.stack.default:
        parts = [removed(part) for part in args[0]]
        if all(part is None for part in parts):
            return None
        filled = [
            torch.zeros(t.shape, dtype=torch.bool, device=t.device) if p is None else p
            for t, p in zip(args[0], parts, strict=True)
        ]
        joined: Tensor = function(filled, *args[1:], **kwargs)
        return joined
    if function not in _COPIES or not isinstance(args[0], Tensor):
        return None
    gone = removed(args[0])
    if gone is None:
        return None
    found: Tensor = gone if function is _aten._to_copy.default else function(gone, *args[1:], **kwargs)
    return found


_COPIES = (
    _aten.clone.default,
    _aten._to_copy.default,
    _aten.index.Tensor,
    _aten.index_select.default,
)


def flop_formulas() -> dict[Any, Callable[..., int]]:
    """FLOPs of operators that torch's counter leaves out, or miscounts where they are sparse: operator → formula."""
    found: dict[Any, Callable[..., int]] = {
        _aten.mv: lambda a, x, **_: 2 * a[0] * a[1],
        _aten.addmv: lambda b, a, x, **_: 2 * a[0] * a[1],
        _aten.dot: lambda a, b, **_: 2 * a[0],
        _aten.vdot: lambda a, b, **_: 2 * a[0],
        _aten.addbmm: lambda c, a, b, **_: 2 * a[0] * a[1] * a[2] * b[2],
        _aten.conv_tbc: lambda x, w, *_, out_shape, **__: 2 * torch.Size(out_shape).numel() * w[0] * w[1],
        _aten._trilinear: lambda *args, **_: 2 * _trilinear_examples(*args) * torch.Size(args[1]).numel(),
        _aten.mm: _by_values(0),
        _aten.addmm: _by_values(1),
        _aten._sparse_addmm: _by_values(1),
    }
    operators = [(_aten, "_grouped_mm"), (torch.ops.transformers, "grouped_mm_fallback")]
    return found | {getattr(space, name): _grouped for space, name in operators if hasattr(space, name)}


def _by_values(first: int) -> Callable[..., int]:
    """Of a product of matrices that may be sparse: a factor's values count, not its places."""

    def counted(*args: Any, **_: Any) -> int:
        left, right = args[first], args[first + 1]
        if right.layout is not torch.strided:
            return 2 * int(left.shape[0]) * int(right._nnz())
        values = left.numel() if left.layout is torch.strided else left._nnz()
        return 2 * int(values) * int(right.shape[1])

    counted._get_raw = True  # type: ignore[attr-defined]  # torch's word for: give it tensors, not their shapes
    return counted


def _grouped(left: Any, right: Any, *_: Any, **__: Any) -> int:
    """Of [S, K] x [groups, K, N], [M, K] x [K, N] in parts of K, [groups, M, K] x [groups, K, N] or x [K, S]."""
    if len(left) == 3 and len(right) == 2:
        return int(2 * left[1] * left[2] * right[1])
    return int(2 * torch.Size(left).numel() * right[-1])


def _trilinear_examples(first: Any, weight: Any, *_: Any) -> int:
    """Bilinear forms are of [examples, …] inputs, expanded to the shape of the weight between them."""
    shape = first.shape if isinstance(first, Tensor) else first
    return int(shape[0])


def _as_matrices(tensor: Tensor, removed: Tensor | None, side: int) -> Tensor:
    """What stays of a factor as [batch, rows, columns] of ones and zeros; a vector is a row on the left."""
    shape = [1] * (3 - tensor.dim()) + list(tensor.shape)
    if side == 1 and tensor.dim() == 1:
        shape = [1, tensor.shape[0], 1]
    if removed is None:
        return torch.ones((), dtype=torch.int64, device=tensor.device).expand(shape)
    return (~removed).reshape(shape).long()
