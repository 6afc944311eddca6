"""Deltas in files: as small as their entropy, the same bits again, and refused for another network or another file."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pruning import Masks
from pruning.adaptation import Change, Delta, Tuning
from pruning.adaptation.delta import digest
from pruning.errors import AdaptationError, ArtefactError


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(200, 300), nn.ReLU(), nn.Conv1d(300, 10, 1), nn.Linear(10, 2)).to(dtype)


def delta(model: nn.Module, density: float = 0.02, values: torch.dtype | None = None) -> Delta:
    """Random differences at random places of the first two layers, and another head."""
    generator = torch.Generator().manual_seed(3)
    weights = {n: p for n, p in model.named_parameters() if n in ("0.weight", "0.bias", "2.weight")}
    support = {n: torch.rand(p.shape, generator=generator) < density for n, p in weights.items()}
    with Tuning(model, support, dense="3.*") as tuning:
        for value in tuning.values.values():
            value.data.normal_(generator=generator)
        tuning.write_()
        found = tuning.delta(values)
        tuning.revert()
    return found


def equal(one: Delta, other: Delta) -> bool:
    same = one.changes.keys() == other.changes.keys() and one.dense.keys() == other.dense.keys()
    return (
        same
        and all(torch.equal(value, other.dense[name]) for name, value in one.dense.items())
        and all(
            (a.shape, a.dtype, a.base, a.values.dtype) == (b.shape, b.dtype, b.base, b.values.dtype)
            and torch.equal(a.places, b.places)
            and torch.equal(a.values, b.values)
            for a, b in ((change, other.changes[name]) for name, change in one.changes.items())
        )
    )


@pytest.mark.parametrize("base", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("values", [None, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("density", [0.001, 0.02, 0.5, 1.0])
def test_files_give_the_same_delta(base: torch.dtype, values: torch.dtype, density: float, tmp_path: Path) -> None:
    model = network(base)
    found = delta(model, density, values)
    found.save(tmp_path / "a")
    read = Delta.load(tmp_path / "a")
    assert equal(found, read)
    read.save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    with read.apply_(model):
        for name, change in found.changes.items():
            flat = model.get_parameter(name).detach().reshape(-1)
            torch.testing.assert_close(
                flat[change.places].double(), change.added(base_values(base, name, change)).double()
            )


def base_values(dtype: torch.dtype, name: str, change: Change) -> Tensor:
    return network(dtype).get_parameter(name).detach().reshape(-1)[change.places]


@pytest.mark.parametrize("values", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("density", [0.005, 0.02, 0.1])
def test_a_file_is_hardly_larger_than_its_entropy(values: torch.dtype, density: float, tmp_path: Path) -> None:
    layer = nn.Linear(500, 1000, bias=False)
    support = torch.rand(1000, 500, generator=torch.Generator().manual_seed(0)) < density
    with Tuning(layer, {"weight": support}) as tuning:
        tuning.delta(values).save(tmp_path / "delta")
    places = -500_000 * (density * math.log2(density) + (1 - density) * math.log2(1 - density)) / 8
    assert (tmp_path / "delta").stat().st_size < 1.15 * (places + int(support.sum()) * values.itemsize)


@pytest.mark.parametrize("change", ["value", "dtype", "shape", "name", "head"])
def test_another_base_is_refused_by_name(change: str) -> None:
    found = delta(network())
    other = network()
    if change == "value":
        places = found.changes["0.weight"].places
        free = next(n for n in range(60_000) if n not in set(places.tolist()))
        other[0].weight.data.view(-1)[free] += 1e-7 * other[0].weight.data.view(-1)[free]  # at a place that stays
    if change == "dtype":
        other.to(torch.bfloat16)
    if change == "shape":
        other[0] = nn.Linear(300, 200)
    if change == "name":
        other.insert(0, nn.Identity())
    if change == "head":
        other[3] = nn.Linear(10, 5)
    before = [parameter.detach().clone() for parameter in other.parameters()]
    with pytest.raises(AdaptationError, match=r"3\.weight" if change == "head" else r"0\.weight"):
        found.apply_(other)
    assert all(torch.equal(p, q) for p, q in zip(other.parameters(), before, strict=True))


def test_scaled_and_rounded_differences() -> None:
    found, model = delta(network()), network()
    base = model[0].weight.detach().clone()
    with found.scaled(0.5).apply_(model):
        half = model[0].weight.detach() - base
    with found.apply_(model):
        torch.testing.assert_close(half, (model[0].weight.detach() - base) / 2, atol=1e-6, rtol=1e-3)
    assert {change.values.dtype for change in found.rounded(torch.float16).changes.values()} == {torch.float16}
    assert torch.equal(model[0].weight, base)
    assert found.support == Masks({n: c.shape.numel() and _mask(c) for n, c in found.changes.items()})


def _mask(change: Change) -> Tensor:
    mask = torch.zeros(change.shape.numel(), dtype=torch.bool)
    mask[change.places] = True
    return mask.view(change.shape)


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    delta(network()).save(tmp_path / "delta")
    whole = (tmp_path / "delta").read_bytes()
    generator = torch.Generator().manual_seed(0)
    for position in torch.randint(len(whole), (60,), generator=generator).tolist():
        (tmp_path / "broken").write_bytes(whole[:position] + bytes([whole[position] ^ 5]) + whole[position + 1 :])
        with pytest.raises(ArtefactError, match=r"is damaged|cannot be read as a delta|is no delta"):
            Delta.load(tmp_path / "broken")
    for length in (0, 7, 100, len(whole) - 1):
        (tmp_path / "broken").write_bytes(whole[:length])
        with pytest.raises(ArtefactError, match="cannot be read as a delta"):
            Delta.load(tmp_path / "broken")
    Masks({"a": torch.ones(3, dtype=torch.bool)}).save(tmp_path / "masks")
    save_file(load_file(tmp_path / "delta"), tmp_path / "bare")
    for name in ("masks", "bare"):
        with pytest.raises(ArtefactError, match="is no delta of the format"):
            Delta.load(tmp_path / name)
    with pytest.raises(ArtefactError, match="cannot be read"):
        Delta.load(tmp_path / "nothing")
    with pytest.raises(OSError, match="cannot be written"):
        delta(network()).save(tmp_path / "no" / "delta")


def test_no_pickle_is_in_a_file(tmp_path: Path) -> None:
    delta(network()).save(tmp_path / "delta")
    assert {"places", "values", "dense.3.weight", "dense.3.bias"} == load_file(tmp_path / "delta").keys()


def test_weights_that_lie_in_memory_otherwise() -> None:
    """A convolution whose channels come last, and a transposed weight."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3)).to(memory_format=torch.channels_last)
    assert not model[0].weight.is_contiguous()
    before = model[0].weight.detach().clone()
    mask = torch.rand(before.shape) < 0.2
    tuning = Tuning(model, {"0.weight": mask})
    for value in tuning.values.values():
        value.data.normal_()
    tuning.write_()
    found = tuning.finish()
    assert torch.equal((model[0].weight != before), mask)
    assert found.changes["0.weight"].base == digest(before.contiguous())
    plain = nn.Sequential(nn.Conv2d(3, 8, 3))
    plain.load_state_dict({"0.weight": before, "0.bias": model[0].bias.detach()})
    with found.apply_(plain):
        assert torch.equal(plain[0].weight, model[0].weight)
    assert torch.equal(plain[0].weight, before)
