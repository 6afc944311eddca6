"""Tiny networks, one a way in which channels are coupled; each with inputs, and the number of units of each family."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations


def images(*shape: int) -> Tensor:
    return torch.randn(2, *shape)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv1, self.norm1 = nn.Conv2d(6, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.norm2 = nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(x + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))
        return self.head(x.mean((2, 3)))


class Dense(nn.Module):
    """Each layer reads all before it, through a norm and an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(3 + 4 * i, 4, 3, padding=1) for i in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm2d(3 + 4 * i) for i in range(3))
        self.head = nn.Linear(15, 3)

    def forward(self, x: Tensor) -> Tensor:
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = torch.cat([x, layer(F.relu(norm(x)))], 1)
        return self.head(x.mean((2, 3)))


class Pad(nn.Module):
    """A shortcut that appends channels of zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 3, padding=1), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(F.pad(x, (0, 0, 0, 0, 1, 1)) + self.conv(F.relu(x)))
        return self.head(x.mean((2, 3)))


class Appended(nn.Module):
    """A shortcut that appends a number of zeros, which happens to be that of its channels."""

    def __init__(self, channels: int, more: int) -> None:
        super().__init__()
        self.more, self.conv = more, nn.Conv2d(channels, channels + more, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(F.pad(x, (0, 0, 0, 0, 0, self.more)) + self.conv(x))


class ShuffleByHand(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 12, 3, groups=3)
        self.conv3 = nn.Conv2d(12, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        batch, channels, height, width = x.shape
        x = x.view(batch, 3, channels // 3, height, width).transpose(1, 2).reshape(batch, channels, height, width)
        return self.conv3(F.relu(self.conv2(x))).mean((2, 3))


class NHWC(nn.Module):
    """Channels last, and a linear layer over all of height, width and channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.inner, self.head = nn.Conv2d(3, 5, 3), nn.Linear(5, 4), nn.Linear(4 * 4 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.inner(F.relu(self.conv(x)).permute(0, 2, 3, 1)))
        return self.head(x.flatten(1))


class ByView(nn.Module):
    """A linear layer whose outputs are the channels of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.lift, self.up, self.out = nn.Linear(4, 6 * 9), nn.ConvTranspose2d(6, 4, 2, 2), nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.lift(x)).view(len(x), -1, 3, 3)
        return self.out(F.relu(self.up(x)))


class Squeeze(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.down, self.up, self.out = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.norm(self.conv(x)))
        gate = self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))).sigmoid()
        return self.out((x * gate).mean((2, 3)))


class Gated(nn.Module):
    def __init__(self, form: str) -> None:
        super().__init__()
        self.form, self.out = form, nn.Linear(6, 3)
        if form == "two":
            self.gate, self.value = nn.Linear(5, 6), nn.Linear(5, 6)
        else:
            self.both = nn.Linear(5, 12)

    def forward(self, x: Tensor) -> Tensor:
        if self.form == "two":
            return self.out(F.silu(self.gate(x)) * self.value(x))
        if self.form == "glu":
            return self.out(F.glu(self.both(x)))
        a, b = self.both(x).chunk(2, -1)
        return self.out(F.silu(a) * b)


class Attention(nn.Module):
    """Self or cross attention by torch's own module, before a norm of the residual width."""

    def __init__(self, cross: bool = False, **options: Any) -> None:
        super().__init__()
        self.cross, self.norm = cross, nn.LayerNorm(12)
        self.attention = nn.MultiheadAttention(12, 4, batch_first=True, **options)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        y = self.norm(x)
        source = y if other is None else other
        return self.head((x + self.attention(y, source, source, need_weights=False)[0]).mean(1))


class FusedAttention(nn.Module):
    """One projection for queries, keys and values; the number of heads is an attribute."""

    def __init__(self, relative: bool = False) -> None:
        super().__init__()
        self.num_heads, self.head_dim = 3, 4
        self.norm, self.qkv, self.proj = nn.LayerNorm(10), nn.Linear(10, 36), nn.Linear(12, 10)
        self.table = nn.Parameter(torch.randn(9, 3)) if relative else None
        self.register_buffer("places", torch.arange(5)[:, None] - torch.arange(5)[None] + 4)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(batch, length, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) / math.sqrt(self.head_dim)
        if self.table is not None:
            scores = scores + self.table[self.places.view(-1)].view(5, 5, -1).permute(2, 0, 1)
        return x + self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, -1))


class GroupedQuery(nn.Module):
    """Two query heads share a key head, with rotary embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(10, 24, bias=False), nn.Linear(10, 12), nn.Linear(10, 12)
        self.out = nn.Linear(24, 10)
        self.register_buffer("cos", torch.randn(5, 4))
        self.register_buffer("sin", torch.randn(5, 4))

    def rotated(self, x: Tensor) -> Tensor:
        a, b = x[..., :2], x[..., 2:]
        return x * self.cos + torch.cat([-b, a], -1) * self.sin

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (-1, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        k, v = (part[:, :, None].expand(-1, -1, 2, -1, -1).flatten(1, 2) for part in (self.rotated(k), v))
        found = F.scaled_dot_product_attention(self.rotated(q), k, v, is_causal=True)
        return x + self.out(found.transpose(1, 2).flatten(2))


class MultiQuery(nn.Module):
    """All query heads share one key, which is broadcast to them; the scale is that of the head's width."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.norm = 4, nn.RMSNorm(10)
        self.q, self.kv, self.out = nn.Linear(10, 16), nn.Linear(10, 8), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        q = self.q(y).view(len(x), -1, self.heads, 4).transpose(1, 2)
        k, v = self.kv(y)[:, None].chunk(2, -1)
        return x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Normalise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1)


class Scaled(nn.Module):
    """Its attribute is no size, though it is equal to one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        return x * self.width**-0.5


class Chunks(nn.Module):
    """The last of three chunks is smaller; which index is in which follows from their number."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(5, 11), nn.Linear(5, 6), nn.Linear(6, 3)
        self.parts = nn.ModuleList(nn.Linear(size, 3) for size in (4, 4, 3))

    def forward(self, x: Tensor) -> Tensor:
        parts = F.relu(self.first(x)).chunk(3, 1)
        return self.head(F.relu(self.second(x))) + sum(m(y) for m, y in zip(self.parts, parts, strict=True))


class Tied(nn.Module):
    """Embedding and head are one matrix, and its width is free."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.inner, self.head = nn.Embedding(11, 6), nn.Linear(6, 6), nn.Linear(6, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.embedding(x)
        return self.head(x + self.inner(F.relu(x)))


class Recurrent(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        if kind == "projected LSTM":
            self.rnn, width = nn.LSTM(6, 9, num_layers=2, batch_first=True, proj_size=3), 3
        else:
            self.rnn, width = getattr(nn, kind)(6, 5, num_layers=2, batch_first=True, bidirectional=True), 10
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(self.embedding(x))[0][:, -1])


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.shared, self.last = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.shared(F.relu(self.shared(F.relu(self.first(x)))))))


class Positional(nn.Module):
    """A parameter that is added, one that multiplies, and one that is put in front."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(4, 6), nn.Linear(6, 3)
        self.token, self.place = nn.Parameter(torch.randn(1, 1, 6)), nn.Parameter(torch.randn(1, 6, 6))
        self.scale = nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), self.inner(x)], 1) + self.place
        return self.head(x[:, 0] * self.scale)


class Cuts(nn.Module):
    """What fixes a dimension: a strided slice, an unequal one, a single index; and stack, unbind and einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 6) for _ in range(5))
        self.kernel, self.head = nn.Parameter(torch.randn(6, 5)), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c, d, e = (F.relu(layer(x)) for layer in self.layers)
        strided, unequal, single = a[:, ::2].sum(1), b[:, :4].sum(1), c[:, 2]
        first, second = torch.stack([d, e], 1).unbind(1)
        return self.head(torch.einsum("bi,ij->bj", first * second, self.kernel)) + (strided + unequal + single)[:, None]


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


class BatchNormSum(nn.Module):
    """The weights and biases of a batch norm make zeros, whatever its statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(4, 6), nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.layer(x)).sum(1)


class Window(nn.Module):
    """Attention in windows; the width of one may happen to be the number of heads."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.num_heads, self.window = heads, (3, 3)
        self.norm, self.qkv, self.proj = nn.LayerNorm(10), nn.Linear(10, 12 * heads), nn.Linear(4 * heads, 10)

    def forward(self, x: Tensor) -> Tensor:
        batch, rows = len(x), x.shape[1] // self.window[0]
        windows = self.norm(x).view(batch, rows, self.window[0], rows, self.window[1], -1).transpose(2, 3)
        qkv = self.qkv(windows.reshape(batch * rows * rows, self.window[0] * self.window[1], -1))
        q, k, v = qkv.unflatten(-1, (3, self.num_heads, 4)).permute(2, 0, 3, 1, 4)
        found = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        found = self.proj(found).view(batch, rows, rows, self.window[0], self.window[1], -1).transpose(2, 3)
        return x + found.reshape(x.shape)


class Patches(nn.Module):
    """Patches to rows of a linear layer, and back to an image of overlapping patches."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.inner, self.out = nn.Conv2d(3, 5, 1), nn.Linear(5 * 9, 4 * 4), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        rows = F.relu(self.inner(F.unfold(F.relu(self.conv(x)), 3).transpose(1, 2))).transpose(1, 2)
        return self.out(F.relu(F.fold(rows, (5, 5), 2)))


class Sampled(nn.Module):
    """Read at places that another branch computes, as a spatial transformer does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.where, self.place = nn.Conv2d(3, 5, 1), nn.Conv2d(3, 4, 3), nn.Linear(4, 6)
        self.out = nn.Conv2d(5, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        theta = self.place(F.relu(self.where(x)).mean((2, 3))).view(-1, 2, 3)
        x = F.relu(self.conv(x))
        return self.out(F.grid_sample(x, F.affine_grid(theta, x.shape, align_corners=False), align_corners=False))


class Fourier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 5, 1), nn.Conv2d(5, 2, 1)
        self.filter = nn.Parameter(torch.randn(6, 4, 2))

    def forward(self, x: Tensor) -> Tensor:
        waves = torch.fft.rfft2(F.relu(self.conv(x))) * torch.view_as_complex(self.filter)
        return self.out(F.relu(torch.fft.irfft2(waves, s=x.shape[2:])))


class Graph(nn.Module):
    """Nodes on a ring, each with the sum of its neighbours' messages."""

    def __init__(self) -> None:
        super().__init__()
        self.message, self.own, self.out = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(len(x), device=x.device)
        sent = F.relu(self.message(x))[places]
        return self.out(F.relu(self.own(x).index_add(0, (places + 1) % len(x), sent)))


class Prototypes(nn.Module):
    """Distances to learned points, whose features go with those of the layer below."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.points, self.out = nn.Linear(4, 6), nn.Parameter(torch.randn(5, 6)), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.cdist(F.relu(self.layer(x)), self.points))


class Bag(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bag, self.out = nn.EmbeddingBag(11, 6, mode="mean"), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.bag(x)))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.deep = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1, stride=2)
        self.up, self.out = nn.Conv2d(10, 5, 3, padding=1), nn.Conv2d(5, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = F.relu(self.down(x))
        deep = F.interpolate(F.relu(self.deep(skip)), scale_factor=2.0, mode="bilinear")
        return self.out(F.relu(self.up(torch.cat([deep, skip], 1))))


class Several(nn.Module):
    """Two inputs by name, and a dictionary of outputs, one of them a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head, self.tail = (nn.Linear(a, b) for a, b in ((4, 6), (5, 6), (6, 3), (6, 2)))

    def forward(self, left: Tensor, *, right: Tensor) -> dict[str, Any]:
        inner = F.gelu(self.left(left) + self.right(right))
        return {"logits": self.head(inner), "others": (self.tail(inner), inner.sum(1))}


class LoRA(nn.Module):
    """A frozen layer and a low-rank addition to it; the rank is a choice too."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.down, self.up = nn.Linear(5, 6), nn.Linear(5, 3, bias=False), nn.Linear(3, 6, bias=False)
        self.base.requires_grad_(False)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.base(x) + 2.0 * self.up(self.down(x))))


class Standardised(nn.Module):
    """Weights that are standardised over their inputs in the forward pass: without an input, all are others."""

    def __init__(self, by_batch_norm: bool = False) -> None:
        super().__init__()
        self.by_batch_norm = by_batch_norm
        self.first, self.second, self.third = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3), nn.Conv2d(4, 5, 1)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        weight = self.second.weight
        if self.by_batch_norm:
            weight = F.batch_norm(weight.flatten(1)[None], None, None, training=True).view_as(weight)
        else:
            weight = (weight - weight.mean((1, 2, 3), keepdim=True)) / weight.std((1, 2, 3), keepdim=True)
        x = F.relu(F.conv2d(x, weight, self.second.bias))
        return self.head(F.relu(self.third(x)).mean((2, 3)))


class Norms(nn.Module):
    """Convolutions with a norm in between."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm, self.next, self.head = nn.Conv2d(3, 8, 3), norm, nn.Conv2d(8, 6, 1), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.next(F.relu(self.norm(self.conv(x))))).mean((2, 3)))


class Rows(nn.Module):
    """Linear layers with a norm of the inner width."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.first, self.norm, self.second, self.head = nn.Linear(5, 8), norm, nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.second(F.relu(self.norm(self.first(x))))))


def _weight_norm() -> nn.Module:
    layers = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    parametrizations.weight_norm(layers[2])
    return layers


def _spectral_norm() -> nn.Module:
    layers = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 7), nn.Linear(7, 3))
    parametrizations.spectral_norm(layers[2])
    return layers


def _grouped(transposed: bool, groups: int, multiplier: int = 1) -> nn.Module:
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    middle = kind(6, 6 * multiplier, 3, padding=1, groups=groups)
    layers = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), middle, nn.BatchNorm2d(6 * multiplier), nn.ReLU()
    return nn.Sequential(*layers, nn.Conv2d(6 * multiplier, 3, 1))


Case = tuple[Callable[[], nn.Module], Callable[[], Any], tuple[int, ...]]

CASES: dict[str, Case] = {
    "residual": (Residual, lambda: images(3, 6, 6), (4, 6)),
    "dense": (Dense, lambda: images(3, 6, 6), (4, 4, 4)),
    "padded shortcut": (Pad, lambda: images(3, 6, 6), (4,)),
    "appended zeros": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), Appended(4, 4), Appended(8, 8), nn.Conv2d(16, 2, 1)),
        lambda: images(3, 6, 6),
        (4,),
    ),
    "depthwise": (lambda: _grouped(False, 6), lambda: images(3, 6, 6), (6,)),
    "depthwise with multiplier": (lambda: _grouped(False, 6, 2), lambda: images(3, 6, 6), (6,)),
    "grouped": (lambda: _grouped(False, 2), lambda: images(3, 6, 6), (3, 3)),
    "transposed": (lambda: _grouped(True, 1), lambda: images(3, 6, 6), (6, 6)),
    "transposed grouped": (lambda: _grouped(True, 2), lambda: images(3, 6, 6), (3, 3)),
    "transposed depthwise": (lambda: _grouped(True, 6, 2), lambda: images(3, 6, 6), (6,)),
    "one channel comes and goes": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 6, 3), nn.ReLU(), nn.ConvTranspose2d(6, 4, 3), nn.ReLU(), nn.Conv2d(4, 1, 1)
        ),
        lambda: images(1, 6, 6),
        (4, 6),
    ),
    "one channel in between": (
        lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 1, 1), nn.ConvTranspose2d(1, 4, 2), nn.Conv2d(4, 2, 1)),
        lambda: images(3, 6, 6),
        (4, 6),
    ),
    "one feature": (
        lambda: nn.Sequential(nn.Linear(1, 6), nn.ReLU(), nn.Linear(6, 1), nn.Linear(1, 5), nn.ReLU(), nn.Linear(5, 1)),
        lambda: images(1),
        (5, 6),
    ),
    "pixel shuffle": (
        lambda: nn.Sequential(nn.Conv2d(3, 12, 3), nn.PixelShuffle(2), nn.ReLU(), nn.Conv2d(3, 2, 1)),
        lambda: images(3, 6, 6),
        (3,),
    ),
    "pixel unshuffle": (
        lambda: nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.PixelUnshuffle(2), nn.Conv2d(20, 2, 1)),
        lambda: images(3, 6, 6),
        (5,),
    ),
    "channel shuffle": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 12, 1), nn.ReLU(), nn.ChannelShuffle(3), nn.Conv2d(12, 12, 3, groups=3), nn.Conv2d(12, 3, 1)
        ),
        lambda: images(3, 6, 6),
        (4,),
    ),
    "channel shuffle by hand": (ShuffleByHand, lambda: images(3, 6, 6), (4,)),
    "channels last": (NHWC, lambda: images(3, 6, 6), (4, 5)),
    "flatten": (
        lambda: nn.Sequential(nn.Conv2d(3, 5, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(20, 6), nn.Linear(6, 3)),
        lambda: images(3, 6, 6),
        (5, 6),
    ),
    "convolution after view": (ByView, lambda: images(4), (4, 6)),
    "squeeze and excitation": (Squeeze, lambda: images(3, 6, 6), (4, 8)),
    "gated by chunk": (lambda: Gated("chunk"), lambda: images(5), (6,)),
    "gated by glu": (lambda: Gated("glu"), lambda: images(5), (6,)),
    "gated by two layers": (lambda: Gated("two"), lambda: images(5), (6,)),
    "attention": (Attention, lambda: images(5, 12), (4,)),
    "attention without bias": (lambda: Attention(bias=False), lambda: images(5, 12), (4,)),
    "attention with learned keys": (lambda: Attention(add_bias_kv=True), lambda: images(5, 12), (4,)),
    "attention with zero keys": (lambda: Attention(add_zero_attn=True), lambda: images(5, 12), (4,)),
    "cross attention": (
        lambda: Attention(cross=True, kdim=7, vdim=7),
        lambda: (images(5, 12), images(6, 7)),
        (4,),
    ),
    "transformer": (
        lambda: nn.TransformerEncoderLayer(12, 4, 16, batch_first=True, norm_first=True),
        lambda: images(5, 12),
        (4, 16),
    ),
    "decoder": (
        lambda: nn.TransformerDecoderLayer(12, 4, 16, batch_first=True),
        lambda: (images(5, 12), images(6, 12)),
        (4, 4, 16),
    ),
    "fused attention": (FusedAttention, lambda: images(5, 10), (3,)),
    "relative positions": (lambda: FusedAttention(relative=True), lambda: images(5, 10), (3,)),
    "grouped queries": (GroupedQuery, lambda: images(5, 10), (3,)),
    "tied embedding": (Tied, lambda: torch.randint(0, 11, (2, 5)), (6,)),
    "LSTM": (lambda: Recurrent("LSTM"), lambda: torch.randint(0, 11, (2, 4)), (5, 6)),
    "GRU": (lambda: Recurrent("GRU"), lambda: torch.randint(0, 11, (2, 4)), (5, 6)),
    "projected LSTM": (lambda: Recurrent("projected LSTM"), lambda: torch.randint(0, 11, (2, 4)), (3, 6)),
    "RNN": (lambda: Recurrent("RNN"), lambda: torch.randint(0, 11, (2, 4)), (5, 6)),
    "multiple queries": (MultiQuery, lambda: images(5, 10), (4,)),
    "normalised": (lambda: Rows(Normalise()), lambda: images(5), (6, 8)),
    "scaled by an attribute": (lambda: Rows(Scaled(8)), lambda: images(5), (6, 8)),
    "uneven chunks": (Chunks, lambda: images(5), (6,)),
    "layer used twice": (Twice, lambda: images(4), (6,)),
    "positional": (Positional, lambda: images(5, 4), (6,)),
    "slices, stack and einsum": (Cuts, lambda: images(4), (5, 6)),
    **{f"felt: {name}": (partial(Felt, name), lambda: images(4), (6,)) for name in FELT},
    **{f"not felt: {name}": (partial(Felt, name), lambda: images(4), (6, 6)) for name in QUIET},
    "sum after batch norm": (BatchNormSum, lambda: images(4), (6,)),
    "windows": (lambda: nn.Sequential(Window(3), Window(2)), lambda: images(6, 6, 10), (2, 3)),
    "patches": (Patches, lambda: images(3, 6, 6), (4, 5)),
    "sampled on a grid": (Sampled, lambda: images(3, 6, 6), (4, 5)),
    "fourier": (Fourier, lambda: images(3, 6, 6), (5,)),
    "graph": (Graph, lambda: torch.randn(7, 4), (6,)),
    "distances": (Prototypes, lambda: images(4), (5, 6)),
    "embedding bag": (Bag, lambda: torch.randint(0, 11, (2, 5)), (6,)),
    "u-net": (UNet, lambda: images(3, 6, 6), (4, 5, 6)),
    "inputs and outputs by name": (Several, lambda: {"left": images(4), "right": images(5)}, (6,)),
    "lora": (LoRA, lambda: images(5), (3, 6)),
    "standardised weights": (Standardised, lambda: images(3, 6, 6), (5,)),
    "weights standardised by batch norm": (lambda: Standardised(by_batch_norm=True), lambda: images(3, 6, 6), (4, 5)),
    "weight norm": (_weight_norm, lambda: images(5), (8,)),
    "spectral norm": (_spectral_norm, lambda: images(5), (6, 7, 8)),
    "batch norm": (lambda: Norms(nn.BatchNorm2d(8)), lambda: images(3, 6, 6), (6, 8)),
    "batch norm without weights": (lambda: Norms(nn.BatchNorm2d(8, affine=False)), lambda: images(3, 6, 6), (6, 8)),
    "instance norm": (lambda: Norms(nn.InstanceNorm2d(8, affine=True)), lambda: images(3, 6, 6), (6, 8)),
    "instance norm, tracked": (
        lambda: Norms(nn.InstanceNorm2d(8, track_running_stats=True)),
        lambda: images(3, 6, 6),
        (6, 8),
    ),
    "group norm": (lambda: Norms(nn.GroupNorm(4, 8)), lambda: images(3, 6, 6), (6,)),
    "group norm of single channels": (lambda: Norms(nn.GroupNorm(8, 8)), lambda: images(3, 6, 6), (6, 8)),
    "batch norm of rows": (lambda: Rows(nn.BatchNorm1d(8)), lambda: images(5), (6, 8)),
    "layer norm": (lambda: Rows(nn.LayerNorm(8)), lambda: images(5), (6,)),
    "rms norm": (lambda: Rows(nn.RMSNorm(8)), lambda: images(5), (6,)),
    "prelu": (lambda: Rows(nn.PReLU(8)), lambda: images(5), (6, 8)),
}


def build(name: str, seed: int = 0) -> tuple[nn.Module, Any]:
    """A network in eval mode, with statistics and parameters that a training might have left, and inputs."""
    make, inputs, _ = CASES[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = make().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)
            for buffer_name, buffer in model.named_buffers():
                if buffer_name.endswith("running_mean"):
                    buffer.normal_(0, 0.3)
                if buffer_name.endswith("running_var"):
                    buffer.uniform_(0.5, 1.5)
        return model, inputs()
