"""Digests of data and weights, as they were read: a file that has changed is another input, whatever its name."""

import hashlib
import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import Subset

from experiments.data import Data, Examples, Splits

log = logging.getLogger("experiments")


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
    dataset, chosen = getattr(part, "dataset", part), ""
    while isinstance(dataset, Subset):
        chosen += " " + hashlib.sha256(repr(list(dataset.indices)).encode()).hexdigest()[:16]
        dataset = dataset.dataset
    given = getattr(dataset, "fingerprint", None) or getattr(dataset, "_fingerprint", None)
    if isinstance(given, str):
        return given + chosen
    log.warning(
        "%s: is known by its length and 16 examples; give it a `fingerprint`, a text that changes with its content, so "
        "that no result of other data is taken for one of these",
        type(dataset).__name__,
    )
    some = [int(place) for place in torch.linspace(0, len(part) - 1, min(16, len(part))).round()]
    found = [content_of_tensors(batch) for batch in part.batches([slice(place, place + 1) for place in some])]
    return f"{len(part)} examples, {hashlib.sha256(repr(found).encode()).hexdigest()[:32]}"
