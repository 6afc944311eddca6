"""Layers under weight_norm and spectral_norm: what the norm holds goes with the units; what cannot go is named."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import utils
from torch.nn.utils import parametrizations, parametrize

from pruning import Evidence, Masks, prunable, prune, scorers
from pruning.errors import StructureError
from pruning.structure import Channels, remove, remove_, trace, verify
from tests.pruning.structure.masking import families, masks_of, some_kept
from tests.pruning.structure.zoo import build

NORMED = (
    *("weight norm", "weight norm of columns", "weight norm of the whole", "weight norm by a hook"),
    *("weight norm of convolutions", "weight norm of convolutions by a hook"),
    *("spectral norm", "spectral norm by a hook", "spectral norm of convolutions"),
)


def plain(model):
    """The network without its norms, with the weights that they make."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        for module in model.modules():
            if parametrize.is_parametrized(module):
                parametrize.remove_parametrizations(module, "weight")
            elif any(name.endswith(("_v", "_orig")) for name, _ in module.named_parameters(recurse=False)):
                take_off = utils.remove_weight_norm if hasattr(module, "weight_g") else utils.remove_spectral_norm
                take_off(module)
    return model


@pytest.mark.parametrize("name", NORMED)
@pytest.mark.parametrize("training", [True, False])
def test_sizes_and_weights_are_right_at_once_and_nothing_is_iterated(name, training):
    model, inputs = build(name)
    model.train(training)
    structure = trace(model, inputs)
    masks = masks_of(structure, some_kept(structure, 0))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    small = remove(model, masks, structure)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    for key, buffer in small.named_buffers():  # those of power iterations: a part of what they were
        assert torch.isin(buffer, before[key]).all()
    for layer in small.eval():
        if isinstance(layer, nn.Linear):
            assert tuple(layer.weight.shape) == (layer.out_features, layer.in_features)
        if isinstance(layer, nn.Conv2d):
            assert tuple(layer.weight.shape[:2]) == (layer.out_channels, layer.in_channels)
    expected = small(inputs)
    assert torch.allclose(plain(small)(inputs), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["weight norm", "weight norm by a hook"])
def test_a_length_goes_and_a_direction_stays_in_the_masked_network(name):
    model, inputs = build(name)
    structure = trace(model, inputs)
    masks = masks_of(structure, some_kept(structure, 0))
    lengths, directions = ("0.weight_g", "0.weight_v") if "hook" in name else _parts("0")
    gone = ~masks["0.bias"]
    assert gone.any()
    assert torch.equal(~masks[lengths].flatten(), gone)
    assert directions not in masks  # its inputs are the network's; a row of zeros has no direction
    assert ("2.weight_v" if "hook" in name else _parts("2")[1]) in masks  # columns of the next
    masks.apply_(model)
    assert model(inputs).isfinite().all()


def _parts(layer):
    return [f"{layer}.parametrizations.weight.original{i}" for i in (0, 1)]


def test_a_direction_that_is_masked_by_hand_is_refused_by_name():
    model, inputs = build("weight norm")
    structure = trace(model, inputs)
    masks = dict(masks_of(structure, some_kept(structure, 0)))
    masks[_parts("0")[1]] = masks["0.bias"][:, None].expand(8, 5).clone()  # 0 / 0
    with pytest.raises(StructureError, match=r"^2: .*differ by inf"):
        remove(model, masks, structure)


def test_scores_of_directions_choose_units():
    model, inputs = build("weight norm")
    structure = trace(model, inputs)
    parameters = prunable(model, include=["*original1", "*weight"])
    masks = prune(scorers.magnitude(Evidence(model, parameters)), 0.5, Channels(structure))
    small = remove(model, masks, structure)
    assert verify(model, masks, small, inputs) <= 1e-5
    assert small[0].out_features + small[2].out_features == 7
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    model(inputs).square().sum().backward()
    optimizer.step()
    remove_(model, masks, structure, optimizer=optimizer)
    model(inputs).square().sum().backward()
    optimizer.step()


def test_what_couples_all_units_keeps_them_and_says_so():
    layers = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    for number in (0, 2):
        parametrizations.orthogonal(layers[number])
    structure = trace(layers, torch.randn(2, 5))
    assert families(structure) == {}
    assert "no rule is known for this operator" in str(structure)
    masks = Masks({"0.bias": torch.zeros(8, dtype=torch.bool)})
    assert remove(layers, masks, structure)[0].out_features == 8
