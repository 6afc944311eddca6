"""One seed, split by purpose: initial weights, data order, scoring sample and noise never share random numbers."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derived_seed(seed: int, *purpose: str | int) -> int:
    """A seed in [0, 2^63) for `purpose`, as ("order", epoch); a stable hash, the same on every machine."""
    text = ":".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


@contextmanager
def seeded(seed: int, *purpose: str | int) -> Iterator[None]:
    """Seed Python's, NumPy's and torch's global random generators for `purpose`; put their states back at the end."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        reseed(seed, *purpose)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def reseed(seed: int, *purpose: str | int) -> None:
    """Seed Python's, NumPy's and torch's global random generators for `purpose`; use it within `seeded`."""
    own = derived_seed(seed, *purpose)
    random.seed(own)
    np.random.seed(own % 2**32)
    torch.manual_seed(own)


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A CPU generator seeded for `purpose`."""
    return torch.Generator().manual_seed(derived_seed(seed, *purpose))
