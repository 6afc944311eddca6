"""Sizes that code knows: written into it, kept in attributes, computed with, or equal to one by chance."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pruning.structure import remove, trace, verify
from tests.pruning.structure.masking import families, masks_of, some_kept
from tests.pruning.structure.zoo import build
from tests.pruning.structure.zoo.attention import FusedAttention
from tests.pruning.structure.zoo.case import images


class HardCoded(nn.Module):
    """Its attention writes the number of heads into its code; its other layers do not."""

    def __init__(self):
        super().__init__()
        self.qkv, self.proj = nn.Linear(10, 36), nn.Linear(12, 10)
        self.up, self.down = nn.Linear(10, 7), nn.Linear(7, 10)

    def forward(self, x):
        q, k, v = self.attention_inputs(x)
        return x + self.proj((q @ k.mT).softmax(-1).matmul(v).transpose(1, 2).reshape(*x.shape[:2], -1))

    def attention_inputs(self, x):
        return self.qkv(x).view(*x.shape[:2], 3, 3, 4).permute(2, 0, 3, 1, 4)


class Around(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.up, self.down = HardCoded(), nn.Linear(10, 7), nn.Linear(7, 10)

    def forward(self, x):
        return self.down(F.relu(self.up(self.attention(x))))


def test_what_is_written_into_code_is_kept_whole_and_the_rest_is_pruned():
    model, inputs = Around().eval(), images(5, 10)
    structure = trace(model, inputs)
    assert families(structure) == {"up": ("neurons", 7)}
    assert "attention" in structure.frozen
    assert "kept whole: attention" in str(structure)
    masks = masks_of(structure, some_kept(structure, 0))
    assert verify(model, masks, remove(model, masks, structure), inputs) <= 1e-5


def test_attributes_that_code_reads_are_adjusted():
    model, inputs = build("fused attention")
    structure = trace(model, inputs)
    kept = some_kept(structure, 1)
    small = remove(model, masks_of(structure, kept), structure)
    assert small.num_heads == int(kept.sum()) < 3
    assert small.head_dim == 4
    assert type(small) is FusedAttention


class Wide(nn.Module):
    """Keys and values have heads of one width, an attribute; where there is a single head, its width seems a choice."""

    def __init__(self, heads):
        super().__init__()
        self.width, self.norm = 8, nn.LayerNorm(8)
        self.q, self.k, self.v = (nn.Linear(8, 8 * heads) for _ in range(3))
        self.out = nn.Linear(8 * heads, 8)

    def forward(self, x):
        y = self.norm(x)
        q, k, v = (layer(y).view(*x.shape[:2], -1, self.width).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return x + self.out(F.scaled_dot_product_attention(q, k, v, scale=0.3).transpose(1, 2).flatten(2))


def test_sizes_that_share_an_attribute_are_kept_in_that_module_alone():
    model, inputs = nn.Sequential(Wide(1), Wide(3)).eval(), images(5, 8)
    structure = trace(model, inputs)
    assert {name.split(".")[0] for name in structure.frozen} == {"0"}
    assert families(structure) == {"1.q": ("heads", 3)}
    for seed in range(3):
        masks = masks_of(structure, some_kept(structure, seed))
        assert verify(model, masks, remove(model, masks, structure), images(4, 8)) <= 1e-5


class Scale(nn.Module):
    """Computes with the size of what may shrink: by a number, by a tensor, by the default scale of attention."""

    def __init__(self, form):
        super().__init__()
        self.form, self.first, self.second = form, nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x):
        y = F.relu(self.first(x))
        if self.form == "number":
            return self.second(y / y.shape[-1])
        if self.form == "tensor":
            return self.second(y) / torch.sqrt(torch.tensor(y.shape[-1], dtype=torch.float32))
        return self.second(y) + F.scaled_dot_product_attention(y, y, y).sum(-1, keepdim=True)


@pytest.mark.parametrize("form", ["number", "tensor", "attention"])
def test_numbers_that_follow_from_a_size_are_found_out(form):
    structure = trace(Scale(form).eval(), images(5, 4))
    assert not structure.families
    assert "takes a number from a size" in str(structure)
    assert "to let these shrink" in str(structure)


class Repeated(nn.Module):
    """A number of steps, a shift and a fill that happen to be equal to a width."""

    def __init__(self, form):
        super().__init__()
        self.form, self.number, self.first, self.second = form, 6, nn.Linear(4, 6), nn.Linear(6, 4)

    def forward(self, x):
        if self.form == "steps":
            for _ in range(self.number):
                x = x + self.second(F.relu(self.first(x)))
            return x
        y = self.second(F.relu(self.first(torch.roll(x, self.number, 1) if self.form == "shift" else x)))
        return y * torch.full((1,), self.number) if self.form == "fill" else y


@pytest.mark.parametrize("form", ["steps", "shift", "fill"])
def test_numbers_that_happen_to_be_a_width_stay(form):
    model, inputs = Repeated(form).eval(), images(7, 4)
    structure = trace(model, inputs)
    assert families(structure) == {"first": ("neurons", 6)}
    masks = masks_of(structure, some_kept(structure, 0))
    small = remove(model, masks, structure)
    assert small.number == 6
    assert verify(model, masks, small, inputs) <= 1e-5


class Limited(nn.Module):
    """Looks at the first tokens alone; the limit happens to be the width."""

    def __init__(self):
        super().__init__()
        self.limit, self.first, self.second = 16, nn.Linear(4, 16), nn.Linear(16, 3)

    def forward(self, x):
        return self.second(F.relu(self.first(x[:, : self.limit])))


def test_integers_that_the_example_does_not_depend_on_stay():
    model = Limited().eval()
    structure = trace(model, images(5, 4))
    masks = masks_of(structure, some_kept(structure, 0))
    small = remove(model, masks, structure)
    assert small.limit == 16 > small.first.out_features
    assert verify(model, masks, small, images(20, 4)) <= 1e-5
