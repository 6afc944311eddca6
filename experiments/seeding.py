"""One seed, split by purpose: initial weights, data order, scoring sample and noise never share random numbers."""

import hashlib

import torch


def derived_seed(seed: int, *purpose: str | int) -> int:
    """A seed in [0, 2^63) for `purpose`, as ("order", epoch); a stable hash, the same on every machine."""
    text = ":".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A CPU generator seeded for `purpose`."""
    return torch.Generator().manual_seed(derived_seed(seed, *purpose))
