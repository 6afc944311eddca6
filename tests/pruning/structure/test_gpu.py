"""On a GPU everything is as on a CPU: units, counts, removal, random states. Skipped where there is none."""

import copy

import pytest
import torch
from torch.nn import functional as F

from pruning.cost import cost, latency
from pruning.inputs import mapped
from pruning.structure import measure_latency, remove, remove_, trace, verify
from tests.pruning.structure.masking import masks_of, some_kept
from tests.pruning.structure.zoo import CASES, build

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def on_gpu(name, seed=0):
    model, inputs = build(name, seed)
    return model.cuda(), mapped(inputs, torch.Tensor.cuda)


ON_ANY_DEVICE = [name for name in CASES if "felt: " not in name]  # some of those make constants on the CPU


@pytest.mark.parametrize("name", ON_ANY_DEVICE)
def test_structure_and_removal_are_as_on_a_cpu(name):
    expected = trace(*build(name))
    model, inputs = on_gpu(name)
    before, random = copy.deepcopy(model.state_dict()), torch.cuda.get_rng_state()
    structure = trace(model, inputs)
    assert structure.families == expected.families
    kept = some_kept(structure, 0)
    masks = masks_of(structure, kept)
    small = remove(model, masks, structure)
    assert all(p.is_cuda for p in small.parameters())
    assert verify(model, masks, small, inputs) <= 1e-5
    assert sum(p.numel() for p in small.parameters()) == expected.cost("parameters", kept)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.cuda.get_rng_state(), random)


def test_a_model_may_move_after_it_was_traced():
    """The example inputs stay on the CPU."""
    model, inputs = build("residual")
    structure = trace(model, inputs)
    kept = some_kept(structure, 0)
    model.cuda()
    small = remove(model, masks_of(structure, kept), structure)
    assert all(p.is_cuda for p in small.parameters())
    assert cost(small, None, inputs).parameters == structure.cost("parameters", kept)
    assert latency(small, inputs) > 0


def test_wide_layers_are_compared_without_tf32():
    """With 1,024 channels, TF32 alone makes differences of 1e-4."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(64, 1024, 3), torch.nn.ReLU(), torch.nn.Conv2d(1024, 512, 1), torch.nn.Conv2d(512, 8, 1)
    ).cuda()
    before = torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision
    inputs = torch.randn(2, 64, 16, 16, device="cuda")
    structure = trace(model, inputs)
    masks = masks_of(structure, some_kept(structure, 1))
    assert verify(model, masks, remove(model, masks, structure), inputs) <= 1e-5
    assert (torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision) == before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_removed_and_trains_on(dtype):
    model, inputs = on_gpu("residual")
    model, inputs = model.to(dtype).train(), inputs.to(dtype)
    optimizer = torch.optim.AdamW(model.parameters(), 0.01, fused=True)
    structure = trace(model, inputs)
    masks = masks_of(structure, some_kept(structure, 1))
    for removed in (False, True):
        if removed:
            remove_(model, masks, structure, optimizer=optimizer)
        optimizer.zero_grad()
        F.cross_entropy(model(inputs).float(), torch.tensor([0, 2], device="cuda")).backward()
        optimizer.step()
    assert all(p.dtype == dtype and p.isfinite().all() for p in model.parameters())


def test_latency_is_measured_on_the_device():
    model, inputs = on_gpu("residual")
    structure = trace(model, inputs)
    whole = latency(model, inputs, repeats=5)
    table = measure_latency(model, structure, repeats=5)
    assert 0 < whole < 1000
    assert len(table.counts) == len(structure.families)
