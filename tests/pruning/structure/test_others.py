"""Networks of others that were removed wrongly, or not at all: masked models, sparse adjacencies, scripts."""

import pytest
import torch
from torch import nn

from pruning import Evidence, Masks, prunable, prune, scorers
from pruning.cost import cost
from pruning.errors import StructureError
from pruning.structure import Channels, find_blocks, remove, trace, verify


class Residual(nn.Module):
    """A block whose inner convolutions may go as a whole."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.c0, self.c1, self.b1, self.c2, self.b2, self.f = (
            nn.Conv2d(1, 8, 3, 1, 1, bias=False),
            nn.Conv2d(8, 8, 3, 1, 1, bias=False),
            nn.BatchNorm2d(8),
            nn.Conv2d(8, 8, 3, 1, 1, bias=False),
            nn.BatchNorm2d(8),
            nn.Linear(8, 3),
        )

    def forward(self, x):
        x = self.c0(x).relu()
        return self.f((x + self.b2(self.c2(self.b1(self.c1(x)).relu()))).relu().mean((2, 3)))


def test_an_emptied_family_of_a_masked_model_is_removed_as_of_the_model_itself():
    """In a masked model zeros arrive at its inner layers, which give zeros back: they are no residual blocks for it."""
    model, x = Residual().eval(), torch.randn(4, 1, 8, 8)
    structure = trace(model, x)
    masks = {name: torch.ones_like(p, dtype=torch.bool) for name, p in model.named_parameters()}
    for name in ("c1.weight", "b1.weight", "b1.bias", "c2.weight"):
        masks[name][:] = False
    before = remove(model, masks, structure)
    Masks(masks).apply_(model)
    after = remove(model, masks, structure)
    assert before.c1.out_channels == after.c1.out_channels == 1
    assert type(after.b1) is nn.BatchNorm2d
    assert torch.equal(before(x), after(x))
    assert find_blocks(model, x) == ()


@pytest.mark.parametrize("layout", ["to_sparse", "to_sparse_csr"])
@pytest.mark.parametrize("given", ["input", "buffer", "sparse.mm"])
def test_networks_over_sparse_adjacencies_are_traced(given, layout):
    class Graph(nn.Module):
        def __init__(self, adjacency):
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 3)
            self.register_buffer("adjacency", adjacency if given == "buffer" else None)

        def forward(self, x, adjacency=None):
            adjacency = self.adjacency if adjacency is None else adjacency
            spread = torch.sparse.mm if given == "sparse.mm" else torch.matmul
            return spread(adjacency, self.b(spread(adjacency, self.a(x)).relu()))

    adjacency = getattr((torch.rand(6, 6, generator=torch.Generator().manual_seed(0)) < 0.5).float(), layout)()
    model = Graph(adjacency)
    inputs = (torch.randn(6, 5),) if given == "buffer" else (torch.randn(6, 5), adjacency)
    structure = trace(model, inputs)
    assert [(family.name, family.size) for family in structure.families] == [("a", 8)]
    masks = prune(scorers.magnitude(Evidence(model, prunable(model))), 0.5, Channels(structure))
    small = remove(model, masks, structure)
    assert small.a.out_features == 4
    assert verify(model, masks, small, inputs) <= 1e-5
    nonzero = int((adjacency.to_dense() != 0).sum())
    products = 6 * 5 * 8 + 6 * 8 * 3 + nonzero * (8 + 3)
    assert cost(model, None, inputs).dense_macs == products


def test_attention_without_some_heads_says_that_it_cannot_be_scripted():
    layer = nn.MultiheadAttention(8, 2, batch_first=True)

    class Attending(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = layer

        def forward(self, x):
            return self.inner(x, x, x, need_weights=False)[0]

    model, x = Attending().eval(), torch.randn(2, 4, 8)
    structure = trace(model, x)
    small = remove(model, prune({"inner.in_proj_weight": torch.rand(24, 8)}, 0.5, Channels(structure)), structure)
    with pytest.raises(StructureError, match=r"cannot be scripted: use torch\.jit\.trace"):
        torch.jit.script(small)
    assert torch.equal(torch.jit.trace(small, x)(x), small(x))


def test_modules_of_waves_and_conditions_are_no_blocks():
    class Spectral(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(4, dtype=torch.complex64))

        def forward(self, waves):
            return waves * self.scale

    class Gate(nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(4))

        def forward(self, condition):
            return condition & (self.bias == 0)

    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.spectral, self.gate = Spectral(), Gate()

        def forward(self, x):
            return self.spectral(torch.fft.fft(x)).abs() * self.gate(x > 0)

    assert find_blocks(Mixed(), torch.randn(2, 4)) == ()
