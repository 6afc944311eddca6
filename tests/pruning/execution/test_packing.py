"""A packed Linear against the ordinary one: outputs, and everything else that is asked of a module."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pruning.execution.packing import PackedLinear, pack_, packable


def pair(bias: bool = True) -> tuple[nn.Linear, nn.Linear]:
    """An ordinary layer, and the same one packed."""
    torch.manual_seed(0)
    layer = nn.Linear(20, 30, bias=bias)
    packed = copy.deepcopy(layer)
    pack_(packed)
    return layer, packed


def same(packed: nn.Module, layer: nn.Module, x: torch.Tensor) -> bool:
    with torch.inference_mode():
        found, expected = packed(x), layer(x)
    alike = found.stride() == expected.stride() and found.dtype == expected.dtype
    return alike and torch.allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "x",
    [
        torch.randn(7, 20),
        torch.randn(1, 20),
        torch.randn(20),
        torch.randn(0, 20),
        torch.randn(3, 4, 20),
        torch.randn(20, 7).t(),
        torch.randn(3, 20, 4).transpose(1, 2),
        torch.randn(14, 40)[::2, ::2],
    ],
    ids=lambda x: f"{tuple(x.shape)} {x.stride()}",
)
def test_outputs_are_those_of_the_ordinary_layer(bias, x):
    layer, packed = pair(bias)
    assert same(packed, layer, x)
    assert packed.packed is not None  # the kernel has run


def test_a_weight_that_changed_is_packed_again():
    layer, packed = pair()
    x = torch.randn(4, 20)
    assert same(packed, layer, x)
    for module in (layer, packed):
        with torch.no_grad():
            module.weight.mul_(2)
    assert same(packed, layer, x)
    other = nn.Linear(20, 30).state_dict()
    for module in (layer, packed):
        module.load_state_dict(other)
    assert same(packed, layer, x)
    new = torch.randn(30, 20)
    for module in (layer, packed):
        module.weight.data = new
    assert same(packed, layer, x)


def test_gradients_are_those_of_the_ordinary_layer():
    layer, packed = pair()
    x = torch.randn(4, 20)
    for frozen in (False, True):
        gradients = []
        for module in (layer, packed):
            module.zero_grad()
            module.requires_grad_(not frozen)
            inputs = x.clone().requires_grad_()
            module(inputs).square().sum().backward()
            gradients.append([inputs.grad] + ([] if frozen else [module.weight.grad, module.bias.grad]))
        assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert packed.packed is None  # the kernel has no gradients, and has not run


def test_what_the_kernel_does_not_know_is_done_as_ever():
    layer, packed = pair()
    x = torch.randn(4, 20)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert same(packed, layer, x)
    with pytest.raises(RuntimeError, match="cannot be multiplied"), torch.inference_mode():
        packed(torch.randn(4, 21))
    with pytest.raises(RuntimeError, match="dtype"), torch.inference_mode():
        packed(x.double())
    assert same(packed.double(), layer.double(), x.double())
    with torch.inference_mode():
        made = nn.Linear(20, 30)
        pack_(made)
        assert torch.allclose(made(x), F.linear(x, made.weight, made.bias))


def test_copies_run_packed_and_states_are_those_of_an_ordinary_layer():
    layer, packed = pair()
    x = torch.randn(4, 20)
    assert same(packed, layer, x)
    for again in (copy.copy(packed), copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
        assert type(again) is PackedLinear
        assert same(again, layer, x)
        assert again.packed is not None
    assert packed.state_dict().keys() == layer.state_dict().keys()


def test_only_plain_layers_in_float32_are_packed():
    class Own(nn.Linear):
        pass

    assert packable(nn.Linear(2, 3))
    for other in (Own(2, 3), nn.Linear(2, 3).double(), nn.Linear(2, 3, device="meta"), nn.Conv2d(2, 3, 1)):
        assert not packable(other)
