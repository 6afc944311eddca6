"""Many tensors read as few flat arrays: small neighbours are gathered, large tensors cut, so that pieces fit caches.

Nothing is gathered as a whole unless it is small, so that what is needed beside scores and masks stays small too.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors

from pruning.selection import arrays
from pruning.selection.arrays import Mask, Values

CHUNK = 1 << 17  # elements of a piece: half a megabyte of float32, so that it and its masks stay in the cache
LAUNCH = 1 << 24  # the same on an accelerator, where every call costs more than its elements
HELD = 1 << 22  # what is gathered or converted is held from pass to pass up to so many elements, else made again

_SINGLE = {torch.float32, torch.float16, torch.bfloat16}

# `map` over these takes a fraction of a comprehension, which counts where tensors are many and small
_dtype, _shape = attrgetter("dtype"), attrgetter("shape")


@dataclass
class Run:
    """Consecutive tensors of one device, read piece by piece as one flat array.

    Attributes:
        scores: real tensors of any shapes.
        alive: bool tensors of the same shapes; None: all live.
        dtype: in which the scores are compared, float32 or float64.
        dead: as what the scores of the dead are read. NaN is neither above nor equal to anything.
        size: elements.
        held: the pieces, if they are kept from pass to pass.
    """

    scores: Sequence[Tensor]
    alive: Sequence[Tensor] | None
    dtype: torch.dtype
    dead: float
    size: int
    held: list[Values] | None = None

    def __iter__(self) -> Iterator[Values]:
        return self._pieces() if self.held is None else iter(self.held)

    def _pieces(self) -> Iterator[Values]:
        flat = gather(self.scores)
        live = None if self.alive is None else arrays.native(gather(self.alive))
        limit = piece_size(flat)
        for start in range(0, self.size, limit):
            part = flat if self.size <= limit else flat[start : start + limit]
            values = arrays.native(part if part.dtype == self.dtype else part.to(self.dtype))
            yield values if live is None else arrays.only(values, live[start : start + limit], self.dead)


def runs(scores: Sequence[Tensor], alive: Sequence[Tensor] | None = None, dead: float = float("nan")) -> list[Run]:
    """`scores` in order, in runs that fit a piece, or of one larger tensor."""
    dtype = common_dtype(scores)
    found, total = [], 0
    for part, size in neighbours(scores):
        found.append(Run(scores[part], None if alive is None else alive[part], dtype, dead, size))
        total += size
    if total <= HELD:
        for run in found:
            run.held = list(run)
    return found


def gather(tensors: Sequence[Tensor]) -> Tensor:
    """All elements, flat, in order; a view if it is one contiguous tensor."""
    if len(tensors) == 1:
        return tensors[0].detach().reshape(-1)
    if len(set(map(_dtype, tensors))) > 1:  # what torch promotes to need not hold every value
        dtype = common_dtype(tensors)
        tensors = [tensor.to(dtype) for tensor in tensors]
    flat: Tensor = _flatten_dense_tensors(tensors)  # type: ignore[no-untyped-call]  # half the time of ravel and cat
    return flat.detach()


def cut(mask: Mask, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """Views of a flat mask in the shapes of `tensors`: `gather` undone."""
    if len(tensors) == 1:
        return [arrays.as_tensor(mask.reshape(tensors[0].shape))]
    flat = arrays.as_tensor(mask)
    if len(set(map(_shape, tensors))) == 1:  # a view less for each
        return flat.view(len(tensors), *tensors[0].shape).unbind()
    return list(map(Tensor.view_as, flat.split_with_sizes(list(map(Tensor.numel, tensors))), tensors))


def count(masks: Sequence[Tensor]) -> int:
    """How many elements of the bool tensors `masks` are True."""
    return sum(arrays.true(arrays.native(gather(masks[part]))) for part, _ in neighbours(masks))


def common_dtype(scores: Sequence[Tensor]) -> torch.dtype:
    """The type in which all can be compared: float32 holds every half, float64 all but 64-bit integers above 2^53."""
    return torch.float32 if set(map(_dtype, scores)) <= _SINGLE else torch.float64


def piece_size(tensor: Tensor) -> int:
    """How many elements a piece of it has at most."""
    return CHUNK if tensor.is_cpu else LAUNCH


def elements(tensors: Iterable[Tensor]) -> int:
    """How many elements all of them have."""
    return sum(map(Tensor.numel, tensors))


def neighbours(tensors: Sequence[Tensor]) -> Iterator[tuple[slice, int]]:
    """Consecutive tensors of one device that fit a piece together, or one larger tensor; and their elements."""
    if not tensors:
        return
    size = elements(tensors)
    if len(tensors) == 1 or (size <= piece_size(tensors[0]) and len(set(map(Tensor.get_device, tensors))) == 1):
        yield slice(0, len(tensors)), size
        return
    start, size = 0, 0
    for position, tensor in enumerate(tensors):
        more, first = tensor.numel(), tensors[start]
        if position > start and (size + more > piece_size(first) or tensor.get_device() != first.get_device()):
            yield slice(start, position), size
            start, size = position, 0
        size += more
    yield slice(start, len(tensors)), size
