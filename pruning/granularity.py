"""What is removed together: weights, blocks, vectors. Scores are pooled into units, unit masks are expanded back.

A granularity is a frozen value with a method `gather(scores, within)`, which gives the units of all tensors. Those
here look at each tensor for itself: `pool(name, scores, alive)` gives the units of one; dead weights (False in `alive`)
take no part in a unit's score, and a unit whose weights are all dead is dead. `expand(unit_mask, shape)` gives the
weight mask (bool, `shape`) in which every kept unit is True.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import ClassVar, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from pruning.errors import GranularityError
from pruning.layouts import STANDARD, Layout, layout_of

Pooling = Literal["sum", "mean", "max", "l2"]
_POOLINGS = ("sum", "mean", "max", "l2")


@dataclass(frozen=True)
class Units:
    """The units of one tensor, or of one family of coupled slices.

    Attributes:
        scores: one a unit.
        alive: which of them live; None: all.
        shape: of the tensor itself, from which allocations may take a density; of one of its matrices, if several are
            stacked in it.
        copies: how many matrices there are.
        minimum: how many must stay.
        members: [units, n], for units of a traced structure: the numbers that each stands for, filled up with -1.
        layout: of `scores`, where units are single weights: which dimensions are the inputs of an output.
    """

    scores: Tensor
    alive: Tensor | None
    shape: torch.Size
    minimum: int = 0
    members: Tensor | None = None
    copies: int = 1
    layout: Layout = STANDARD

    @property
    def live(self) -> int:
        """How many units may be chosen."""
        return self.scores.numel() if self.alive is None else int(self.alive.sum())

    @property
    def each(self) -> int:
        """How many units of a traced structure every one stands for, at most; 1 where there is none."""
        return 1 if self.members is None else self.members.shape[1]

    def stand_for(self, mask: Tensor) -> int:
        """How many units those in a unit mask stand for."""
        return int(mask.sum()) if self.members is None else int((self.members[mask.cpu()] >= 0).sum())


@dataclass(frozen=True)
class Pooled:
    """The units of a whole network by tensor or family, and how masks of them become masks of weights by parameter."""

    units: Mapping[str, Units]
    expand: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


class Granularity(Protocol):
    """What `prune` needs of a granularity."""

    def gather(self, scores: Mapping[str, Tensor], within: Mapping[str, Tensor] | None) -> Pooled:
        """The units of `scores`, of whose weights only those in `within` are alive (None: all)."""
        ...


@runtime_checkable
class TensorGranularity(Protocol):
    """A granularity whose units lie in one tensor each; see the module's docstring.

    Attributes:
        by_rows: whether `pool` and `expand` are of the matrix [outputs, *inputs] that the tensor's layout makes of it.
    """

    by_rows: ClassVar[bool] = False

    def pool(self, name: str, scores: Tensor, alive: Tensor | None) -> Units: ...

    def expand(self, unit_mask: Tensor, shape: torch.Size) -> Tensor: ...

    def units(self, name: str, scores: Tensor, alive: Tensor | None, layout: Layout = STANDARD) -> Units:
        """`pool` of a tensor that has any layout."""
        if layout == STANDARD:
            return self.pool(name, scores, alive)
        if self.by_rows:
            _check_layout(name, layout)
            found = self.pool(name, layout.rows(scores), None if alive is None else layout.rows(alive))
        else:
            found = self.pool(name, scores, alive)
        single = found.scores.shape == scores.shape and not self.by_rows
        one = layout.matrix(scores.shape)
        copies = scores.numel() // max(1, one.numel())
        return replace(found, shape=one, copies=copies, layout=layout if single else STANDARD)

    def mask(self, unit_mask: Tensor, shape: torch.Size, layout: Layout = STANDARD) -> Tensor:
        """`expand` to a tensor that has any layout."""
        if self.by_rows and layout != STANDARD:
            return layout.restored(self.expand(unit_mask, layout.shape(shape)), shape)
        return self.expand(unit_mask, shape)

    def gather(self, scores: Mapping[str, Tensor], within: Mapping[str, Tensor] | None) -> Pooled:
        """The units of each tensor."""
        units = {
            name: self.units(name, score, None if within is None else within[name], layout_of(scores, name))
            for name, score in scores.items()
        }

        def expand(chosen: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {
                name: self.mask(chosen[name], score.shape, layout_of(scores, name)) for name, score in scores.items()
            }

        return Pooled(units, expand)


@dataclass(frozen=True)
class Weights(TensorGranularity):
    """Every weight for itself (unstructured)."""

    def pool(self, name: str, scores: Tensor, alive: Tensor | None) -> Units:
        return Units(scores, alive, scores.shape)

    def expand(self, unit_mask: Tensor, shape: torch.Size) -> Tensor:
        return unit_mask.view(shape)


@dataclass(frozen=True)
class Blocks(TensorGranularity):
    """Blocks of `shape` = (rows, columns) in the matrix [outputs, all else flattened]; odd edges give smaller blocks.

    A linear weight [out, in] is that matrix itself, a kernel [out, in, h, w] is seen as [out, in·h·w], experts as their
    matrices one below the other.
    """

    by_rows: ClassVar[bool] = True
    shape: tuple[int, int]
    pooling: Pooling = "sum"

    def __post_init__(self) -> None:
        sides = tuple(self.shape) if isinstance(self.shape, Sequence) else ()
        object.__setattr__(self, "shape", sides)  # a list from a configuration file is welcome
        if len(sides) != 2 or any(isinstance(side, bool) or not isinstance(side, int) or side < 1 for side in sides):
            raise GranularityError(f"Blocks({self.shape}): give two sides of at least 1, as in Blocks((4, 4))")
        _check_pooling(self.pooling)

    def pool(self, name: str, scores: Tensor, alive: Tensor | None) -> Units:
        _check_signs(name, scores, self.pooling)
        if scores.dim() < 2:
            raise GranularityError(f"{name}: a tensor of shape {list(scores.shape)} has no blocks: exclude it")
        matrix = scores.reshape(scores.shape[0], -1)
        grid = tuple(-(-size // side) for size, side in zip(matrix.shape, self.shape, strict=True))
        pooled = torch.empty(grid, dtype=_accumulated(scores.dtype), device=scores.device)
        lives = None if alive is None else torch.empty(grid, dtype=torch.bool, device=scores.device)
        for part, region in self._regions(matrix.shape):
            tiles = self._tiles(matrix[part])
            live = None if alive is None else self._tiles(alive.reshape(matrix.shape)[part])
            pooled[region] = _pooled(tiles, live, (1, 3), self.pooling)
            if lives is not None and live is not None:
                lives[region] = live.any(3).any(1)
        return Units(pooled, lives, scores.shape)

    def expand(self, unit_mask: Tensor, shape: torch.Size) -> Tensor:
        rows, columns = min(self.shape[0], shape[0]), min(self.shape[1], shape[1:].numel())
        whole = unit_mask.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
        return whole[: shape[0], : shape[1:].numel()].reshape(shape)

    def _regions(self, size: torch.Size) -> Iterator[tuple[tuple[slice, slice], tuple[slice, slice]]]:
        """Up to four parts of the matrix whose blocks all have one shape: body, right edge, lower edge, corner."""
        sides: list[list[tuple[slice, slice]]] = []
        for length, side in zip(size, self.shape, strict=True):
            body = length - length % side
            cuts = [(0, body), (body, length)]
            sides.append([(slice(a, b), slice(a // side, -(-b // side))) for a, b in cuts if b > a])
        for (rows, grid_rows), (columns, grid_columns) in product(*sides):
            yield (rows, columns), (grid_rows, grid_columns)

    def _tiles(self, part: Tensor) -> Tensor:
        """[blocks down, rows of a block, blocks across, columns of a block]."""
        rows, columns = (min(side, size) for side, size in zip(self.shape, part.shape, strict=True))
        return part.reshape(part.shape[0] // rows, rows, part.shape[1] // columns, columns)


@dataclass(frozen=True)
class Vectors(TensorGranularity):
    """One unit for every index along `dim`, an integer or several, pooled over all other dimensions.

    `Vectors(0)` are the rows of a matrix or the filters of a convolution, `Vectors(1)` columns or input channels,
    `Vectors((0, 1))` the kernels of a convolution. Channels coupled across layers are not followed here.
    """

    dim: int | tuple[int, ...] = 0
    pooling: Pooling = "sum"

    def __post_init__(self) -> None:
        dims = tuple(self.dim) if isinstance(self.dim, Sequence) else (self.dim,)
        whole = all(isinstance(d, int) and not isinstance(d, bool) for d in dims)
        if not dims or not whole or len(set(dims)) < len(dims) or any(d < 0 for d in dims):
            raise GranularityError(f"Vectors({self.dim}): give distinct dimensions, counted from 0")
        object.__setattr__(self, "dim", tuple(sorted(dims)))
        _check_pooling(self.pooling)

    def pool(self, name: str, scores: Tensor, alive: Tensor | None) -> Units:
        assert isinstance(self.dim, tuple)
        _check_signs(name, scores, self.pooling)
        if self.dim[-1] >= scores.dim():
            raise GranularityError(
                f"{name}: no dimension {self.dim[-1]} in a tensor of shape {list(scores.shape)}: "
                "choose another dim, or exclude the tensor"
            )
        others = tuple(d for d in range(scores.dim()) if d not in self.dim)
        if not others:
            return Units(scores, alive, scores.shape)
        lives = None if alive is None else alive.sum(others) > 0
        return Units(_pooled(scores, alive, others, self.pooling), lives, scores.shape)

    def expand(self, unit_mask: Tensor, shape: torch.Size) -> Tensor:
        assert isinstance(self.dim, tuple)
        aligned = [size if d in self.dim else 1 for d, size in enumerate(shape)]
        return unit_mask.view(aligned).expand(shape).contiguous()


def _check_layout(name: str, layout: Layout) -> None:
    if not layout.known:
        raise GranularityError(f"{name}: its module does not say which dimensions are its outputs: exclude it")


def _check_pooling(pooling: str) -> None:
    if pooling not in _POOLINGS:
        raise GranularityError(f"pooling {pooling!r} is unknown: choose one of {', '.join(_POOLINGS)}")


def _check_signs(name: str, scores: Tensor, pooling: Pooling) -> None:
    if pooling == "l2" and scores.numel() and bool((scores.detach() < 0).any()):
        raise GranularityError(f"{name}: pooling=l2 loses the sign of scores below 0: choose sum, mean or max")


def _accumulated(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype not in (torch.float32, torch.float16, torch.bfloat16) else torch.float32


def _pooled(scores: Tensor, alive: Tensor | None, dims: tuple[int, ...], pooling: Pooling) -> Tensor:
    """`scores` pooled over `dims`, dead weights left out, half precision accumulated in float32; dead units give 0."""
    scores = scores.detach().to(_accumulated(scores.dtype))
    if pooling == "max":
        if alive is None:
            return scores.amax(dims)
        highest = scores.masked_fill(~alive, -torch.inf).amax(dims)
        return highest.masked_fill(highest == -torch.inf, 0.0)
    if alive is not None:
        scores = scores.masked_fill(~alive, 0.0)
    if pooling == "l2":
        # squares leave the range of the scores' type long before the scores do, so each unit is scaled by its largest
        peak = scores.abs().amax(dims, keepdim=True).clamp(min=torch.finfo(scores.dtype).tiny)
        return (scores / peak).square().sum(dims, keepdim=True).sqrt().mul(peak).squeeze(dims)
    total = scores.sum(dims)
    if pooling == "sum":
        return total
    size = scores.numel() // max(1, total.numel())
    return total / size if alive is None else total / alive.sum(dims).clamp(min=1)
