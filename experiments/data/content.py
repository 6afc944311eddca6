"""Digests of data and weights, as they were read: a file that has changed is another input, whatever its name."""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from experiments.data import Data, Examples, Splits


def content_of_data(splits: Splits) -> list[str]:
    """Digests of the parts: of all examples in memory; of a Dataset its `fingerprint`, or length and 16 examples."""
    return [_content(part) for part in (splits.train, splits.validation, splits.test)]


def content_of_tensors(tensors: Mapping[str, Any]) -> str:
    """SHA-256 of names, types, shapes and values, the first 32 digits of 64."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        for leaf in tree_leaves(value):
            if isinstance(leaf, Tensor):
                digest.update(f"{name} {leaf.dtype} {list(leaf.shape)};".encode())
                flat = leaf.detach().cpu().contiguous().reshape(-1)
                digest.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
            else:
                digest.update(f"{name} {leaf!r};".encode())
    return digest.hexdigest()[:32]


def _content(part: Data) -> str:
    if isinstance(part, Examples):
        return content_of_tensors(part)
    dataset = getattr(part, "dataset", part)
    given = getattr(dataset, "fingerprint", None) or getattr(dataset, "_fingerprint", None)
    if isinstance(given, str):
        return given
    some = [int(place) for place in torch.linspace(0, len(part) - 1, min(16, len(part))).round()]
    found = [content_of_tensors(batch) for batch in part.batches([slice(place, place + 1) for place in some])]
    return f"{len(part)} examples, {hashlib.sha256(repr(found).encode()).hexdigest()[:32]}"
