"""Layers that stay dense, without their dead units: the same outputs, gradients, statistics and trainings."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from pruning import Masks
from pruning.dynamic import FixedMasks
from pruning.execution import Execution
from pruning.execution.cutting import CutConv2d, CutLinear, cut_dead, restore_dead
from pruning.structure import trace


class Residual(nn.Module):
    """With channels that several layers make, a depthwise convolution, and some that a norm keeps statistics of."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, padding_mode="circular")
        self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.first, self.norm = nn.Conv2d(8, 10, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(10)
        self.second, self.skip = nn.Conv2d(10, 12, 3, padding=1), nn.Conv2d(8, 12, 1, stride=2)
        self.head = nn.Linear(12, 4)

    def forward(self, x):
        x = self.deep(torch.relu(self.stem(x)))
        y = self.second(torch.relu(self.norm(self.first(x)))) + self.skip(x)
        return self.head(torch.relu(y).mean((2, 3)))


def chain():
    """A norm keeps statistics of units that nothing reads, and of which others are the only readers."""
    return nn.Sequential(
        nn.Linear(9, 12), nn.ReLU(), nn.Linear(12, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4)
    )


MODELS = {
    "chain": (chain, (9,)),
    "mlp": (lambda: nn.Sequential(nn.Linear(9, 14), nn.Tanh(), nn.Linear(14, 12), nn.Tanh(), nn.Linear(12, 4)), (9,)),
    "residual": (Residual, (3, 6, 6)),
}
OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-2),
}


def network(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    torch.manual_seed(0)
    build, shape = MODELS[name]
    return build().double(), shape


def masks_with_dead_units(model: nn.Module, seed: int, density: float) -> Masks:
    """Rows, columns and single weights removed at random, of some of the weights."""
    g = torch.Generator().manual_seed(seed)
    found = {}
    for name, weight in model.named_parameters():
        if weight.dim() > 1 and (not found or torch.rand((), generator=g) < 0.8):
            rows = torch.rand(weight.shape[0], generator=g) < density
            columns = torch.rand(weight.shape[1], generator=g) < density
            mask = rows[:, None] & columns & (torch.rand(weight.shape[:2], generator=g) < 0.9)
            found[name] = mask.view(*mask.shape, *[1] * (weight.dim() - 2)).expand_as(weight).clone()
    return Masks(found)


def step(model, x, y):
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    return loss


@given(st.integers(0, 2**31), st.sampled_from([0.1, 0.4, 0.7]), st.sampled_from(list(MODELS)))
@settings(max_examples=60, deadline=None)
def test_outputs_gradients_and_statistics_are_those_of_the_masked_network(seed, density, name):
    whole, shape = network(name)
    masks = masks_with_dead_units(whole, seed, density)
    masks.apply_(whole)
    cut = copy.deepcopy(whole)
    structure = trace(whole, torch.randn(2, *shape, dtype=torch.float64))
    names = cut_dead(cut, masks, structure)
    assert names == tuple(f"{path}.weight" for path, m in cut.named_modules() if isinstance(m, CutLinear | CutConv2d))
    g = torch.Generator().manual_seed(seed)
    x, y = torch.randn(5, *shape, generator=g, dtype=torch.float64), torch.randint(4, (5,), generator=g)
    assert torch.allclose(step(whole, x, y), step(cut, x, y), rtol=1e-10)
    for (key, a), (_, b) in zip(whole.named_parameters(), cut.named_parameters(), strict=True):
        mask = masks.get(key, torch.ones_like(a, dtype=torch.bool))
        assert torch.allclose(a.grad * mask, b.grad * mask, rtol=1e-9, atol=1e-12), key
    for (key, a), (_, b) in zip(whole.named_buffers(), cut.named_buffers(), strict=True):
        assert torch.allclose(a.double(), b.double(), rtol=1e-10), key
    restore_dead(cut)
    assert [type(m) for m in cut.modules()] == [type(m) for m in whole.modules()]
    for left, right in zip(cut.modules(), whole.modules(), strict=True):
        assert vars(left).keys() == vars(right).keys()
    assert torch.allclose(whole.eval()(x), cut.eval()(x), rtol=1e-10)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_training_ends_in_the_same_weights(name, optimizer):
    ends = []
    for choose in (None, lambda model, masks, inputs: ()):  # no layer runs sparsely, so all that can are cut
        model, shape = network(name)
        masks = masks_with_dead_units(model, 3, 0.5)
        made = OPTIMIZERS[optimizer](model.parameters())
        held = FixedMasks(model, made, masks)
        inputs = torch.randn(6, *shape, dtype=torch.float64)
        execution = None if choose is None else Execution(held, choose, inputs, trace(model, inputs))
        g = torch.Generator().manual_seed(1)
        for _ in range(40):
            x, y = torch.randn(6, *shape, generator=g, dtype=torch.float64), torch.randint(4, (6,), generator=g)
            if execution is not None:
                execution.ready()
                assert any(isinstance(module, CutLinear | CutConv2d) for module in model.modules())
            made.zero_grad()
            step(model, x, y)
            held.before_step()
            made.step()
            held.after_step()
        if execution is not None:
            assert execution.dense() == ()
        assert held.finish().agree(model)
        ends.append(model.state_dict())
    for key, value in ends[0].items():
        assert torch.allclose(value.double(), ends[1][key].double(), rtol=1e-7, atol=1e-9), key


def test_what_leads_nowhere_is_left_out_and_what_has_no_inputs_gives_its_bias():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    kept = {name: torch.ones_like(p, dtype=torch.bool) for name, p in model.named_parameters() if p.dim() == 2}
    kept["4.weight"][:, 2:] = False  # so nothing reads six of the eight
    kept["2.weight"][:2, 3:] = False  # and nothing that is read reads three of the six
    kept["2.weight"][0] = False  # one that is read has nothing left but its bias
    structure = trace(model, torch.randn(2, 4))
    assert cut_dead(model, kept, structure) == ("0.weight", "2.weight", "4.weight")
    assert model[0].live_outputs.tolist() == [0, 1, 2]
    assert (model[2].live_outputs.tolist(), model[2].live_inputs.tolist()) == ([1], [0, 1, 2])
    assert model[4].live_inputs.tolist() == [0, 1]
    found = model[2](torch.randn(5, 6))
    assert torch.equal(found[:, 0], model[2].bias[0].expand(5))
    found.sum().backward()
    assert model[2].bias.grad[0] == 5


def test_without_a_structure_a_layer_goes_by_its_own_mask():
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    mask = torch.zeros(3, 6, dtype=torch.bool)
    mask[:, 0] = True
    assert cut_dead(model, {"2.weight": mask}) == ("2.weight",)
    x = torch.randn(2, 4)
    found = model(x)
    restore_dead(model)
    Masks({"2.weight": mask}).apply_(model)
    assert torch.allclose(found, model(x), atol=1e-6)


def test_layers_of_which_most_is_left_stay_whole():
    model = nn.Sequential(nn.Linear(4, 6))
    mask = torch.ones(6, 4, dtype=torch.bool)
    mask[0] = False
    assert cut_dead(model, {"0.weight": mask}) == ()
    assert type(model[0]) is nn.Linear


def test_an_emptied_layer_can_be_cut():
    for layer, x in ((nn.Linear(4, 6), torch.randn(2, 4)), (nn.Conv2d(4, 6, 3), torch.randn(2, 4, 5, 5))):
        model = nn.Sequential(layer)
        mask = torch.zeros_like(layer.weight, dtype=torch.bool)
        Masks({"0.weight": mask}).apply_(model)
        expected = model(x)
        assert cut_dead(model, {"0.weight": mask}) == ("0.weight",)
        assert torch.equal(model(x), expected)


def test_autocast_gives_the_same_dtype():
    model = nn.Sequential(nn.Linear(4, 6))
    mask = torch.zeros(6, 4, dtype=torch.bool)
    mask[0, 0] = True
    cut_dead(model, {"0.weight": mask})
    with torch.autocast("cpu", torch.bfloat16):
        assert model(torch.randn(2, 4)).dtype == torch.bfloat16


def test_layers_whose_weights_are_made_by_others_stay_whole():
    with pytest.warns(FutureWarning):
        model = nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 6)), nn.Linear(6, 3))
    mask = torch.zeros(3, 6, dtype=torch.bool)
    mask[0, 0] = True
    assert cut_dead(model, {"1.weight": mask}) == ("1.weight",)


@pytest.mark.parametrize("layer", [nn.Linear(4, 8), nn.Conv2d(4, 8, 3)])
def test_inputs_that_do_not_fit_are_refused_as_by_the_whole_layer(layer):
    dense = copy.deepcopy(layer)
    mask = torch.zeros_like(layer.weight, dtype=torch.bool)
    mask[0, 0] = True
    assert cut_dead(layer, {"weight": mask}) == ("weight",)
    for shape in [(9,), (5, 9), (5, 3), (9, 7, 7), (2, 9, 7, 7), (1, 1, 4, 7, 7), ()]:
        with pytest.raises(Exception) as expected:  # noqa: PT011  # whatever torch raises
            dense(torch.randn(shape))
        with pytest.raises(expected.type):
            layer(torch.randn(shape))


def test_channels_last_stays_so():
    layer = nn.Conv2d(4, 8, 3)
    mask = torch.zeros_like(layer.weight, dtype=torch.bool)
    mask[:2, :2] = True
    cut_dead(layer, {"weight": mask})
    x = torch.randn(2, 4, 5, 5)
    assert layer(x).is_contiguous()
    assert layer(x.to(memory_format=torch.channels_last)).is_contiguous(memory_format=torch.channels_last)


def test_activations_that_are_looked_at_are_worked_out_unless_a_structure_says_that_none_are():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    mask = torch.zeros(3, 8, dtype=torch.bool)
    mask[:, :2] = True
    x, seen = torch.randn(5, 4), []
    model[1].register_forward_hook(lambda module, args, output: seen.append(output))
    model(x)
    execution = Execution(FixedMasks(model, optimizer, Masks({"2.weight": mask})), lambda *_: (), x)
    execution.ready()
    assert type(model[2]) is CutLinear
    model(x)
    assert torch.equal(*seen)
