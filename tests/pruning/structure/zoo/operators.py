"""Operators of which a network has few: patches, samples, transforms, graphs, distances."""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.pruning.structure.zoo.case import Case, images


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


class Messages(nn.Module):
    """As `Graph`, by gather and scatter with an index that is broadcast over the features, or by assignment."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form, self.message, self.own, self.out = form, nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        places = (torch.arange(len(x), device=x.device) + 1) % len(x)
        sent, own = F.relu(self.message(x)), self.own(x)
        if self.form == "scatter":
            sent = sent.gather(0, places[:, None].expand_as(sent))
            own = own.scatter(0, places[:1, None].expand(1, own.shape[1]), 1.0)
            return self.out(F.relu(own.scatter_add(0, places[:, None].expand_as(sent), sent)))
        held = torch.zeros_like(own)
        held[places] += sent
        pairs = held[:, None].repeat(1, 2, 1)  # [nodes, 2, features], written to by places of two dimensions
        pairs[:, torch.tensor([[0, 1]])] = sent[:, None, None].repeat(1, 1, 2, 1)
        held = held + pairs[:, 1]
        return self.out(F.relu(own + held))


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


CASES: dict[str, Case] = {
    "patches": (Patches, lambda: images(3, 6, 6), (4, 5)),
    "sampled on a grid": (Sampled, lambda: images(3, 6, 6), (4, 5)),
    "fourier": (Fourier, lambda: images(3, 6, 6), (5,)),
    "graph": (Graph, lambda: torch.randn(7, 4), (6,)),
    "gather and scatter": (partial(Messages, "scatter"), lambda: torch.randn(7, 4), (6,)),
    "assignment": (partial(Messages, "assignment"), lambda: torch.randn(7, 4), (6,)),
    "distances": (Prototypes, lambda: images(4), (5, 6)),
    "embedding bag": (Bag, lambda: torch.randint(0, 11, (2, 5)), (6,)),
}
