"""Waiting for another process: locks that the operating system frees when their process dies."""

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

log = logging.getLogger("experiments")

_WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)


def file_lock(path: Path) -> FileLock:
    """The lock at `path`, never one of the library's soft locks: those outlive a process that is killed."""
    return FileLock(path, fallback_to_soft=False)


@contextmanager
def acquire_with_log(lock: FileLock, what: str) -> Iterator[bool]:
    """Hold `lock`, and log when another process, which is `what`, keeps it for more than a second.

    Yields whether it is held: on a file system without locks (some network disks) it is not, which is logged, and
    nothing is waited for. Raises `OSError` where the lock's file cannot be written.
    """
    held = _acquired(lock, what)
    try:
        yield held
    finally:
        if held:
            lock.release()


@contextmanager
def at_once(lock: FileLock) -> Iterator[bool]:
    """Hold `lock` without waiting; yield False where another process has it, True else and where there are no locks."""
    held = None
    try:
        held = lock.acquire(blocking=False)
    except Timeout:
        yield False
        return
    except OSError as error:
        if error.errno not in _WITHOUT_LOCKS:
            raise
    try:
        yield True
    finally:
        if held is not None:
            lock.release()


def _acquired(lock: FileLock, what: str) -> bool:
    try:
        try:
            lock.acquire(timeout=1.0)
        except Timeout:
            log.info("waiting for another process, which is %s", what)
            lock.acquire()
    except OSError as error:
        if error.errno not in _WITHOUT_LOCKS:
            raise
        log.warning("%s: no locks here (%s), so another process may also be %s", lock.lock_file, error.strerror, what)
        return False
    return True
