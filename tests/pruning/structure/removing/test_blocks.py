"""Whole blocks: which modules are found to be blocks, and that removal takes them out and nothing else."""

import copy

import pytest
import torch
from torch import nn

from pruning import Evidence, Masks, prunable, prune, scorers
from pruning.structure import Depth, find_blocks, remove, remove_, trace, verify
from tests.pruning.structure.blocks import BLOCKS, deep
from tests.pruning.structure.zoo.case import images


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
