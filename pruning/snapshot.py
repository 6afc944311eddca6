"""Nested plain data with tensors in it, as one safetensors file. Nothing is unpickled or evaluated when it is read.

Optimizers, schedules and random generators describe themselves by such trees: mappings, lists and tuples of numbers,
strings, None and tensors. Types are kept, also those that JSON has no word for: integers as keys, tuples, infinity.
"""

import json
import math
from collections.abc import Mapping
from os import PathLike
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pruning.checksums import checksum
from pruning.errors import ArtefactError

_FORMAT = "pruning.snapshot/1"


def save(path: str | PathLike[str], tree: Any) -> None:
    """Write `tree`; tensors are copied to the CPU.

    Raises:
        ArtefactError: something in it is neither plain data nor a tensor.
        OSError: it cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    described = json.dumps(_described(tree, tensors), allow_nan=False)
    entry = json.dumps({"format": _FORMAT, "tree": described, "sha256": checksum(described, tensors, shapes=True)})
    try:
        save_file(tensors, path, {"snapshot": entry})
    except SafetensorError as error:
        raise OSError(f"{path}: cannot be written ({error})") from error


def load(path: str | PathLike[str]) -> Any:
    """What `save` wrote, tensors on the CPU.

    Raises:
        ArtefactError: no such file, cut, damaged, or of another format.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
        entry = json.loads(metadata.get("snapshot", "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtefactError(f"{path}: cannot be read as a snapshot ({error}): make it again") from error
    if not isinstance(entry, dict) or entry.get("format") != _FORMAT:
        raise ArtefactError(f"{path}: is no snapshot of format {_FORMAT}: give one from save()")
    described = str(entry.get("tree", ""))
    if entry.get("sha256") != checksum(described, tensors, shapes=True):
        raise ArtefactError(f"{path}: is damaged, its content is not what was saved: make the file again")
    return _made(json.loads(described), tensors)


def _described(tree: Any, tensors: dict[str, Tensor]) -> Any:
    """`tree` as JSON: what JSON has itself as it is, all else as {kind: content}. Tensors go to `tensors`."""
    if tree is None or type(tree) in (bool, int, str) or (type(tree) is float and math.isfinite(tree)):
        return tree
    if type(tree) is float:
        return {"float": str(tree)}
    if isinstance(tree, Tensor | np.ndarray):
        name = str(len(tensors))
        tensor = tree if isinstance(tree, Tensor) else torch.from_numpy(tree)
        tensors[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor" if isinstance(tree, Tensor) else "array": name}
    if isinstance(tree, Mapping):
        return {"mapping": [[_described(part, tensors) for part in pair] for pair in tree.items()]}
    if type(tree) in (list, tuple):
        return {type(tree).__name__: [_described(part, tensors) for part in tree]}
    raise ArtefactError(f"{type(tree).__name__} is neither plain data nor a tensor: leave it out of what is saved")


def _made(described: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(described, dict):
        return described
    ((kind, content),) = described.items()
    if kind == "float":
        return float(content)
    if kind == "tensor":
        return tensors[content]
    if kind == "array":
        return tensors[content].numpy()
    if kind == "mapping":
        return {_made(key, tensors): _made(value, tensors) for key, value in content}
    return {"list": list, "tuple": tuple}[kind](_made(part, tensors) for part in content)
