"""Artefacts addressed by the configuration that determines them: made once, whole or not at all, checked when read.

An artefact is a folder `<root>/<kind>/<key>/` with a manifest that names format, kind, identity and, for every file,
its size and SHA-256, and its own. It is written into a temporary folder and renamed when complete. A lock makes two
processes that need the same artefact make it once; the operating system drops the lock of a process that dies.
"""

import hashlib
import json
import logging
import os
import shlex
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from filelock import FileLock

from experiments import processes
from experiments.locks import patiently
from pruning.errors import ArtefactError

log = logging.getLogger("experiments")

FORMAT = "experiments.artefact/3"
UNFINISHED, SCRATCH = "unfinished", ".scratch"
_MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Artefact:
    """A complete artefact on disk."""

    kind: str
    key: str
    folder: Path

    def file(self, name: str) -> Path:
        """The path of one of its files, after checking size and SHA-256. Raises `ArtefactError`."""
        path = self.folder / name
        expected = _manifest(self.folder)["files"].get(name)
        if expected is None:
            raise ArtefactError(f"{self.folder}: holds no {name}; {_mend(self.folder)}")
        try:
            found = _described(path)
        except OSError as error:
            raise ArtefactError(f"{path}: {error.strerror or error}; {_mend(self.folder)}") from error
        if found != expected:
            raise ArtefactError(
                f"{path}: damaged: {found['bytes']} bytes, checksum {found['sha256'][:12]}…, written were "
                f"{expected['bytes']} bytes, {expected['sha256'][:12]}…; {_mend(self.folder)}"
            )
        return path

    def json(self, name: str) -> Any:
        """The content of a checked JSON file."""
        return json.loads(self.file(name).read_text())

    def has(self, name: str) -> bool:
        """Whether it has a file of this name."""
        return name in _manifest(self.folder)["files"]

    def size(self, name: str) -> int:
        """Bytes of one of its files, as written."""
        return int(_manifest(self.folder)["files"][name]["bytes"])

    @property
    def identity(self) -> dict[str, Any]:
        """What determines it. Raises `ArtefactError` if the manifest is damaged, or lies under another key."""
        identity: dict[str, Any] = _manifest(self.folder)["identity"]
        if _key(identity) != self.key:
            raise ArtefactError(f"{self.folder}: belongs to another configuration; {_mend(self.folder)}")
        return identity

    @property
    def files(self) -> tuple[str, ...]:
        """The names of its files."""
        return tuple(_manifest(self.folder)["files"])


@dataclass(frozen=True)
class Store:
    """A folder of artefacts."""

    root: Path

    def obtain(self, kind: str, identity: Mapping[str, Any], make: Callable[[Path], None]) -> Artefact:
        """The artefact of `identity`; if it is not there, `make(folder)` writes its files first.

        Args:
            identity: plain data (JSON) that determines the content; its hash is the key.

        Processes that train together (see `experiments.processes`) make it together; the first one writes.

        Raises:
            ArtefactError: what lies there is damaged, foreign or of another format.
            OSError: it cannot be written (read-only, full). Then nothing is left behind.
        """
        key = _key(identity)
        artefact = Artefact(kind, key, self.root / kind / key)
        if not processes.first():
            if processes.broadcast(None):
                with tempfile.TemporaryDirectory() as folder:
                    make(Path(folder))
        elif artefact.folder.exists():
            processes.broadcast(False)
        else:
            with patiently(self.lock(kind, key), f"making {kind} {key}"):
                if processes.broadcast(not artefact.folder.is_dir()):  # another run may have made it meanwhile
                    self._make(artefact, identity, make)
        processes.broadcast(None)  # it is there: nobody reads it before
        _check(artefact, identity)
        return artefact

    def scratch(self, kind: str, identity: Mapping[str, Any]) -> Path:
        """A folder for what a maker wants to find again after it was killed; it goes when the artefact is complete."""
        folder = self.root / UNFINISHED / f"{kind}-{_key(identity)}{SCRATCH}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def lock(self, kind: str, key: str) -> FileLock:
        """Whoever makes or removes an artefact holds its lock; the operating system frees that of a dead process."""
        locks = self.root / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        return FileLock(locks / f"{kind}-{key}.lock")

    def _make(self, artefact: Artefact, identity: Mapping[str, Any], make: Callable[[Path], None]) -> None:
        unfinished = self.root / UNFINISHED
        unfinished.mkdir(exist_ok=True)
        prefix = f"{artefact.kind}-{artefact.key}-"
        for left in unfinished.glob(f"{prefix}*"):  # of a process that was killed: we hold its lock now
            shutil.rmtree(left, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=unfinished))
        try:
            make(folder)
            files = {path.name: _described(path) for path in sorted(folder.iterdir())}
            manifest = {"format": FORMAT, "kind": artefact.kind, "identity": identity, "files": files}
            manifest["sha256"] = _content(manifest)
            (folder / _MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True))
            for path in folder.iterdir():
                _sync(path)
            _sync(folder)
            artefact.folder.parent.mkdir(exist_ok=True)
            folder.rename(artefact.folder)
            _sync(artefact.folder.parent)
            shutil.rmtree(unfinished / f"{artefact.kind}-{artefact.key}{SCRATCH}", ignore_errors=True)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _key(identity: Mapping[str, Any]) -> str:
    """Artefacts of other formats have other keys, and so are left alone."""
    return identity_key({"format": FORMAT, "identity": identity})


def identity_key(identity: Mapping[str, Any]) -> str:
    """16 hexadecimal digits of the SHA-256 of `identity` as canonical JSON."""
    return hashlib.sha256(_canonical(identity).encode()).hexdigest()[:16]


def _canonical(identity: Mapping[str, Any]) -> str:
    return json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(), parse_constant=_refuse)
        whole = isinstance(manifest, dict) and manifest.pop("sha256", None) == _content(manifest)
    except OSError as error:
        raise ArtefactError(f"{folder}: no readable manifest ({error.strerror}); {_mend(folder)}") from error
    except (ValueError, RecursionError) as error:
        raise ArtefactError(f"{folder / _MANIFEST}: cut or damaged; {_mend(folder)}") from error
    if isinstance(manifest, dict) and manifest.get("format") != FORMAT:
        raise ArtefactError(f"{folder}: not an artefact of format {FORMAT}; {_mend(folder)}")
    if not whole:
        raise ArtefactError(f"{folder / _MANIFEST}: cut or damaged; {_mend(folder)}")
    return manifest


def _content(manifest: Mapping[str, Any]) -> str:
    """A manifest is guarded like the files of which it tells the checksums."""
    return hashlib.sha256(_canonical(manifest).encode()).hexdigest()


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _check(artefact: Artefact, identity: Mapping[str, Any]) -> None:
    manifest = _manifest(artefact.folder)
    if manifest.get("kind") != artefact.kind or _canonical(manifest.get("identity", {})) != _canonical(identity):
        raise ArtefactError(f"{artefact.folder}: belongs to another configuration; {_mend(artefact.folder)}")


def _described(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": _sha256(file)}


def _sha256(file: BinaryIO) -> str:
    digest = hashlib.sha256()  # hashlib.file_digest needs Python 3.11
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _mend(folder: Path) -> str:
    return f"remove it with `rm -r {shlex.quote(str(folder))}` and repeat the command to make it again"
