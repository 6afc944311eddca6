"""Codes where layers read units: zeros and ones are the masked network, whatever couples the units; or a refusal."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from experiments import models
from pruning import Masks
from pruning.copying import cloned
from pruning.dynamic.codes.coding import Coding
from pruning.dynamic.codes.multiplying import CodedReads
from pruning.dynamic.codes.reading import readers
from pruning.errors import GranularityError
from pruning.inputs import copies_for, outputs_in
from pruning.structure import trace
from pruning.structure.choosing.channels import unit_masks
from pruning.structure.coupling.families import Family
from tests.pruning.structure.zoo import CASES, build

REFUSED = {
    "tied embedding": "Embedding, reads",
    "LSTM": "LSTM, reads",
    "GRU": "GRU, reads",
    "projected LSTM": "LSTM, reads",
    "RNN": "RNN, reads",
    "cells": "GRUCell, reads",
    "inputs and outputs by name": "other operators",
    "attention": "not called as a module",
    "attention whose weights nobody reads": "not called as a module",
    "attention without bias": "not called as a module",
    "attention with learned keys": "not called as a module",
    "attention with zero keys": "not called as a module",
    "cross attention": "not called as a module",
    "sum after batch norm": "no layer reads",
    "weight norm of columns": "no layer reads",
    "weight norm of the whole": "no layer reads",
    "spectral norm by a hook": "other operators",
    "spectral norm of convolutions": "other operators",
}
"""Networks of which no family can have a code, and what is said of the first."""


def outputs(model: nn.Module, inputs: object) -> list[Tensor]:
    args, kwargs = copies_for(model, inputs)  # type: ignore[arg-type]
    with torch.no_grad():
        torch.manual_seed(0)
        return [part.clone() for part in outputs_in(model(*args, **kwargs))]


def coded(model: nn.Module, inputs: object) -> tuple[list[Family], list[str]]:
    """Families that can have codes; what is said of others."""
    structure = trace(model, inputs)  # type: ignore[arg-type]
    found, said = [], []
    for family in structure.families:
        try:
            readers(model, structure, [family])
        except GranularityError as error:
            said.append(str(error))
        else:
            found.append(family)
    return found, said


@pytest.mark.parametrize("name", CASES)
def test_codes_of_zeros_and_ones_are_the_masked_network(name: str) -> None:
    model, inputs = build(name)
    families, said = coded(model, inputs)
    assert all("granularity.exclude" in line for line in said)
    if name in REFUSED:
        assert not families
        assert REFUSED[name] in said[0]
        return
    assert families
    structure = trace(model, inputs)
    draws, kept, codes = np.random.default_rng(1), np.ones(structure.size, bool), {}
    for family in families:
        stays = draws.random(family.size) < 0.6
        stays[draws.integers(family.size)] = True
        kept[family.units] = stays
        codes[family.name] = torch.from_numpy(stays).float()
    masked = cloned(model)
    Masks(unit_masks(structure, kept)).apply_(masked)
    slices = {family.name: family.units for family in families}
    reads = CodedReads(model, readers(model, structure, families), {}, slices, _no_slope, lambda: codes)
    plain = outputs(model, inputs)
    reads.listen()
    for one, other in zip(outputs(model, inputs), outputs(masked, inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    for one, other in zip(outputs(cloned(model), inputs), plain, strict=True):
        assert torch.equal(one, other)  # a copy is without codes
    reads.stop()
    for one, other in zip(outputs(model, inputs), plain, strict=True):
        assert torch.equal(one, other)


def _no_slope(*_: object) -> Tensor:
    return torch.zeros(())


@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_layers_of_a_residual_stream_read_it_times_one_code(shortcut: str) -> None:
    torch.manual_seed(0)
    model = models.resnet20((1, 8, 8), 10, shortcut=shortcut, width=0.25).eval()
    inputs = torch.randn(4, 1, 8, 8)
    structure = trace(model, inputs)
    stream = max(structure.families, key=lambda family: len(family.members))
    found = readers(model, structure, [stream])
    assert len(found) >= 4
    codes = {stream.name: torch.rand(stream.size)}
    given: dict[str, Tensor] = {}
    read: dict[str, Tensor] = {}
    for reader in found:
        layer = model.get_submodule(reader.layer)
        layer.register_forward_pre_hook(lambda _, args, n=reader.layer: given.__setitem__(n, args[0]))
    CodedReads(model, found, {}, {stream.name: stream.units}, _no_slope, lambda: codes).listen()
    for reader in found:
        layer = model.get_submodule(reader.layer)
        layer.register_forward_pre_hook(lambda _, args, n=reader.layer: read.__setitem__(n, args[0]))
    outputs(model, inputs)
    for reader in found:
        factors = torch.tensor([1.0 if u < 0 else codes[stream.name][u - stream.first] for u in reader.units.tolist()])
        seen = given[reader.layer]
        torch.testing.assert_close(read[reader.layer], seen * factors.view(1, -1, *[1] * (seen.dim() - 2)))
        assert set((reader.units[reader.units >= 0] - stream.first).tolist()) == set(range(stream.size))


@pytest.mark.parametrize("shape", [(3, 8, 6), (3, 5, 7), (3, 1, 4), (3, 2, 2), (3, 9), (3,), (2, 4, 4, 6)])
def test_a_code_is_its_formula_in_numpy(shape: tuple[int, ...]) -> None:
    kind = {1: nn.Linear, 2: nn.Conv1d, 3: nn.Conv2d, 4: nn.Conv3d}[len(shape)]
    first = nn.Linear(5, shape[0]) if kind is nn.Linear else kind(1, shape[0], 1)
    last = nn.Linear(shape[0], 4) if kind is nn.Linear else kind(shape[0], 4, 1)
    model = nn.Sequential(first, nn.ReLU(), last).double()
    example = torch.randn(2, 5) if kind is nn.Linear else torch.randn(2, 1, *shape[1:])
    structure = trace(model, example.double())
    (family,) = structure.families
    (reader,) = readers(model, structure, [family])
    assert reader.shape == shape
    alive = torch.ones(shape[0], dtype=torch.bool)
    alive[0] = False
    coding = Coding(family, reader, alive, torch.zeros((), dtype=torch.float64), 1.5, "here")
    inputs = torch.randn(7, *shape, dtype=torch.float64)
    mean = inputs.numpy().mean(0)
    for dim in range(1, len(shape)):  # maxima of pairs; of an odd side the last is left out, and one of 1 stays
        side = shape[dim]
        if side > 1:
            pairs = np.stack([np.take(mean, range(k, side - side % 2, 2), dim) for k in (0, 1)])
            mean = pairs.max(0)
    assert coding.weight.shape == (shape[0], mean.size)
    x = np.einsum("ui,i->u", coding.weight.detach().numpy(), mean.ravel()) + coding.bias.detach().numpy()
    expected = alive.numpy() / (1 + np.exp(-1.5 * x))
    np.testing.assert_allclose(coding(inputs).detach().numpy(), expected, rtol=1e-12)
    decided = ((expected < 0.1) | (expected > 0.9))[1:].mean()
    assert coding.decided(coding(inputs).detach()) == pytest.approx(decided)
    with pytest.raises(GranularityError, match="crop, pad or resize"):
        coding(torch.randn(7, *(size + 1 for size in shape), dtype=torch.float64))


def test_first_weights_have_the_spread_of_the_authors() -> None:
    model = nn.Sequential(nn.Conv2d(1, 64, 1), nn.ReLU(), nn.Conv2d(64, 4, 1))
    structure = trace(model, torch.randn(2, 1, 8, 8))
    (reader,) = readers(model, structure, structure.families)
    alive = torch.ones(64, dtype=torch.bool)
    one, same, other = (Coding(structure.families[0], reader, alive, torch.zeros(()), 1.0, p) for p in "aab")
    assert float(one.weight.detach().std()) == pytest.approx((2 / (64 * 16)) ** 0.5, rel=0.01)
    assert float(one.bias.detach().abs().max()) <= 1 / 32
    assert torch.equal(one.weight, same.weight)
    assert not torch.equal(one.weight, other.weight)


def test_flattened_channels_keep_their_space() -> None:
    """A Linear that reads flattened images gives the coding layer images; one that reads rows gives it features."""
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16, 10), nn.ReLU(), nn.Linear(10, 3)
    )
    structure = trace(model, torch.randn(2, 1, 6, 6))
    found = readers(model, structure, structure.families)
    assert [(reader.layer, reader.shape) for reader in found] == [("3", (6, 4, 4)), ("5", (10,))]
    assert torch.equal(found[0].units, torch.arange(6).repeat_interleave(16))
    images = torch.randn(2, 6, 4, 4)
    assert torch.equal(found[0].examples(images.flatten(1)), images)
