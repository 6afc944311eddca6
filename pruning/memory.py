"""Which weights a tensor shares memory with: how a read of a weight, or of a view of it, is recognised."""

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor


class Memory:
    """The memory of some tensors, by name."""

    def __init__(self, tensors: Mapping[str, Tensor]):
        self._spans: dict[int, list[tuple[str, int, int]]] = {}
        self._alive: list[Tensor] = []  # an address is unique only among the living
        for name, tensor in tensors.items():
            self.add(name, tensor)

    def add(self, name: str, tensor: Tensor) -> None:
        """Add `tensor` under `name`; a name may stand for several."""
        if _has_storage(tensor):
            self._alive.append(tensor)
            self._spans.setdefault(_storage(tensor), []).append((name, *_span(tensor)))

    def names(self, tensor: Tensor) -> Iterator[str]:
        """The names of those that `tensor`, which may be a view of them, shares memory with."""
        known = self._spans.get(_storage(tensor)) if _has_storage(tensor) else None
        if known is not None:
            start, stop = _span(tensor)
            yield from (name for name, first, last in known if start < last and first < stop)


def arguments_of(args: Iterable[Any], kwargs: Mapping[str, Any]) -> Iterator[Tensor]:
    """The tensors among the arguments of an ATen operator."""
    for value in (*args, *kwargs.values()) if kwargs else args:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from arguments_of(value, {})


@cache
def reads(function: Any) -> bool:
    """Whether an operator reads the values of its arguments: not for another view of them, or for their shape alone."""
    schema = getattr(function, "_schema", None)  # operators of higher order have none
    if schema is None:
        return True
    view = any(out.alias_info is not None and not out.alias_info.is_write for out in schema.returns)
    return not view and not schema.name.removeprefix("aten::").startswith(("new_", *_LIKE))


_LIKE = ("zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "randint_like")


def is_copy(function: Any) -> bool:
    """Whether an operator gives its argument again, perhaps in another type."""
    return function in (torch.ops.aten._to_copy.default, torch.ops.aten.clone.default)


def _has_storage(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and not tensor.is_meta and tensor.numel() > 0


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage().data_ptr())


def _span(tensor: Tensor) -> tuple[int, int]:
    """The bytes of its storage between which `tensor` lies."""
    start = int(tensor.storage_offset())
    reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return start * tensor.element_size(), (start + reach + 1) * tensor.element_size()
