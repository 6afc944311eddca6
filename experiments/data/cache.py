"""Cache of what takes long to make: a copy in the user's cache folder, checked when it is read."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

FORMAT = 1
"""Format of the copies; those of other formats have other names."""


def parse_once(source: str | os.PathLike[str], parse: Callable[[Path], Tensor]) -> Tensor:
    """The tensor that `parse` makes of the file `source`, from the copy that an earlier process left, if there is one.

    Copies lie in XDG_CACHE_HOME, or ~/.cache, under a name made of the parser and a hash of `source`, and are written
    whole or not at all. A copy that is damaged is made again; where none can be written, every
    process parses. Raises what `parse` raises, and `OSError` for a `source` that cannot be read.
    """
    path = Path(source)
    if _folder() is None:
        return parse(path)
    return make_once(f"{parse.__qualname__}-{sha256(path.read_bytes()).hexdigest()[:32]}", lambda: parse(path))


def make_once(name: str, make: Callable[[], Tensor]) -> Tensor:
    """The tensor that `make` makes, from the copy that an earlier process left, if there is one; as `parse_once`.

    `name` is that of the copy, and stands for all that the tensor depends on.
    """
    folder = _folder()
    if folder is None:
        return make()
    copy = folder / f"{name}-{FORMAT}.safetensors"
    found = _read(copy)
    if found is None:
        found = make()
        with suppress(OSError):
            _write(copy, found)
    return found


def _folder() -> Path | None:
    """The cache folder; None where there is no home folder."""
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    with suppress(RuntimeError):
        return (named if named.is_absolute() else Path.home() / ".cache") / "sparse-subnetworks"
    return None


def _read(copy: Path) -> Tensor | None:
    """The copy; None where there is none, or it is damaged."""
    try:
        with safe_open(copy, framework="pt") as file:
            checksum, found = (file.metadata() or {}).get("sha256"), file.get_tensor("parsed")
    except (OSError, SafetensorError):
        return None
    return found if checksum == _checksum(found) else None


def _write(copy: Path, found: Tensor) -> None:
    copy.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=copy.parent, prefix=f".{copy.name}.")
    try:
        with open(descriptor, "wb") as file:
            file.write(save({"parsed": found}, {"sha256": _checksum(found)}))
        os.replace(temporary, copy)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _checksum(found: Tensor) -> str:
    digest = sha256(f"{found.dtype} {list(found.shape)} ".encode())
    digest.update(found.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
