"""Masked = removed on every way in which channels are coupled, and nothing of the model changes on the way."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from pruning.cost import cost
from pruning.inputs import arguments, tensors_in
from pruning.structure import load, remove, save, trace, verify
from tests.pruning.structure.masking import masks_of, some_kept
from tests.pruning.structure.zoo import CASES, build


def snapshot(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.fixture(params=CASES)
def case(request):
    return request.param


def test_the_units_are_found_and_nothing_is_changed(case):
    model, inputs = build(case)
    model.train()
    before, modes = snapshot(model), [m.training for m in model.modules()]
    attributes = [dict(vars(m)) for m in model.modules()]
    random = torch.random.get_rng_state()
    structure = trace(model, inputs)
    assert sorted(family.size for family in structure.families) == sorted(CASES[case][2])
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(dict(vars(m)).keys() == known.keys() for m, known in zip(model.modules(), attributes, strict=True))
    assert torch.equal(torch.random.get_rng_state(), random)
    assert not structure.frozen
    assert not structure.unknown
    assert len(str(structure).splitlines()) == len(structure.families) + 2


@pytest.mark.parametrize("seed", range(3))
def test_masked_is_removed(case, seed):
    model, inputs = build(case, seed)
    structure = trace(model, inputs)
    kept = some_kept(structure, seed)
    masks = masks_of(structure, kept)
    before = snapshot(model)
    small = remove(model, masks, structure)
    assert verify(model, masks, small, inputs) <= 1e-5
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert sum(p.numel() for p in small.parameters()) == structure.cost("parameters", kept)
    kinds = {type(a) for a in small.modules()} - {type(b) for b in model.modules()}
    assert all(issubclass(kind, nn.MultiheadAttention) for kind in kinds)
    if kept.all():
        return
    if not any(kind in case for kind in ("LSTM", "GRU", "RNN")):  # torch's counter cannot see into them
        assert cost(model, None, inputs).macs == structure.cost("macs")
        assert cost(small, None, inputs).macs == structure.cost("macs", kept)


def test_the_small_network_trains_is_copied_pickled_saved_and_loaded(case, tmp_path):
    model, inputs = build(case)
    structure = trace(model, inputs)
    masks = masks_of(structure, some_kept(structure, 1))
    small = remove(model, masks, structure)
    save(small, tmp_path / "small.safetensors")
    read = load(tmp_path / "small.safetensors", build(case, seed=5)[0])
    assert verify(model, masks, read, inputs) <= 1e-5
    others = [copy.deepcopy(small)]
    if not any(parametrize.is_parametrized(module) for module in small.modules()):  # which torch refuses to pickle
        others.append(pickle.loads(pickle.dumps(small)))
    assert all(verify(model, masks, other, inputs) <= 1e-5 for other in others)
    small.train()
    args, kwargs = arguments(inputs)
    torch.stack([output.square().sum() for output in tensors_in(small(*args, **kwargs))]).sum().backward()
    reached = [p for p in small.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in reached)
