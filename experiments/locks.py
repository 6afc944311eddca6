"""Waiting for another process: locks that the operating system frees when their process dies."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from filelock import FileLock, Timeout

log = logging.getLogger("experiments")


@contextmanager
def patiently(lock: FileLock, what: str) -> Iterator[None]:
    """Hold `lock`; a line in the log says so if another process, which is `what`, has it for more than a moment."""
    try:
        lock.acquire(timeout=1.0)
    except Timeout:
        log.info("waiting for another process, which is %s", what)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
