"""Units that unstructured masks leave dead are removed, and the outputs stay."""

import pytest
import torch
from torch import nn

from pruning import Evidence, Masks, prunable, prune, scorers
from pruning.structure import remove, trace, verify, without_dead
from tests.pruning.structure.zoo import CASES, build
from tests.pruning.structure.zoo.case import images


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 6), nn.Sigmoid(), nn.Linear(6, 3)).eval()


def dense(model):
    return {name: torch.ones(p.shape, dtype=torch.bool) for name, p in model.named_parameters()}


def test_a_unit_that_nothing_reads_goes_with_those_that_only_it_read():
    model, inputs = mlp(), images(4)
    masks = dense(model)
    masks["4.weight"][:, 1] = False  # nobody reads neuron 1 of the second layer
    masks["2.weight"][:, 2] = False  # which alone would have read neuron 2 of the first
    masks["2.weight"][1, 2] = True
    structure = trace(model, inputs)
    small = remove(model, without_dead(model, masks, structure), structure)
    assert (small[0].out_features, small[2].out_features) == (4, 5)
    assert verify(model, masks, small, inputs) <= 1e-6


def test_a_silent_unit_goes_unless_its_activation_makes_something_of_zero():
    model, inputs = mlp(), images(4)
    masks = dense(model)
    masks["0.weight"][3] = False
    structure = trace(model, inputs)
    assert remove(model, without_dead(model, masks, structure), structure)[0].out_features == 5  # its bias speaks
    masks["0.bias"][3] = False
    assert remove(model, without_dead(model, masks, structure), structure)[0].out_features == 4
    masks["2.weight"][4] = False
    masks["2.bias"][4] = False
    small = remove(model, without_dead(model, masks, structure), structure)
    assert small[2].out_features == 6  # sigmoid(0) = 1/2
    assert verify(model, masks, small, inputs) <= 1e-6


def test_a_layer_of_dead_units_keeps_one():
    model, inputs = mlp(), images(4)
    masks = dense(model)
    masks["2.weight"][:] = False
    structure = trace(model, inputs)
    small = remove(model, without_dead(model, masks, structure), structure)
    assert small[0].out_features == 1
    assert verify(model, masks, small, inputs) <= 1e-6


@pytest.mark.parametrize("density", [0.3, 0.1, 0.03])
@pytest.mark.parametrize("name", CASES)
def test_outputs_stay_whatever_is_dead(name, density):
    model, inputs = build(name)
    structure = trace(model, inputs)
    masks = prune(scorers.random(Evidence(model, prunable(model))), density)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith("bias") and parameter.dim() == 1:
                parameter[::2] = 0
    more = without_dead(model, masks, structure)
    assert all(not bool((mask & ~masks[key]).any()) for key, mask in more.items() if key in masks)
    small = remove(model, more, structure)
    assert verify(model, masks, small, inputs) <= 1e-5
    assert isinstance(more, Masks)
