"""One budget for all adaptations: each gets its largest configuration that does not exceed it.

A budget counts trained weights, or bytes on disk. `lora:8` is what a LoRA of that rank trains of all matrices: its
sizes are steps, and a sparse update can have any.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from pruning.errors import AdaptationError

_UNITS = {"": 1, "k": 1000, "M": 1000**2, "G": 1000**3}
VALUE = 4
"""Bytes of a trained weight on disk, in float32."""


@dataclass(frozen=True)
class Budget:
    """At most so many trained weights, or so many bytes on disk; the other is None."""

    count: int | None = None
    bytes: int | None = None

    def __post_init__(self) -> None:
        if (self.count is None) == (self.bytes is None) or (self.count or self.bytes or 0) < 1:
            raise AdaptationError(f"budget: count={self.count}, bytes={self.bytes}: give one of them, at least 1")

    def allows(self, count: int, size: float | None = None) -> bool:
        """Whether `count` weights of `size` bytes (None: float32 values alone) are within it."""
        if self.count is not None:
            return count <= self.count
        assert self.bytes is not None
        return (VALUE * count if size is None else size) <= self.bytes

    def __str__(self) -> str:
        return f"{self.count:,} weights" if self.count is not None else f"{self.bytes:,} bytes"


def parse_budget(field: float | str, parameters: Mapping[str, Tensor]) -> Budget:
    """The budget that a field of a configuration stands for.

    Args:
        field: `20736`, a number of weights; `0.004` or `0.4%`, a share of the parameters; `100kB` or `2.5MB`, bytes on
            disk (1 kB = 1000 bytes) of values and places, without a file's header; `lora:8`, the weights of a LoRA of
            rank 8 of all their matrices.
        parameters: those that may be adapted, by name, as `pruning.prunable` gives them.

    Raises:
        AdaptationError: none of these, less than one weight, or more than all.
    """
    total = sum(parameter.numel() for parameter in parameters.values())
    found = _parsed(str(field), total, parameters)
    if found is None:
        raise AdaptationError(f"budget={field!r}: give a number of weights, a share (0.4%), bytes (100kB) or lora:8")
    if found.count is not None and found.count > total:
        raise AdaptationError(f"budget={field}: is {found.count:,} weights, of {total:,} that may be adapted")
    return found


def lora_count(parameters: Mapping[str, Tensor], rank: int) -> int:
    """Trained weights of a LoRA of `rank`: rank · (inputs + outputs) of every matrix; Hu et al. 2021."""
    shapes = [parameter.shape for parameter in parameters.values() if parameter.dim() == 2]
    return sum(rank * (shape[0] + shape[1]) for shape in shapes)


def sparse_bytes(count: int, total: int) -> float:
    """Bytes on disk of `count` differences at places among `total`: their values, and the entropy of the places."""
    share = count / total
    entropy = 0.0 if share in (0, 1) else -share * math.log2(share) - (1 - share) * math.log2(1 - share)
    return VALUE * count + entropy * total / 8


def largest(within: Budget, name: str, size_of: Callable[[int], tuple[int, float | None]], most: int) -> int:
    """The largest number from 1 to `most` of which `size_of`, (trained weights, bytes or None), is allowed.

    Raises `AdaptationError` if 1 is too large; `name` says what is numbered.
    """
    if not within.allows(*size_of(1)):
        raise AdaptationError(f"budget: {within} are less than {name} takes, {size_of(1)[0]:,} weights: raise it")
    low, high = 1, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if within.allows(*size_of(middle)) else (low, middle - 1)
    return low


def _parsed(text: str, total: int, parameters: Mapping[str, Tensor]) -> Budget | None:
    if found := re.fullmatch(r"lora:(\d+)", text):
        count = lora_count(parameters, int(found[1]))
        if not count:
            raise AdaptationError(f"budget={text}: rank 0, or no matrix among the parameters: give another budget")
        return Budget(count)
    if found := re.fullmatch(r"(\d+(?:\.\d+)?)(k|M|G|)B", text):
        return Budget(bytes=int(float(found[1]) * _UNITS[found[2]]))
    share = re.fullmatch(r"(\d+(?:\.\d+)?)%", text)
    try:
        number = float(share[1]) / 100 if share else float(text)
    except ValueError:
        return None
    if not 0 < number < math.inf:
        return None
    if share or "." in text or "e" in text:
        return Budget(round(number * total)) if number <= 1 else None
    return Budget(int(text))
