"""Attention that has lost heads."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pruning import prune
from pruning.errors import StructureError
from pruning.structure import Channels, remove, trace, verify
from tests.pruning.structure.masking import families, masks_of, some_kept
from tests.pruning.structure.zoo import build
from tests.pruning.structure.zoo.attention import Attention
from tests.pruning.structure.zoo.case import images


def test_a_small_network_is_traced_and_pruned_again():
    """Attention with fewer heads than its width has room for, too."""
    model, inputs = build("transformer")
    for seed in range(2):
        structure = trace(model, inputs)
        assert {family.kind for family in structure.families} == {"heads", "neurons"}
        masks = masks_of(structure, some_kept(structure, seed, 0.7))
        small = remove(model, masks, structure)
        assert verify(model, masks, small, inputs) <= 1e-5
        model = small


class Doubled(nn.MultiheadAttention):
    def forward(self, *args, **kwargs):
        output, weights = super().forward(*args, **kwargs)
        return 2 * output, weights


class Attending(nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.norm, self.attention, self.up, self.down = nn.LayerNorm(12), attention, nn.Linear(12, 9), nn.Linear(9, 3)

    def forward(self, x, padding=None):
        y = self.norm(x)
        x = x + self.attention(y, y, y, key_padding_mask=padding, need_weights=False)[0]
        return self.down(F.relu(self.up(x)))


def test_attention_with_a_forward_pass_of_its_own_keeps_its_heads():
    structure = trace(Attending(Doubled(12, 4, batch_first=True)).eval(), images(5, 12))
    assert families(structure) == {"up": ("neurons", 9)}
    assert "attention" in structure.frozen


def test_encoders_with_padding_lose_heads():
    """Torch's encoder makes nested tensors of padded examples, which attention of other widths cannot take."""
    torch.manual_seed(0)
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(12, 4, 16, batch_first=True), 2).eval()
    x, padding = torch.randn(2, 7, 12), torch.zeros(2, 7, dtype=torch.bool)
    padding[0, 4:] = True
    structure = trace(model, x)
    masks = masks_of(structure, some_kept(structure, 0))
    small = remove(model, masks, structure)
    masks.apply_(model)
    expected, found = (m(x, src_key_padding_mask=padding)[~padding] for m in (model, small))
    assert torch.allclose(expected, found, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_pruned_attention_takes_all_that_attention_takes(bias, batch_first):
    """Against torch's own, whose removed heads are masked."""
    torch.manual_seed(0)
    model = Attention(bias=bias).eval()
    model.attention.batch_first = batch_first
    x, other = torch.randn(2, 5, 12), torch.randn(2, 7, 12)
    structure = trace(model, torch.randn(2, 5, 12))
    masks = masks_of(structure, some_kept(structure, 0))
    small = remove(model, masks, structure, verified=False).attention
    masks.apply_(model)
    whole = model.attention
    q, kv = (x, other) if batch_first else (x.transpose(0, 1), other.transpose(0, 1))
    padding = torch.zeros(2, 7, dtype=torch.bool)
    padding[0, 5:] = True
    mask = torch.randn(5, 7)
    for options in (
        {},
        {"key_padding_mask": padding},
        {"attn_mask": mask},
        {"attn_mask": mask > 1},
        {"attn_mask": mask, "key_padding_mask": padding.float()},
    ):
        expected, _ = whole(q, kv, kv, need_weights=False, **options)
        found, weights = small(q, kv, kv, need_weights=False, **options)
        assert torch.allclose(found, expected, atol=1e-5)
        assert weights is None
    expected, _ = whole(x[0], other[0], other[0])
    found, weights = small(x[0], other[0], other[0])
    assert torch.allclose(found, expected, atol=1e-5)
    assert weights.shape == (5, 7)
    assert torch.allclose(weights.sum(-1), torch.ones(5))


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
