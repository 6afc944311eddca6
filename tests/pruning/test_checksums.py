"""Checksums against the text that they are of, written out; and that any change is noticed."""

from hashlib import sha256

import pytest
import torch

from pruning.checksums import checksum

TENSORS = {"b": torch.tensor([[1, 2]], dtype=torch.int16), "a": torch.tensor([True])}


def test_names_types_shapes_and_bytes_are_digested_by_name():
    a, b = b"\x01", b"\x01\x00\x02\x00"
    plain = b"header\na torch.bool " + a + b"\nb torch.int16 " + b
    with_shapes = b"header\na torch.bool [1] " + a + b"\nb torch.int16 [1, 2] " + b
    assert checksum("header", TENSORS, shapes=False) == sha256(plain).hexdigest()
    assert checksum("header", TENSORS, shapes=True) == sha256(with_shapes).hexdigest()


@pytest.mark.parametrize(
    "changed",
    [
        {"b": torch.tensor([[1, 3]], dtype=torch.int16)},
        {"b": torch.tensor([[1], [2]], dtype=torch.int16)},
        {"b": torch.tensor([[1, 2]], dtype=torch.int16).view(torch.bfloat16)},
        {"c": torch.tensor([0])},
    ],
)
def test_any_change_is_noticed(changed):
    assert checksum("", TENSORS | changed, shapes=True) != checksum("", TENSORS, shapes=True)


def test_single_numbers_and_empty_tensors_are_digested():
    number, nothing = torch.tensor(1.5), torch.empty(0, 3)
    assert checksum("", {"x": number}, shapes=True) != checksum("", {"x": number[None]}, shapes=True)
    assert checksum("", {"x": nothing}, shapes=True) != checksum("", {"x": nothing.T}, shapes=True)
