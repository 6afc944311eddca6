"""Attention: torch's own, fused, grouped, in windows."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.pruning.structure.zoo.case import Case, images


class Attention(nn.Module):
    """Self or cross attention by torch's own module, before a norm of the residual width."""

    def __init__(self, cross: bool = False, weights: bool = False, **options: Any) -> None:
        super().__init__()
        self.cross, self.weights, self.norm = cross, weights, nn.LayerNorm(12)
        self.attention = nn.MultiheadAttention(12, 4, batch_first=True, **options)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        y = self.norm(x)
        source = y if other is None else other
        return self.head((x + self.attention(y, source, source, need_weights=self.weights)[0]).mean(1))


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


CASES: dict[str, Case] = {
    "attention": (Attention, lambda: images(5, 12), (4,)),
    "attention whose weights nobody reads": (lambda: Attention(weights=True), lambda: images(5, 12), (4,)),
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
    "multiple queries": (MultiQuery, lambda: images(5, 10), (4,)),
    "windows": (lambda: nn.Sequential(Window(3), Window(2)), lambda: images(6, 6, 10), (2, 3)),
}
