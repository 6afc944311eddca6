"""Answers to every example of the test part as one text: a byte an example or less, so that rows can hold them."""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pruning.errors import RecordsError

Answers = npt.NDArray[np.int64]
_KINDS: dict[int, str] = {1: "<u1", 2: "<u2", 4: "<u4"}


def encode(answers: Sequence[int] | Answers) -> str:
    """Whole numbers from 0 to 2³² - 1 as text: bytes of each, compressed, in base 64.

    Raises `ValueError` for others.
    """
    given = np.asarray(answers, dtype=np.int64)
    if given.ndim != 1 or (len(given) and (given.min() < 0 or given.max() >= 2**32)):
        raise ValueError("answers: give whole numbers from 0 to 2^32 - 1")
    largest = int(given.max()) if len(given) else 0
    size = next(size for size in _KINDS if largest < 256**size)
    packed = zlib.compress(given.astype(_KINDS[size]).tobytes(), 9)
    return f"{size}:{base64.b64encode(packed).decode('ascii')}"


def decode(text: str) -> Answers:
    """What `encode` was given. Raises `RecordsError` for another text."""
    size, _, packed = text.partition(":")
    try:
        raw = zlib.decompress(base64.b64decode(packed, validate=True))
        found: Answers = np.frombuffer(raw, dtype=_KINDS[int(size)]).astype(np.int64)
    except (ValueError, KeyError, binascii.Error, zlib.error) as error:
        raise RecordsError(f"answers: {text[:40]!a} cannot be read ({error}): repeat the run") from error
    return found
