"""Masks: their checks, their arithmetic, and their file, of which no damage goes unnoticed."""

import copy
import io
import json
import math
import pickle
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pruning import Masks, prunable
from pruning.errors import ArtefactError, MaskError, PruningError


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


def some(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> Masks:
    generator = torch.Generator().manual_seed(seed)
    return Masks({name: torch.rand(shape, generator=generator) < 0.5 for name, shape in shapes.items()})


def of(**values: list[int]) -> Masks:
    return Masks({name: torch.tensor(value, dtype=torch.bool) for name, value in values.items()})


def message(caught: pytest.ExceptionInfo[PruningError], *parts: str) -> None:
    text = str(caught.value)
    assert "\n" not in text
    for part in (*parts, ": "):
        assert part in text


@pytest.mark.parametrize(
    ("value", "kind"),
    [(torch.ones(3), "torch.float32"), (torch.ones(3, dtype=torch.uint8), "torch.uint8"), ([True], "list")],
)
def test_masks_are_bool_tensors(value: Tensor, kind: str) -> None:
    with pytest.raises(MaskError) as caught:
        Masks({"good": torch.ones(2, dtype=torch.bool), "layer.weight": value})
    message(caught, "layer.weight", kind, "convert it")


def test_no_masks_are_refused() -> None:
    with pytest.raises(MaskError, match="no masks: give"):
        Masks({})


def test_counts_table_and_text() -> None:
    masks = of(a=[1, 0, 1, 1], b=[0, 0], c=[1, 1])
    assert (masks.total, masks.kept, masks.density) == (8, 5, 0.625)
    assert masks.emptied == ("b",)
    assert [(t.name, t.shape, t.kept, t.total, t.density) for t in masks.table()] == [
        ("a", (4,), 3, 4, 0.75),
        ("b", (2,), 0, 2, 0.0),
        ("c", (2,), 2, 2, 1.0),
    ]
    lines = str(masks).splitlines()
    assert len(lines) == 4
    assert [line.endswith("emptied") for line in lines] == [False, True, False, False]
    assert "5" in lines[-1]
    assert "0.62500" in lines[-1]
    assert "5 of 8" in repr(masks)


def test_tensors_without_weights_are_dense_and_not_emptied() -> None:
    masks = some({"none": (0, 3)})
    assert (masks.total, masks.kept, masks.density, masks.emptied) == (0, 0, 1.0, ())


def test_dense_keeps_everything() -> None:
    parameters = prunable(small())
    masks = Masks.dense(parameters)
    assert list(masks) == list(parameters)
    assert masks.kept == masks.total == sum(p.numel() for p in parameters.values())


def test_mapping_and_its_source_do_not_follow_each_other() -> None:
    source = {"a": torch.ones(2, dtype=torch.bool)}
    masks = Masks(source)
    source["b"] = source["a"]
    assert list(masks) == ["a"]
    assert len(masks) == 1
    with pytest.raises(TypeError):
        masks["a"] = source["a"]  # that it cannot be is what is tested
    with pytest.raises(TypeError):
        hash(masks)


def test_equality_is_by_value() -> None:
    assert of(a=[1, 0], b=[1]) == of(b=[1], a=[1, 0])
    assert of(a=[1, 0]) != of(a=[1, 1])
    assert of(a=[1, 0]) != of(b=[1, 0])
    assert of(a=[1, 0]) != of(a=[1, 0], b=[1])
    assert of(a=[1, 1]) != of(a=[1, 1, 1])
    assert of(a=[1]) != {"a": torch.tensor([True])}


def test_intersection_and_union() -> None:
    left, right = of(a=[1, 1, 0, 0], b=[1]), of(b=[0], a=[1, 0, 1, 0])
    assert left & right == of(a=[1, 0, 0, 0], b=[0])
    assert left | right == of(a=[1, 1, 1, 0], b=[1])
    assert left == of(a=[1, 1, 0, 0], b=[1])


@pytest.mark.parametrize("other", [of(a=[1, 1], b=[1]), of(c=[1, 1]), of(a=[1, 1, 1])])
def test_masks_of_other_models_are_not_combined(other: Masks) -> None:
    for combine in (Masks.__and__, Masks.__or__):
        with pytest.raises(MaskError) as caught:
            combine(of(a=[1, 0]), other)
        message(caught)


def test_apply_agree_and_check() -> None:
    model = small()
    masks = some({"0.weight": (4, 3), "2.weight": (2, 4)})
    before = copy.deepcopy(model.state_dict())
    assert not masks.agree(model)
    masks.check(model)
    masks.apply_(model)
    assert masks.agree(model)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name] * masks[name] if name in masks else before[name])
    assert all(p.requires_grad and p.grad_fn is None for p in model.parameters())
    with torch.no_grad():
        model[0].weight[~masks["0.weight"]] = 1e-30
    assert not masks.agree(model)


@pytest.mark.parametrize(
    ("shapes", "parts"),
    [
        ({"0.weight": (3, 4)}, ["0.weight", "[3, 4]", "[4, 3]"]),
        ({"0.weight": (4, 3), "9.weight": (4, 3)}, ["9.weight", "no such parameter"]),
    ],
)
def test_wrong_model_is_refused_before_anything_changes(
    shapes: dict[str, tuple[int, ...]], parts: list[str], tmp_path: Path
) -> None:
    model = small()
    before = copy.deepcopy(model.state_dict())
    masks = some(shapes)
    masks.save(tmp_path / "m")
    for use in (masks.check, masks.agree, masks.apply_, masks.attach, lambda m: Masks.load(tmp_path / "m", m)):
        with pytest.raises(MaskError) as caught:
            use(model)
        message(caught, *parts, "made for this model")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_to_another_device() -> None:
    moved = some({"a": (3, 2)}).to("meta")
    assert moved["a"].device.type == "meta"
    assert moved["a"].dtype == torch.bool
    assert some({"a": (3, 2)}).to("cpu") == some({"a": (3, 2)})


SHAPES = st.dictionaries(
    st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=8).filter(
        lambda name: name != "__metadata__"
    ),
    st.lists(st.integers(0, 5), max_size=4).map(tuple),
    min_size=1,
    max_size=4,
)


@settings(max_examples=60, deadline=None)
@given(shapes=SHAPES, seed=st.integers(0, 1000))
def test_round_trip(shapes: dict[str, tuple[int, ...]], seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "round-trip.safetensors"
    masks = some(shapes, seed)
    masks.save(path)
    loaded = Masks.load(path)
    assert loaded == masks
    assert list(loaded) == list(masks)
    assert all(mask.dtype == torch.bool and mask.shape == shapes[name] for name, mask in loaded.items())


def test_round_trip_of_views_and_wrappers(tmp_path: Path) -> None:
    masks = Masks({"t": some({"t": (3, 5)})["t"].t(), "e": torch.ones(1, 3, dtype=torch.bool).expand(4, 3)})
    masks.save(str(tmp_path / "m"))
    assert Masks.load(str(tmp_path / "m")) == masks


def test_one_bit_a_weight(tmp_path: Path) -> None:
    shapes = {"a": (300, 1001), "b": (7,)}
    path = tmp_path / "m"
    some(shapes).save(path)
    bits = sum(-(-math.prod(shape) // 8) for shape in shapes.values())
    assert bits <= path.stat().st_size < bits + 1000
    with safe_open(path, framework="pt") as file:
        counts = json.loads(json.loads(file.metadata()["masks"])["tensors"])
    assert counts["a"] == {"shape": [300, 1001], "kept": int(some(shapes)["a"].sum()), "coding": "bits"}


def refused(path: Path, *parts: str) -> None:
    with pytest.raises(ArtefactError) as caught:
        Masks.load(path)
    message(caught, str(path), *parts)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    refused(tmp_path / "none")
    refused(tmp_path)


def test_unwritable_place_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="none"):
        some({"a": (3,)}).save(tmp_path / "none" / "m")


def test_file_cut_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "m"
    some({"a": (9, 7), "b": (5,)}).save(path)
    whole = path.read_bytes()
    for length in [*range(0, len(whole) - 1, 13), len(whole) - 1]:
        path.write_bytes(whole[:length])
        refused(path)


def loaded_or_refused(path: Path) -> Masks | None:
    try:
        return Masks.load(path)
    except ArtefactError as error:
        return None if "\n" not in str(error) else of(multiline=[1])


def test_any_flipped_bit_is_noticed_or_harmless(tmp_path: Path) -> None:
    """Shapes are chosen so that a changed digit may fit the same number of bytes: [1, 3] and [1, 7] both take one."""
    path = tmp_path / "m"
    masks = some({"a": (1, 3), "b": (9, 2)})
    masks.save(path)
    whole = path.read_bytes()
    for position in range(len(whole)):
        for bit in (0, 2, 6):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << bit
            path.write_bytes(damaged)
            assert loaded_or_refused(path) in (masks, None), f"byte {position}, bit {bit}"


def test_flips_that_keep_the_count_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "m"
    Masks({"a": torch.tensor([True, False] * 8)}).save(path)
    whole = path.read_bytes()
    assert whole.endswith(b"\xaa\xaa")
    path.write_bytes(whole[:-2] + b"\x55\xaa")
    refused(path, "damaged")
    path.write_bytes(whole[:-2] + b"\xab\xaa")
    refused(path, "damaged")


def test_foreign_files(tmp_path: Path) -> None:
    path = tmp_path / "m"
    save_file({"a": torch.ones(3)}, path)
    refused(path, "no file of masks")
    for entry in ('{"format": "pt"}', '{"format": "pruning.masks/0", "tensors": "{}"}', '"pt"', "[]", "{", "7"):
        save_file({"a": torch.ones(3)}, path, {"masks": entry})
        refused(path, "no file of masks")
    save_file({"a": torch.ones(3)}, path, {"masks": '{"format": "pruning.masks/2"}'})
    refused(path)
    path.write_text("not a safetensors file at all, but long enough to look like one\n" * 5)
    refused(path)
    torch.save({"a": torch.ones(3)}, path)
    refused(path)


def test_load_checks_against_the_model(tmp_path: Path) -> None:
    model = small()
    masks = some({"0.weight": (4, 3)})
    masks.save(tmp_path / "m")
    assert Masks.load(tmp_path / "m", model) == masks


def test_attached_masks_change_nothing_of_the_model() -> None:
    """`state_dict` keys, `deepcopy`, pickle and `torch.save` are as on the dense model."""
    model = small()
    keys = list(model.state_dict())
    structure = repr(model)
    with some({"0.weight": (4, 3), "2.weight": (2, 4)}).attach(model):
        assert list(model.state_dict()) == keys
        assert repr(model) == structure
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        copies = [
            copy.deepcopy(model),
            pickle.loads(pickle.dumps(model)),
            torch.load(file, weights_only=False),
        ]
        for other in copies:
            assert list(other.state_dict()) == keys
            for name, value in model.state_dict().items():
                assert torch.equal(value, other.state_dict()[name])
            assert all(p.is_leaf for p in other.parameters())
        small().load_state_dict(model.state_dict())


def test_masks_themselves_can_be_pickled_and_copied() -> None:
    masks = some({"a": (3, 4)})
    assert pickle.loads(pickle.dumps(masks)) == copy.deepcopy(masks) == masks
