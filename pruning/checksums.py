"""Checksums of named tensors, by which a damaged file is noticed."""

from collections.abc import Mapping
from hashlib import sha256

import torch
from torch import Tensor


def checksum(header: str, tensors: Mapping[str, Tensor], *, shapes: bool) -> str:
    """SHA-256, in hexadecimal, over `header` and every tensor's name, type, bytes and, with `shapes`, shape.

    Args:
        tensors: on the CPU, contiguous; their order does not count.
        shapes: False where `header` has what follows from them.
    """
    digest = sha256(header.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        shape = f"{list(tensor.shape)} " if shapes else ""
        digest.update(f"\n{name} {tensor.dtype} {shape}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
