"""Linear and recurrent layers: gated, tied, used twice, cut up, several inputs and outputs."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.pruning.structure.zoo.case import Case, images


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


class Cells(nn.Module):
    """Recurrent cells, which make a state of their own size."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.GRUCell(4, 5), nn.LSTMCell(5, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = self.first(x[:, 0])
        held = self.second(state)
        for step in range(1, x.shape[1]):
            state = self.first(x[:, step], state)
            held = self.second(state, held)
        return self.head(held[0])


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


CASES: dict[str, Case] = {
    "one feature": (
        lambda: nn.Sequential(nn.Linear(1, 6), nn.ReLU(), nn.Linear(6, 1), nn.Linear(1, 5), nn.ReLU(), nn.Linear(5, 1)),
        lambda: images(1),
        (5, 6),
    ),
    "gated by chunk": (lambda: Gated("chunk"), lambda: images(5), (6,)),
    "gated by glu": (lambda: Gated("glu"), lambda: images(5), (6,)),
    "gated by two layers": (lambda: Gated("two"), lambda: images(5), (6,)),
    "tied embedding": (Tied, lambda: torch.randint(0, 11, (2, 5)), (6,)),
    "LSTM": (lambda: Recurrent("LSTM"), lambda: torch.randint(0, 11, (2, 4)), (5, 6)),
    "GRU": (lambda: Recurrent("GRU"), lambda: torch.randint(0, 11, (2, 4)), (5, 6)),
    "projected LSTM": (lambda: Recurrent("projected LSTM"), lambda: torch.randint(0, 11, (2, 4)), (3, 6)),
    "RNN": (lambda: Recurrent("RNN"), lambda: torch.randint(0, 11, (2, 4)), (5, 6)),
    "uneven chunks": (Chunks, lambda: images(5), (6,)),
    "cells": (Cells, lambda: images(3, 4), (5, 6)),
    "layer used twice": (Twice, lambda: images(4), (6,)),
    "positional": (Positional, lambda: images(5, 4), (6,)),
    "slices, stack and einsum": (Cuts, lambda: images(4), (5, 6)),
    "inputs and outputs by name": (Several, lambda: {"left": images(4), "right": images(5)}, (6,)),
    "lora": (LoRA, lambda: images(5), (3, 6)),
}
