"""The usual image sets with their own test part, through torchvision: read from a folder, downloaded once if absent."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.data.examples import Splits
from experiments.data.splitting import check_validation, splits
from experiments.runtime.extras import missing
from experiments.runtime.locks import acquire_with_log, file_lock
from pruning.errors import DataError

# Long enough for a slow mirror, short enough for a node of a cluster whose firewall drops packets silently
CONNECTION_TIMEOUT = 20.0  # seconds


def mnist(folder: str = "data", validation: float = 0.1, seed: int = 0) -> Splits:
    """MNIST: float32 [n, 1, 28, 28], 10 classes, 60,000 to train and validate, 10,000 to test (LeCun et al. 1998).

    Args:
        folder: where torchvision's files are, or go; relative to the working directory.
        validation: share of the 60,000 that is held out, stratified, for validation, in (0, 1).
        seed: of the validation part.

    Raises:
        DataError: neither there nor to be downloaded, torchvision not installed, or a share that cannot be met.
    """
    return _load("mnist", "MNIST", folder, validation, seed)


def fashion_mnist(folder: str = "data", validation: float = 0.1, seed: int = 0) -> Splits:
    """Fashion-MNIST: shapes, counts, arguments and errors of `mnist` (Xiao et al. 2017)."""
    return _load("fashion_mnist", "FashionMNIST", folder, validation, seed)


def cifar10(folder: str = "data", validation: float = 0.1, seed: int = 0) -> Splits:
    """CIFAR-10: float32 [n, 3, 32, 32], 10 classes, 50,000 to train and validate, 10,000 to test (Krizhevsky 2009).

    Each colour channel is standardised on its own. Arguments and errors as `mnist`.
    """
    return _load("cifar10", "CIFAR10", folder, validation, seed)


def cifar100(folder: str = "data", validation: float = 0.1, seed: int = 0) -> Splits:
    """CIFAR-100: as `cifar10` with 100 classes, the fine labels (Krizhevsky 2009)."""
    return _load("cifar100", "CIFAR100", folder, validation, seed)


def _load(name: str, dataset: str, folder: str, validation: float, seed: int) -> Splits:
    check_validation(name, validation)
    try:
        from torchvision import datasets  # noqa: PLC0415  # an optional extra
    except ImportError as error:
        raise DataError(f"{name}: {missing('torchvision')}, or use data=mnist5k") from error
    try:
        with _alone(Path(folder)), _connection_timeout():
            training, test = (getattr(datasets, dataset)(folder, train=train, download=True) for train in (True, False))
    except Exception as error:  # whatever sockets, archives and parsers of a foreign file raise, the fix is the same
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise DataError(
            f"{name}: not found whole in {folder} and could not be downloaded ({reason}): "
            "connect once, or put the files there, or use data=mnist5k"
        ) from error
    return splits(name, _raw(training), _raw(test), validation, seed)


def _raw(dataset: Any) -> tuple[Tensor, Tensor]:
    images = torch.as_tensor(dataset.data)
    # torchvision keeps grey images as [n, height, width] and coloured ones as [n, height, width, channels]
    images = images.unsqueeze(1) if images.dim() == 3 else images.permute(0, 3, 1, 2)
    return images, torch.as_tensor(dataset.targets, dtype=torch.int64)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let one process at a time download into `folder`: the others of a sweep wait, then find the files."""
    folder.mkdir(parents=True, exist_ok=True)
    # A shared folder that may only be read has its files already, and cannot hold a lock
    lock = folder / ".download.lock"
    with (
        acquire_with_log(file_lock(lock), f"downloading into {folder}") if os.access(folder, os.W_OK) else nullcontext()
    ):
        yield


@contextmanager
def _connection_timeout() -> Iterator[None]:
    # torchvision gives no time limit of its own, so it can only be set from the outside
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(CONNECTION_TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
