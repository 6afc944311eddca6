"""Whole blocks: which are found, how they are scored and removed, and that nothing else changes."""

import copy

import pytest
import torch
from torch import nn

from pruning import Evidence, Masks, prunable, prune, scorers
from pruning.errors import GranularityError
from pruning.structure import Channels, Depth, Skip, find_blocks, load, remove, remove_, save, trace, verify
from tests.pruning.structure.zoo.case import images


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


def test_blocks_are_what_gives_its_input_back_without_parameters():
    model, inputs = deep()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert find_blocks(model, inputs) == BLOCKS
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    plain = nn.Sequential(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 5))
    assert find_blocks(plain, images(5)) == ()


def test_blocks_of_convolutions_need_an_identity_as_shortcut():
    torchvision = pytest.importorskip("torchvision")
    model = torchvision.models.resnet18(num_classes=3).eval()
    assert find_blocks(model, images(3, 32, 32)) == ("layer1.0", "layer1.1", "layer2.1", "layer3.1", "layer4.1")


@pytest.mark.parametrize("density", [0.75, 0.5, 0.25])
def test_the_lowest_scored_blocks_go(density):
    model, inputs = deep()
    structure = trace(model, inputs)
    scores = scorers.magnitude(Evidence(model, prunable(model)))
    masks = prune(scores, density, Depth(model, find_blocks(model, inputs)))
    means = [
        torch.cat([s.flatten() for name, s in scores.items() if name.startswith(f"{block}.")]).mean()
        for block in BLOCKS
    ]
    kept = {BLOCKS[i] for i in torch.stack(means).argsort(descending=True)[: round(4 * density)].tolist()}
    small = remove(model, masks, structure)
    assert {name for name in BLOCKS if not isinstance(small.get_submodule(name), Skip)} == kept
    assert verify(model, masks, small, inputs) <= 1e-5
    assert type(small) is Deep
    left = sum(
        p.numel() for name, p in model.named_parameters() if not any(name.startswith(b) for b in set(BLOCKS) - kept)
    )
    assert sum(p.numel() for p in small.parameters()) == left


def test_depth_and_width_go_together_and_are_saved(tmp_path):
    model, inputs = deep()
    structure = trace(model, inputs)
    scores = scorers.magnitude(Evidence(model, prunable(model)))
    depth = prune(scores, 0.5, Depth(model, BLOCKS))
    masks = prune(scores, 0.4, Channels(structure, exclude=_gone(structure, depth)), within=_everywhere(model, depth))
    small = remove(model, masks, structure)
    assert verify(model, masks, small, inputs) <= 1e-5
    assert sum(isinstance(m, Skip) for m in small.modules()) == 2
    save(small, tmp_path / "small.safetensors")
    read = load(tmp_path / "small.safetensors", Deep().eval())
    assert verify(model, masks, read, inputs) <= 1e-5


def _gone(structure, masks):
    """Families that lie in removed blocks."""
    return tuple(
        f.name for f in structure.families if f.name + ".weight" in masks and not masks[f.name + ".weight"].any()
    )


def _everywhere(model, masks):
    return Masks.dense(dict(model.named_parameters())) & _filled(model, masks)


def _filled(model, masks):
    return Masks(dict(Masks.dense(dict(model.named_parameters()))) | dict(masks))


def test_in_place_the_optimizer_forgets_removed_blocks():
    model, inputs = deep()
    structure = trace(model, inputs)
    masks = prune(scorers.magnitude(Evidence(model, prunable(model))), 0.5, Depth(model, BLOCKS))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    model(inputs).square().sum().backward()
    optimizer.step()
    expected = remove(copy.deepcopy(model), masks, structure)
    remove_(model, masks, structure, optimizer=optimizer)
    assert torch.equal(model(inputs), expected(inputs))
    assert len(optimizer.param_groups[0]["params"]) == len(list(model.parameters())) == len(optimizer.state)
    optimizer.zero_grad()
    model(inputs).square().sum().backward()
    optimizer.step()


def test_emptied_layers_outside_of_removed_blocks_keep_one_unit():
    model, inputs = deep()
    structure = trace(model, inputs)
    gone = {name: torch.zeros(p.shape, dtype=torch.bool) for name, p in model.named_parameters() if ".up." in name}
    gone |= {name: torch.zeros(p.shape, dtype=torch.bool) for name, p in model.named_parameters() if "down.w" in name}
    small = remove(model, gone, structure)
    assert [block.up.out_features for block in small.blocks] == [1] * 4
    assert verify(model, gone, small, inputs) <= 1e-5


@pytest.mark.parametrize(
    ("blocks", "options", "said"),
    [((), {}, "no blocks"), (("blocks.9",), {}, "is no module"), (BLOCKS, {"pooling": "max"}, "pooling")],
)
def test_what_is_no_block_is_refused(blocks, options, said):
    with pytest.raises(GranularityError, match=said):
        Depth(deep()[0], blocks, **options)
