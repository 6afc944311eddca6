"""What is felt where it is removed, because it holds no zeros there, and what is not."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.pruning.structure.zoo.case import Case, images


class Felt(nn.Module):
    """What is no zero where it is removed must not be summed over: each layer but the first would be felt if it lost
    a row."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.free, self.left, self.right = (nn.Linear(4, 6) for _ in range(3))
        self.form, self.head = form, nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        form = (FELT | QUIET)[self.form]
        return self.head(F.relu(self.free(x)))[:, 0] + form(self.left(x), self.right(x))


def _contracted(a: Tensor, b: Tensor) -> Tensor:
    """Σᵢ aᵢ·bᵢ as a product of matrices."""
    return (a[:, None] @ b[:, :, None])[:, 0, 0]


def _raised(a: Tensor) -> Tensor:
    """What writes to a view writes to what it is a view of."""
    a[:, None].add_(1.0)
    return a.sum(1)


def _raised_below(a: Tensor) -> Tensor:
    """And the other way round."""
    view = a[:, None]
    a.add_(1.0)
    return view.sum((1, 2))


FELT: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sum of a sigmoid": lambda a, b: (a.sigmoid() + b.cos()).sum(1),
    "softmax": lambda a, b: _contracted((a + b).softmax(1), a),
    "product of exponentials": lambda a, b: _contracted(a.exp(), b.exp()),
    "largest": lambda a, b: a.amax(1) + b.logsumexp(1),
    "mean": lambda a, b: a.mean(1) + b.std(1),
    "largest norm": lambda a, b: a.norm(float("inf"), 1) + b.norm(float("-inf"), 1),
    "clamps": lambda a, b: (a.clamp(0.5) + b.clamp(max=-0.5)).sum(1),
    "hard limits": lambda a, b: (F.hardtanh(a, 0.5, 1.0) + F.hardtanh(b, -2.0, -1.0)).sum(1),
    "threshold": lambda a, b: (F.threshold(a, 0.1, 2.0) + F.threshold(b, 0.0, 1.0)).sum(1),
    "batch norm without weights": lambda a, b: F.batch_norm(a + b, torch.ones(6), torch.ones(6)).sum(1),
    "batch norm with biases alone": lambda a, b: F.batch_norm(
        a + b, torch.ones(6), torch.ones(6), None, torch.zeros(6)
    ).sum(1),
    "constants": lambda a, b: (a + 1).sum(1) + (1 - b).sum(1),
    "powers": lambda a, b: a.abs().add(b.abs()).pow(0.0).sum(1),
    "quotient": lambda a, b: ((a.square() + 1) / b).sum(1),
    "comparisons": lambda a, b: torch.where(a > 0, a, 1.0).sum(1) + torch.where(b > 0, 1.0, b).sum(1),
    "bounds": lambda a, b: torch.clamp_min(a, 0.5).sum(1) + torch.clamp_max(b, -0.5).sum(1),
    "added products": lambda a, b: torch.addcmul(a, b.cos(), b.exp()).sum(1),
    "pooling": lambda a, b: F.max_pool1d(a[:, None], 2).sum((1, 2)) + F.avg_pool1d(b[:, None], 3)[:, 0, 0],
    "kernels": lambda a, b: F.conv1d(torch.ones(1, 1, 4), a.mean(0).exp()[:, None, None], b.mean(0)).sum(1)[:, 0],
    "offsets": lambda a, b: F.conv1d(torch.ones(1, 1, 4), a.mean(0)[:, None, None], b.mean(0).exp()).sum(1)[:, 0],
    "views in place": lambda a, b: _raised(a) + _raised_below(b),
    "distances": lambda a, b: torch.cdist(a.exp(), b).sum(1),
    "largest distance": lambda a, b: torch.cdist(a.cos(), b.cos(), p=float("inf")).sum(1),
    "scans": lambda a, b: a.cumsum(1)[:, 2] + b.sort(1).values[:, 2],
    "rolls": lambda a, b: a.roll(1, 1)[:, 0] + b.flip(1)[:, 0],
}


QUIET: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sum with zeros": lambda a, b: (F.silu(a) * b.sigmoid()).sum(1),
    "product with zeros": lambda a, b: _contracted(a.relu(), b.exp()),
    "norm with zeros": lambda a, b: a.norm(2, 1) + b.norm(1, 1) + (a * b).sum(1),
    "hard limits with zeros": lambda a, b: (F.hardtanh(a, -0.5, 1.0) * F.relu6(b)).sum(1),
    "powers with zeros": lambda a, b: (a * b).pow(2).sum(1),
    "places with zeros": lambda a, b: (
        (a * b).T[:, None, :, None].expand(-1, 3, -1, 5)[:, torch.tensor([0, 2]), :, torch.tensor([1, 4])].sum((0, 1))
    ),
    "copy with zeros": lambda a, b: torch.ones_like(a).copy_(a * b).sum(1),
    "quotient with zeros": lambda a, b: (a * b / (b.square() + 1)).sum(1),
    "clamps with zeros": lambda a, b: (a.clamp(-1) * b.clamp(-0.5, 0.5)).sum(1),
    "threshold with zeros": lambda a, b: (F.threshold(a, -0.1, 2.0) * F.threshold(b, 0.1, 0.0)).sum(1),
}


CASES: dict[str, Case] = {
    **{f"felt: {name}": (partial(Felt, name), lambda: images(4), (6,)) for name in FELT},
    **{f"not felt: {name}": (partial(Felt, name), lambda: images(4), (6, 6)) for name in QUIET},
}
