"""Manifests: format, kind, identity, and size and SHA-256 of every file of an artefact; checks against them."""

import hashlib
import json
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from pruning.errors import ArtefactError

FORMAT = "experiments.artefact/3"
_MANIFEST = "manifest.json"
_MISSING = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


class DamageError(ArtefactError):
    """`DamageError(what, folder)`: what lies in `folder` is not what was written: cut, changed, missing or foreign."""

    def __str__(self) -> str:
        what, folder = self.args
        again = f"remove it with `rm -r {shlex.quote(str(folder))}` and repeat the command to make it again"
        return f"{what}; {again}"


def identity_key(identity: Mapping[str, Any]) -> str:
    """16 hexadecimal digits of the SHA-256 of `identity` as canonical JSON."""
    return hashlib.sha256(_canonical(identity).encode()).hexdigest()[:16]


def artefact_key(identity: Mapping[str, Any]) -> str:
    """The key of an artefact. It depends on `FORMAT`, so that artefacts of other formats are left alone."""
    return identity_key({"format": FORMAT, "identity": identity})


def write(folder: Path, kind: str, identity: Mapping[str, Any]) -> None:
    """Describe all files of `folder` in its manifest, and wait until all are on the disk.

    All files get the permissions of the manifest: those that safetensors writes are readable by their owner alone.
    """
    files = {path.name: _described(path) for path in sorted(folder.iterdir())}
    manifest = {"format": FORMAT, "kind": kind, "identity": identity, "files": files}
    manifest["sha256"] = _content(manifest)
    path = folder / _MANIFEST
    path.write_text(json.dumps(manifest, indent=1, sort_keys=True))
    for name in files:
        (folder / name).chmod(path.stat().st_mode)
    for written in (*folder.iterdir(), folder):
        synchronise(written)


def read(folder: Path) -> dict[str, Any]:
    """The manifest of `folder`. Raises `DamageError`, and `ArtefactError` where it cannot be read."""
    path = folder / _MANIFEST
    try:
        manifest: Any = json.loads(path.read_text(), parse_constant=_refuse)
        whole = isinstance(manifest, dict) and manifest.pop("sha256", None) == _content(manifest)
    except OSError as error:
        raise _unread(path, folder, error) from error
    except (ValueError, RecursionError) as error:
        raise DamageError(f"{path}: cut or damaged", folder) from error
    if isinstance(manifest, dict) and manifest.get("format") != FORMAT:
        raise DamageError(f"{folder}: not an artefact of format {FORMAT}", folder)
    if not whole:
        raise DamageError(f"{path}: cut or damaged", folder)
    known: dict[str, Any] = manifest
    return known


def check_file(folder: Path, name: str, written: Mapping[str, Any]) -> None:
    """Raise `DamageError` for a file that is not as `written`, `ArtefactError` where it cannot be read."""
    path = folder / name
    try:
        found = _described(path)
    except OSError as error:
        raise _unread(path, folder, error) from error
    if found != written:
        raise DamageError(
            f"{path}: damaged: {found['bytes']} bytes, checksum {found['sha256'][:12]}…, written were "
            f"{written['bytes']} bytes, {written['sha256'][:12]}…",
            folder,
        )


def check(folder: Path, kind: str, identity: Mapping[str, Any], thoroughly: bool = False) -> None:
    """Raise `DamageError` where `folder` is not the artefact of `identity`, `ArtefactError` where it cannot be read.

    Sizes are compared always, which finds cut files; `thoroughly` compares SHA-256 too, which finds changed ones.
    """
    manifest = read(folder)
    if manifest["kind"] != kind or _canonical(manifest["identity"]) != _canonical(identity):
        raise DamageError(f"{folder}: belongs to another configuration", folder)
    for name, written in manifest["files"].items():
        if thoroughly or _size(folder, name) != written["bytes"]:
            check_file(folder, name, written)


def synchronise(path: Path) -> None:
    """Wait until the disk has what was written to the file or folder `path`."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _size(folder: Path, name: str) -> int:
    try:
        return (folder / name).stat().st_size
    except OSError as error:
        raise _unread(folder / name, folder, error) from error


def _unread(path: Path, folder: Path, error: OSError) -> ArtefactError:
    """The error for a file that cannot be read: damage where it is missing; otherwise it may still be whole."""
    if isinstance(error, _MISSING):
        return DamageError(f"{path}: {error.strerror}", folder)
    return ArtefactError(
        f"{path}: cannot be read ({error.strerror}): give access to it, or set store= to another folder"
    )


def _described(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": _sha256(file)}


def _sha256(file: BinaryIO) -> str:
    digest = hashlib.sha256()  # hashlib.file_digest needs Python 3.11
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _content(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of the manifest itself."""
    return hashlib.sha256(_canonical(manifest).encode()).hexdigest()


def _canonical(identity: Mapping[str, Any]) -> str:
    return json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
