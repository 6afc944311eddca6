"""The loss around a minimum as a quadratic, ½ δᵀHδ: what a removed weight costs, and what the others do about it.

H is never inverted as a whole but for the weights that live: a removed weight cannot move to make up for another.
"""

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pruning.errors import DampingWarning, ScoreError
from pruning.layouts import STANDARD, Layout

_ELEMENTS = 2**24
"""How many numbers the matrices of a chunk of rows may hold."""

_RIGHT = 0.02
"""By how much, relative to a vector, an inverse in float32 may be off."""


@dataclass(frozen=True)
class Quadratic:
    """H of the weights of some tensors, flattened one after another and cut into rows that do not interact.

    Attributes:
        names: the tensors.
        hessian: [groups, size, size], float64 or float32, symmetric; consecutive rows share a matrix, equally many
            each. What is computed of it is in float64, but for `inverse_factors` of one in float32.
        weights: how many there are; the last row may lack some, which count as removed.
        damping: added to the diagonal: as it is, or as a share of the mean of its matrix' diagonal.
        relative: whether it is a share.
        layouts: of tensors whose rows are not those of [outputs, …], by name; they are flattened row by row.
    """

    names: tuple[str, ...]
    hessian: Tensor
    weights: int
    damping: float
    relative: bool
    layouts: Mapping[str, Layout] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.damping >= 0:
            raise ScoreError(f"damping={self.damping}: give one of at least 0")
        if not bool(torch.isfinite(self.hessian).all()):
            raise ScoreError(f"{', '.join(self.names)}: curvature has NaN or infinity: check the data and the network")

    def costs(self, weights: Mapping[str, Tensor], alive: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """w²/(2[H⁻¹]_qq), float64, H restricted to what is `alive`; 0 for what is not. Hassibi & Stork 1993, eq. 5.

        Where a matrix is zero so is the cost, as a share of nothing is nothing.
        """
        w, live = self._matrix(weights), self._matrix(alive)
        inverse = torch.ones_like(w)
        for part in self._parts(live):
            diagonals = torch.cholesky_inverse(part.factor).diagonal(dim1=1, dim2=2)
            inverse[part.rows] = inverse[part.rows].scatter(1, part.columns[part.pattern], diagonals[part.pattern])
        if self.relative:
            live = live * (self._scale > 0)[self._group, None]
        return self._tensors(w.square() / (2 * inverse) * live, weights)

    def moved(self, weights: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights after the removal of all that is not `kept`: the kept ones minimise the quadratic, float64.

        w_A + H_AA⁻¹ H_AR w_R; with one weight removed, Hassibi & Stork 1993, equation 5.
        """
        w, live = self._matrix(weights), self._matrix(kept)
        removed = (w * (1 - live)).view(len(self.hessian), -1, w.shape[1])
        pull = (removed @ self.hessian.double()).view_as(w)
        moved = w * live
        for part in self._parts(live):
            columns = part.columns[part.pattern]
            sides = part.factor.new_zeros(len(part.factor), part.factor.shape[1], int(part.place.max()) + 1)
            sides[part.pattern, :, part.place] = (pull * live)[part.rows].gather(1, columns)
            solved = torch.cholesky_solve(sides, part.factor)[part.pattern, :, part.place]
            moved[part.rows] = moved[part.rows].scatter_add(1, columns, solved * live[part.rows].gather(1, columns))
        return self._tensors(moved, weights)

    def inverse_factors(self) -> Tensor:
        """Upper triangular U with UᵀU the inverse of the damped H, [groups, size, size].

        In the dtype of H; of one in float32 that is too close to singular for it, in float64.
        """
        if self.hessian.dtype == torch.float32:
            upper = _inverse_factor(self.hessian, self._damping(self._scale).float())
            if upper is not None:
                return upper
        groups = torch.arange(len(self.hessian), device=self.hessian.device)
        every = torch.arange(self.hessian.shape[1], device=self.hessian.device).expand(len(groups), -1)
        factor, grown = self._factor(groups, every, torch.ones_like(every, dtype=torch.float64))
        self._report(grown)
        inverse = torch.cholesky_inverse(factor)
        del factor
        found: Tensor = torch.linalg.cholesky(inverse, upper=True)
        return found

    @property
    def rows(self) -> int:
        """How many rows of `size` weights."""
        return -(-self.weights // self.hessian.shape[1])

    @property
    def _group(self) -> Tensor:
        """The number of every row's matrix."""
        return torch.arange(self.rows, device=self.hessian.device) // (self.rows // len(self.hessian))

    @property
    def _scale(self) -> Tensor:
        """The mean of every matrix' diagonal, over the weights that there are."""
        size = self.hessian.shape[1]
        present = torch.full_like(self.hessian[:, 0, 0], size, dtype=torch.float64)
        if self.rows == len(self.hessian):
            present[-1] = self.weights - (self.rows - 1) * size
        return self.hessian.diagonal(dim1=1, dim2=2).sum(1, dtype=torch.float64) / present

    def _damping(self, scale: Tensor) -> Tensor:
        """What is added to the diagonal of matrices of that `scale`; nothing is a share of nothing, so 1 stands in."""
        return torch.full_like(scale, self.damping) * (torch.where(scale > 0, scale, 1.0) if self.relative else 1)

    def _matrix(self, tensors: Mapping[str, Tensor]) -> Tensor:
        rows = (self.layouts.get(name, STANDARD).rows(tensors[name].detach()) for name in self.names)
        flat = torch.cat([part.reshape(-1).to(self.hessian.device, torch.float64) for part in rows])
        size = self.hessian.shape[1]
        return torch.nn.functional.pad(flat, (0, self.rows * size - len(flat))).view(self.rows, size)

    def _tensors(self, matrix: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        sizes = [like[name].numel() for name in self.names]
        parts = torch.split(matrix.reshape(-1)[: sum(sizes)], sizes)
        return {
            name: self.layouts.get(name, STANDARD).restored(part, like[name].shape)
            for name, part in zip(self.names, parts, strict=True)
        }

    def _parts(self, live: Tensor) -> Iterator["_Part"]:
        """Rows with equal matrices and live weights share a factor; as many factors at a time as memory allows."""
        keys, pattern = torch.unique(torch.cat([self._group[:, None].to(live), live], 1), dim=0, return_inverse=True)
        groups, patterns = keys[:, 0].long(), keys[:, 1:]
        most = int(pattern.bincount().max())
        counts = patterns.sum(1).long()
        order = counts.argsort(descending=True, stable=True)
        order = order[: int((counts > 0).sum())]
        largest = 0.0
        while len(order):
            size = int(counts[order[0]])
            chosen = order[: max(1, _ELEMENTS // (size * max(size, most)))]
            order = order[len(chosen) :]
            columns = patterns[chosen].argsort(dim=1, descending=True, stable=True)[:, :size]
            factor, damping = self._factor(groups[chosen], columns, patterns[chosen].gather(1, columns))
            largest = max(largest, damping)
            local = torch.full((len(keys),), -1, device=live.device)
            local[chosen] = torch.arange(len(chosen), device=live.device)
            rows = (local[pattern] >= 0).nonzero()[:, 0]
            yield _Part(rows, local[pattern[rows]], columns, factor)
        self._report(largest)

    def _report(self, damping: float) -> None:
        """Warn where the damping had to grow, to `damping`; 0 where it did not."""
        if damping:
            text = f"{', '.join(self.names)}: H is singular, its damping grew to {damping:.2g}"
            warnings.warn(text, DampingWarning, stacklevel=5)

    def _factor(self, groups: Tensor, columns: Tensor, live: Tensor) -> tuple[Tensor, float]:
        """Cholesky factors of the damped H of the live columns, and the largest damping that had to grow, or 0."""
        matrices = self.hessian[groups[:, None, None], columns[:, :, None], columns[:, None, :]].double()
        if not bool(live.all()):  # fewer live weights than others of this chunk: 1 on the diagonal, 0 beside it
            matrices.mul_(live[:, :, None]).mul_(live[:, None, :]).diagonal(dim1=1, dim2=2).add_(1 - live)
        scale = self._scale[groups]
        damping = self._damping(scale)
        scale = torch.where(scale > 0, scale, 1.0)
        matrices.diagonal(dim1=1, dim2=2).add_(damping[:, None] * live)
        grown = 0.0
        while True:
            factor, info = torch.linalg.cholesky_ex(matrices)
            failed = info > 0
            if not bool(failed.any()):
                return factor, grown
            more = torch.where(failed, torch.maximum(damping * 10, scale * 1e-12), damping)
            matrices.diagonal(dim1=1, dim2=2).add_((more - damping)[:, None] * live)
            damping = more
            grown = float(damping[failed].max())
            if bool((damping > 1e6 * scale).any()):
                raise ScoreError(
                    f"{', '.join(self.names)}: curvature stays singular, whatever is added: check the loss"
                )


def _inverse_factor(hessian: Tensor, damping: Tensor) -> Tensor | None:
    """`Quadratic.inverse_factors` in the dtype of `hessian`, with few copies; None where rounding would spoil it."""
    damped = hessian.clone()
    damped.diagonal(dim1=1, dim2=2).add_(damping[:, None])
    signs = torch.randint(2, (damped.shape[1], 4), generator=torch.Generator().manual_seed(0)) * 2 - 1
    vectors = signs.to(damped)
    images = damped @ vectors
    factor, failed = torch.linalg.cholesky_ex(damped)
    del damped
    if bool(failed.any()):
        return None
    inverse = torch.cholesky_inverse(factor)
    del factor
    upper, failed = torch.linalg.cholesky_ex(inverse, upper=True)
    if bool(failed.any()):
        return None
    off = (upper.mT @ (upper @ images) - vectors).norm(dim=1) / vectors.norm(dim=0)
    return upper if bool((off <= _RIGHT).all()) else None


@dataclass(frozen=True)
class _Part:
    """Some rows, and of each its pattern: live columns first, [patterns, size], with their factor."""

    rows: Tensor
    pattern: Tensor
    columns: Tensor
    factor: Tensor

    @property
    def place(self) -> Tensor:
        """The number of a row among those of its pattern."""
        order = self.pattern.argsort(stable=True)
        first = torch.searchsorted(self.pattern[order], self.pattern[order])
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order), device=order.device) - first
        return place
