"""Digests of data and weights, as they were read: a file that has changed is another input, whatever its name."""

import hashlib
import logging
import os
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import keystr, tree_leaves_with_path
from torch.utils.data import Subset

from experiments.data.examples import Data, Examples, Splits

log = logging.getLogger("experiments")


def content_of_data(splits: Splits) -> list[str]:
    """Digests of the parts: of all examples in memory; of a Dataset its `fingerprint`, or length and 16 examples."""
    parts = (splits.train, splits.validation, splits.test)
    unknown = [part for part in parts if not isinstance(part, Examples) and _fingerprint(part) is None]
    if unknown:
        log.warning(
            "%s: 16 examples of each part are compared, of %s; give it a `fingerprint`, a text that changes with its "
            "content, so that no result of other data is taken for one of these",
            *(type(_origin(unknown[0])[0]).__name__, ", ".join(str(len(part)) for part in unknown)),
        )
    return [_content(part) for part in parts]


def content_of_tensors(tensors: Mapping[str, Any]) -> str:
    """SHA-256 of names, types, shapes and values in their order, the first 32 digits of 64."""
    digest = hashlib.sha256()
    for path, leaf in tree_leaves_with_path(dict(tensors)):  # in their order, by which a model may be called
        name = keystr(path)
        if isinstance(leaf, Tensor):
            digest.update(f"{name} {leaf.dtype} {list(leaf.shape)};".encode())
            flat = leaf.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
        else:
            digest.update(f"{name} {leaf!r};".encode())
    return digest.hexdigest()[:32]


def content_of_files(value: Any) -> dict[str, str]:
    """Path → SHA-256 of the content, of every text in nested mappings and lists that is the path of a file."""
    if isinstance(value, Mapping | list | tuple):
        parts = value.values() if isinstance(value, Mapping) else value
        return {path: digest for part in parts for path, digest in content_of_files(part).items()}
    is_path = isinstance(value, str) and (os.sep in value or "." in value) and "\0" not in value and len(value) < 4096
    if not is_path or not os.path.isfile(value):
        return {}
    state = os.stat(value)
    return {value: _content_of_file(value, state.st_mtime_ns, state.st_size)}


@lru_cache(maxsize=64)
def _content_of_file(path: str, changed: int, size: int) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:32]


def _content(part: Data) -> str:
    if isinstance(part, Examples):
        return content_of_tensors(part)
    given = _fingerprint(part)
    if given is not None:
        return given
    some = [int(place) for place in torch.linspace(0, len(part) - 1, min(16, len(part))).round()]
    found = [content_of_tensors(batch) for batch in part.batches([slice(place, place + 1) for place in some])]
    return f"{len(part)} examples, {hashlib.sha256(repr(found).encode()).hexdigest()[:32]}"


def _fingerprint(part: Data) -> str | None:
    """What a Dataset says of its content, and which of its examples are chosen; None if it says nothing."""
    dataset, chosen = _origin(part)
    given = getattr(dataset, "fingerprint", None) or getattr(dataset, "_fingerprint", None)
    return given + chosen if isinstance(given, str) else None


def _origin(part: Data) -> tuple[Any, str]:
    """The Dataset behind subsets, and digests of the positions that these chose."""
    dataset, chosen = getattr(part, "dataset", part), ""
    while isinstance(dataset, Subset):
        chosen += " " + hashlib.sha256(repr(list(dataset.indices)).encode()).hexdigest()[:16]
        dataset = dataset.dataset
    return dataset, chosen
