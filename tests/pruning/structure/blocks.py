"""A network of residual blocks, each of which gives back its input without its parameters."""

import torch
from torch import nn


class Block(nn.Module):
    """A pre-norm block; called by name, with an argument that is not its input."""

    def __init__(self):
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(12), nn.MultiheadAttention(12, 4, batch_first=True)
        self.up, self.down = nn.Linear(12, 8), nn.Linear(8, 12)

    def forward(self, hidden, *, scale):
        y = self.norm(hidden)
        hidden = hidden + scale * self.attention(y, y, y, need_weights=False)[0]
        return hidden + self.down(torch.relu(self.up(hidden)))


class Deep(nn.Module):
    def __init__(self, depth=4):
        super().__init__()
        self.inner, self.blocks, self.head = (
            nn.Linear(5, 12),
            nn.ModuleList(Block() for _ in range(depth)),
            nn.Linear(12, 3),
        )

    def forward(self, x):
        x = self.inner(x)
        for block in self.blocks:
            x = block(hidden=x, scale=0.5)
        return self.head(x.mean(1))


def deep(seed=0):
    torch.manual_seed(seed)
    model = Deep().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return model, torch.randn(2, 6, 5)


BLOCKS = tuple(f"blocks.{i}" for i in range(4))
