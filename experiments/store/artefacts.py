"""Artefacts addressed by the configuration that determines them: made once, whole or not at all, checked when read.

An artefact is a folder `<root>/<kind>/<key>/` with a manifest (see `experiments.store.manifest`). It is written into a
temporary folder and renamed when complete. A lock makes two processes that need the same artefact make it once; the
operating system drops the lock of a process that dies. Where locks are not shared, as on some network disks, two may
make it: the first to finish counts. What is found damaged is made again, and the damaged folder kept aside.
"""

import errno
import json
import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

from filelock import FileLock

from experiments.runtime import processes
from experiments.runtime.locks import acquire_with_log, file_lock
from experiments.store import manifest
from experiments.store.manifest import DamageError, artefact_key
from pruning.errors import ArtefactError

log = logging.getLogger("experiments")

UNFINISHED, DAMAGED, LOCKS = "unfinished", "damaged", "locks"
SCRATCH = ".scratch"
_OCCUPIED = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


@dataclass(frozen=True)
class Artefact:
    """A complete artefact on disk.

    `again` makes it again; None where what made it is not known. `fields` are those of the configuration that its key
    holds, by itself or by what it comes from.
    """

    kind: str
    key: str
    folder: Path
    again: Callable[[], None] | None = field(default=None, compare=False, repr=False)
    fields: frozenset[str] = field(default=frozenset(), compare=False, repr=False)

    def file(self, name: str) -> Path:
        """The path of one of its files, after checking size and SHA-256. A damaged artefact is made again.

        Raises:
            ArtefactError: it cannot be read or made again, or comes out with another content, as by other versions
                or threads: what was read of it before, or made from it, would not belong to it.
        """
        written = None
        try:
            written = self._written(name)
            manifest.check_file(self.folder, name, written)
        except DamageError:
            if self.again is None:
                raise
            self.again()
            if self._written(name) != written:
                said = "was damaged, and has another content now that it is made again"
                raise ArtefactError(f"{self.folder / name}: {said}: repeat the command") from None
        return self.folder / name

    def json(self, name: str) -> Any:
        """The content of a checked JSON file."""
        return json.loads(self.file(name).read_text())

    def has(self, name: str) -> bool:
        """Whether it has a file of this name."""
        return name in self.files

    def size(self, name: str) -> int:
        """Bytes of one of its files, as written."""
        return int(self._written(name)["bytes"])

    @property
    def identity(self) -> dict[str, Any]:
        """The plain data that determine it. Raises `ArtefactError` where the manifest is damaged or of another key."""
        identity: dict[str, Any] = manifest.read(self.folder)["identity"]
        if artefact_key(identity) != self.key:
            raise DamageError(f"{self.folder}: belongs to another configuration", self.folder)
        return identity

    @property
    def files(self) -> tuple[str, ...]:
        """The names of its files."""
        return tuple(manifest.read(self.folder)["files"])

    def _written(self, name: str) -> dict[str, Any]:
        """Size and checksum of one of its files, as written."""
        files: dict[str, dict[str, Any]] = manifest.read(self.folder)["files"]
        if name not in files:
            raise ArtefactError(f"{self.folder}: holds no {name}, only {', '.join(files)}")
        return files[name]


@dataclass(frozen=True)
class Store:
    """A folder of artefacts."""

    root: Path

    def obtain(self, kind: str, identity: Mapping[str, Any], make: Callable[[Path], None]) -> Artefact:
        """The artefact of `identity`; if it is not there, or damaged, `make(folder)` writes its files first.

        Args:
            identity: plain data (JSON) that determines the content; its hash is the key.

        Processes that train together (see `experiments.runtime.processes`) make it together; the first one writes.

        Raises:
            ArtefactError: it cannot be read, or not be written (read-only, full). Then nothing new is left behind.
        """
        key = artefact_key(identity)
        folder = self.root / kind / key
        check = partial(manifest.check, folder, kind, identity)
        if not processes.is_main_process():
            if processes.broadcast(None):
                with tempfile.TemporaryDirectory() as elsewhere:
                    make(Path(elsewhere))
        elif _damage(check) is None:
            processes.broadcast(False)
            self._remove_scratch(kind, key)  # of a maker that was killed when all was done but this
        else:
            self._obtain_alone(Artefact(kind, key, folder), identity, make, check)
        processes.broadcast(None)  # it is there: nobody reads it before
        check()
        thoroughly = partial(check, thoroughly=True)
        again = partial(self._obtain_alone, Artefact(kind, key, folder), identity, make, thoroughly)
        return Artefact(kind, key, folder, again if processes.world_size() == 1 else None)

    def scratch(self, kind: str, identity: Mapping[str, Any]) -> Path:
        """A folder for what a maker wants to find again after it was killed; it goes when the artefact is complete."""
        folder = self._scratch(kind, artefact_key(identity))
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def lock(self, kind: str, key: str) -> FileLock:
        """The lock that a process holds while it makes or removes an artefact; freed with its process."""
        locks = self.root / LOCKS
        locks.mkdir(parents=True, exist_ok=True)
        return file_lock(locks / f"{kind}-{key}.lock")

    def temporary(self, kind: str, key: str) -> Path:
        """A new folder, to be renamed or removed soon. Who may read the store may read it, unlike tempfile's."""
        folder = self.root / UNFINISHED / f"{_here(kind, key)}{uuid4().hex[:8]}"
        folder.parent.mkdir(exist_ok=True)
        folder.mkdir()
        return folder

    def _obtain_alone(
        self, artefact: Artefact, identity: Mapping[str, Any], make: Callable[[Path], None], check: Callable[[], None]
    ) -> None:
        """Make an artefact unless another process has made it meanwhile, which `check` says."""
        kind, key = artefact.kind, artefact.key
        with ExitStack() as stack:
            with self._writing(artefact):
                locked = stack.enter_context(acquire_with_log(self.lock(kind, key), f"making {kind} {key}"))
            damage = _damage(check)
            if processes.broadcast(damage is not None):
                if os.path.lexists(artefact.folder):
                    log.warning("%s: made again, the damaged one goes to %s", damage, self.root / DAMAGED)
                with self._writing(artefact):
                    _check_writable(artefact.folder.parent)
                    folder = self.temporary(kind, key)
                    if locked:  # no other process on this machine is at it
                        self._remove_leftovers(kind, key, folder)
                self._make(folder, artefact, identity, make)

    def _make(
        self, folder: Path, artefact: Artefact, identity: Mapping[str, Any], make: Callable[[Path], None]
    ) -> None:
        try:
            with self._writing(artefact):
                make(folder)
                manifest.write(folder, artefact.kind, identity)
                artefact.folder.parent.mkdir(exist_ok=True)
                self._place(folder, artefact, identity)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        self._remove_scratch(artefact.kind, artefact.key)

    def _remove_scratch(self, kind: str, key: str) -> None:
        folder = self._scratch(kind, key)
        if folder.exists():
            shutil.rmtree(folder, ignore_errors=True)

    def _remove_leftovers(self, kind: str, key: str, folder: Path) -> None:
        """Remove temporary folders, besides `folder`, of processes that were killed on this machine."""
        for left in (self.root / UNFINISHED).glob(f"{_here(kind, key)}*"):
            if left != folder:
                shutil.rmtree(left, ignore_errors=True)

    def _place(self, folder: Path, artefact: Artefact, identity: Mapping[str, Any]) -> None:
        """Rename `folder` to its place. What is there already counts if it is whole, and is kept aside if not."""
        place = artefact.folder
        while True:
            try:
                folder.rename(place)
            except OSError as error:
                if error.errno not in _OCCUPIED:
                    raise
            else:
                manifest.synchronise(place.parent)
                return
            if _damage(partial(manifest.check, place, artefact.kind, identity, thoroughly=True)) is None:
                log.info("%s %s: another process was faster, what it made counts", artefact.kind, artefact.key)
                return
            (self.root / DAMAGED).mkdir(exist_ok=True)
            with suppress(FileNotFoundError):  # another process, without a shared lock, was faster with this too
                place.rename(self.root / DAMAGED / f"{artefact.kind}-{artefact.key}-{uuid4().hex[:8]}")

    def _scratch(self, kind: str, key: str) -> Path:
        return self.root / UNFINISHED / f"{kind}-{key}{SCRATCH}"

    @contextmanager
    def _writing(self, artefact: Artefact) -> Iterator[None]:
        """Turn errors of this store's disk into `ArtefactError`, which names the artefact and the fix."""
        try:
            yield
        except OSError as error:
            path = error.filename
            here = isinstance(path, str) and Path(path).is_relative_to(self.root)
            if not here and (path is not None or error.errno not in _DISK):
                raise
            there = "is damaged" if os.path.lexists(artefact.folder) else "is not in this store"
            reason = f"{path}: {error.strerror}" if here else error.strerror
            raise ArtefactError(
                f"{self.root}: {artefact.kind} {artefact.key} {there} and cannot be made ({reason}): make room, give "
                "write access, move away what is in the way, or set store= to another folder"
            ) from error


@dataclass(frozen=True)
class Made(Store):
    """A store that makes nothing: it gives what is there already."""

    def obtain(self, kind: str, identity: Mapping[str, Any], make: Callable[[Path], None]) -> Artefact:
        """The artefact of `identity`. Raises `AbsentError` where it is not there, or is damaged."""
        key = artefact_key(identity)
        folder = self.root / kind / key
        if _damage(partial(manifest.check, folder, kind, identity)) is not None:
            raise AbsentError(f"{folder}: is not there")
        return Artefact(kind, key, folder)


class AbsentError(ArtefactError):
    """An artefact is not in the store."""


def _here(kind: str, key: str) -> str:
    """Prefix of this machine's temporary folders: those of another may be in use, where locks are not shared."""
    return f"{kind}-{key}-{socket.gethostname()}@"


def _check_writable(folder: Path) -> None:
    """Raise `OSError`, before hours of training rather than after, where nothing could be written into `folder`."""
    if os.path.lexists(folder):
        wrong = errno.ENOTDIR if not folder.is_dir() else errno.EACCES if not os.access(folder, os.W_OK) else 0
        if wrong:
            raise OSError(wrong, os.strerror(wrong), str(folder))


def _damage(check: Callable[[], None]) -> str | None:
    """The damage that `check` finds, in words; None if there is none."""
    try:
        check()
    except DamageError as damaged:
        return str(damaged.args[0])
    return None
