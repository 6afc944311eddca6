"""NumPy arrays on a CPU, where their comparisons take a fraction of the time of torch's, and tensors elsewhere.

What both have in common is used as it is: comparison with a number, `&`, `^`, `|`, slices, `cumsum(0)`.
"""

from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

Values: TypeAlias = Any  # a NumPy array or a tensor
Mask: TypeAlias = Any


def native(tensor: Tensor) -> Values:
    """`tensor` itself, or an array over its memory."""
    return tensor.numpy() if tensor.is_cpu else tensor


def empty(size: int, like: Tensor) -> Mask:
    """Memory for a mask. NumPy's comes in large pages, whose first use takes a quarter of the time of torch's."""
    return np.empty(size, bool) if like.is_cpu else torch.empty(size, dtype=torch.bool, device=like.device)


def on_host(values: Values) -> Values:
    """As a NumPy array."""
    return values.cpu().numpy() if isinstance(values, Tensor) else values


def as_tensor(values: Values) -> Tensor:
    """As a tensor over the same memory."""
    return values if isinstance(values, Tensor) else torch.from_numpy(values)


def at_least(values: Values, value: Any, out: Mask) -> None:
    """`values >= value` into `out`."""
    (torch.ge if isinstance(values, Tensor) else np.greater_equal)(values, value, out=out)


def above(values: Values, value: Any, out: Mask) -> None:
    """`values > value` into `out`."""
    (torch.gt if isinstance(values, Tensor) else np.greater)(values, value, out=out)


def true(mask: Mask) -> int:
    """How many elements of a mask are True."""
    return int(mask.sum()) if isinstance(mask, Tensor) else int(np.count_nonzero(mask))


def finite(values: Values) -> bool:
    """Whether none is NaN or infinite."""
    return bool((torch if isinstance(values, Tensor) else np).isfinite(values).all())


def where(values: Values, mask: Mask) -> Values:
    """`values[mask]`; NumPy's `compress` is faster where little is kept."""
    return values[mask] if isinstance(values, Tensor) else values.compress(mask)


def only(values: Values, alive: Values, dead: float) -> Values:
    """`values` where `alive` (bool, of the same shape), else `dead`.

    By their bits: NumPy and torch choose element by element, which takes eight times as long.
    """
    if isinstance(values, Tensor):
        return torch.where(alive, values, dead)
    integer = np.int32 if values.dtype == np.float32 else np.int64
    bits, other = values.view(integer), np.array(dead, values.dtype).view(integer)
    chosen = alive.astype(integer) - 1  # all bits where dead, none where alive
    chosen &= bits ^ other
    chosen ^= bits
    return chosen.view(values.dtype)


def contiguous(values: Values) -> Values:
    """In memory of its own, if it is not in one piece."""
    return values.contiguous() if isinstance(values, Tensor) else np.ascontiguousarray(values)


def zeros(like: Values) -> Values:
    """As many counts, of 8 bits."""
    return torch.zeros_like(like, dtype=torch.uint8) if isinstance(like, Tensor) else np.zeros(like.shape, np.uint8)


def kth_of_rows(values: Values, k: int) -> Values:
    """The `k`-th largest of each row, as a column."""
    if isinstance(values, Tensor):
        return values.topk(k, dim=1).values[:, -1:]
    place = values.shape[1] - k
    return np.partition(values, place, axis=1)[:, place : place + 1]
