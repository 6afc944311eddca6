"""Removal in place, with the optimizer; ties; dead weights; files; what does not fit."""

import json
from contextlib import suppress

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from pruning import Masks
from pruning.copying import cloned
from pruning.errors import ArtefactError, StructureError
from pruning.structure import load, remove, remove_, save, trace, verify
from tests.pruning.structure.masking import masks_of, some_kept
from tests.pruning.structure.zoo import CASES, build

NORMED = ("weight norm", "weight norm of columns", "weight norm of convolutions by a hook", "spectral norm by a hook")
NORMED += ("spectral norm", "weight norm by a hook")
OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=0.01, nesterov=True),
    "Adam": lambda p: torch.optim.Adam(p, 0.01, amsgrad=True),
    "AdamW": lambda p: torch.optim.AdamW(p, 0.01),
    "RMSprop": lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.5, centered=True),
    "Adadelta": torch.optim.Adadelta,
}


def step(model, optimizer, inputs, targets):
    optimizer.zero_grad()
    F.cross_entropy(model(inputs), targets).backward()
    optimizer.step()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", ["residual", "attention", "flatten", "squeeze and excitation", *NORMED])
def test_training_goes_on_in_the_small_network_as_in_the_masked_one(name, optimizer):
    """Removed in the middle of a training, parameters and optimizer are what the masked network's are."""
    model, inputs = build(name)
    model, inputs = model.double().train(), inputs.double()
    targets = torch.tensor([0, 2]) if name != "attention" else torch.tensor([1, 2])
    structure = trace(model, inputs)
    masks = masks_of(structure, some_kept(structure, 1))
    twins = []
    for removed in (False, True):
        own = cloned(model)  # as torch does not copy a weight norm by a hook
        made = OPTIMIZERS[optimizer](own.parameters())
        with masks.attach(own, made):
            for _ in range(3):
                step(own, made, inputs, targets)
            if not removed:
                for _ in range(3):
                    step(own, made, inputs, targets)
        if removed:
            before = [id(p) for p in own.parameters()]
            remove_(own, masks, structure, optimizer=made)
            assert [id(p) for p in own.parameters()] == before
            for _ in range(3):
                step(own, made, inputs, targets)
        twins.append(own)
    masked, small = twins
    expected = remove(masked, masks, structure)
    for (key, a), b in zip(expected.state_dict().items(), small.state_dict().values(), strict=True):
        assert torch.allclose(a, b, atol=1e-9), key


@pytest.mark.parametrize("name", ["residual", "attention", "depthwise", "tied embedding", "LSTM", "fused attention"])
def test_in_place_is_as_a_copy(name):
    model, inputs = build(name)
    structure = trace(model, inputs)
    masks = masks_of(structure, some_kept(structure, 0))
    small = remove(model, masks, structure)
    remove_(model, masks, structure)
    assert {n: v.shape for n, v in model.state_dict().items()} == {n: v.shape for n, v in small.state_dict().items()}
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), small.state_dict().values(), strict=True))
    assert [type(m) for m in model.modules()] == [type(m) for m in small.modules()]


def test_tied_weights_stay_tied():
    model, inputs = build("tied embedding")
    structure = trace(model, inputs)
    masks = masks_of(structure, some_kept(structure, 0))
    small = remove(model, masks, structure)
    assert small.head.weight is small.embedding.weight
    assert small.head.in_features == small.embedding.embedding_dim == small.embedding.weight.shape[1] < 6
    remove_(model, masks, structure)
    assert model.head.weight is model.embedding.weight


def test_the_small_network_shares_nothing_with_the_large_one():
    model, inputs = build("residual")
    structure = trace(model, inputs)
    kept = some_kept(structure, 0)
    kept[structure.families[0].units] = True
    small = remove(model, masks_of(structure, kept), structure)
    shared = {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in small.parameters()}
    assert not shared
    model.stem.weight.requires_grad_(False)
    assert not remove(model, masks_of(structure, kept), structure).stem.weight.requires_grad


def test_hooks_and_gradients_survive():
    model, inputs = build("residual")
    structure = trace(model, inputs)
    seen = []
    model.stem.register_forward_hook(lambda m, _, out: seen.append(out.shape[1]))
    model(inputs).sum().backward()
    kept = some_kept(structure, 0)
    whole = model.stem.weight.grad.clone()
    remove_(model, masks_of(structure, kept), structure, verified=False)
    rows = torch.from_numpy(kept[structure.families[0].units])
    assert torch.equal(model.stem.weight.grad, whole[rows])
    seen.clear()
    model(inputs)
    assert seen == [int(rows.sum())]


def test_masks_that_leave_part_of_a_unit_keep_it():
    model, inputs = build("residual")
    structure = trace(model, inputs)
    masks = {"conv1.weight": torch.ones(4, 6, 3, 3, dtype=torch.bool)}
    masks["conv1.weight"][1] = False  # its bias, its norm and what reads it are still there
    small = remove(model, masks, structure)
    assert small.conv1.weight.shape == model.conv1.weight.shape
    assert not small.conv1.weight[1].any()


def test_a_layer_whose_units_all_go_keeps_one_of_zeros():
    model, inputs = build("residual")
    structure = trace(model, inputs)
    masks = {name: torch.zeros(p.shape, dtype=torch.bool) for name, p in model.named_parameters() if "1." in name}
    masks["conv2.weight"] = torch.zeros(6, 4, 3, 3, dtype=torch.bool)
    small = remove(model, masks, structure)
    assert small.conv1.out_channels == 1
    assert not small.conv1.weight.any()
    assert verify(model, masks, small, inputs) <= 1e-5


def test_masks_that_do_not_fit_are_refused_by_name():
    model, inputs = build("residual")
    structure = trace(model, inputs)
    with pytest.raises(StructureError, match=r"conv1.bias: a mask of shape \[5\]"):
        remove(model, {"conv1.bias": torch.ones(5, dtype=torch.bool)}, structure)
    with pytest.raises(StructureError, match="trace this model"):
        remove(build("dense")[0], {"head.bias": torch.ones(3, dtype=torch.bool)}, structure)
    with pytest.raises(StructureError, match="nothing: is no parameter"):
        remove(model, {"nothing": torch.ones(6, dtype=torch.bool)}, structure)


def test_files_that_are_not_right_are_refused(tmp_path):
    model, inputs = build("residual")
    structure = trace(model, inputs)
    small = remove(model, masks_of(structure, some_kept(structure, 0)), structure)
    path = tmp_path / "small.safetensors"
    save(small, path)
    whole = path.read_bytes()
    for position in range(0, len(whole), 97):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with suppress(ArtefactError):  # or it is harmless, as in what fills the header up
            read = load(path, build("residual")[0])
            assert all(torch.equal(a, b) for a, b in zip(read.parameters(), small.parameters(), strict=True))
    path.write_bytes(whole[:-9])
    with pytest.raises(ArtefactError):
        load(path, model)
    save_file({"weight": torch.ones(3)}, path)
    with pytest.raises(ArtefactError):
        load(path, model)
    path.write_bytes(whole)
    with pytest.raises(StructureError, match="only in the file"):
        load(path, nn.Linear(3, 3))
    assert json.dumps(sorted(load_file(path)))  # readable without this library


@pytest.mark.parametrize("name", ["residual", "attention", "grouped", "fused attention", "channels last", "u-net"])
def test_export_gives_the_same_outputs(name, tmp_path):
    model, inputs = build(name)
    structure = trace(model, inputs)
    small = remove(model, masks_of(structure, some_kept(structure, 0)), structure)
    exported = torch.export.export(small, (inputs,)).module()
    assert torch.allclose(exported(inputs), small(inputs), atol=1e-5)
    onnxruntime = pytest.importorskip("onnxruntime")
    path = tmp_path / "small.onnx"
    torch.onnx.export(small, (inputs,), path, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})
    assert torch.allclose(torch.from_numpy(found), small(inputs), atol=1e-5)


def test_verify_sees_what_is_wrong():
    model, inputs = build("residual")
    structure = trace(model, inputs)
    masks = masks_of(structure, some_kept(structure, 0))
    small = remove(model, masks, structure)
    with torch.no_grad():
        small.head.bias[0] += 1e-3
    assert verify(model, masks, small, inputs) > 1e-5
    assert verify(model, masks, nn.Sequential(small, nn.Linear(3, 2)), inputs) == float("inf")
    with torch.no_grad():
        small.head.bias[0] = torch.nan
    assert verify(model, masks, small, inputs) == float("inf")


def test_nothing_removed_is_a_copy():
    for name in list(CASES)[:5]:
        model, inputs = build(name)
        structure = trace(model, inputs)
        masks = Masks.dense(dict(model.named_parameters()))
        small = remove(model, masks, structure)
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), small.parameters(), strict=True))


def test_a_network_without_units_stays_as_it_is():
    """One layer has its inputs and outputs in other hands."""
    layer, x = nn.Sequential(nn.Linear(5, 3)), torch.randn(2, 5)
    structure = trace(layer, x)
    assert not structure.families
    masks = Masks({"0.weight": torch.tensor([[True], [False], [True]]).expand(3, 5)})
    small = remove(layer, masks, structure)
    assert small[0].weight.shape == (3, 5)
    assert verify(layer, masks, small, x) == 0
