"""Tables that come with scikit-learn: regressions."""

from __future__ import annotations

import torch

from experiments.data.examples import Examples, Splits
from experiments.data.parts import split


def diabetes(validation: float = 0.1, seed: int = 0) -> Splits:
    """Progression of diabetes after a year in 442 patients, from ten measurements (Efron et al. 2004, table 1).

    Columns: "inputs", float32 [n, 10], and "targets", float32 [n], both standardised by the training part; by default
    318 examples to train, 36 to validate, 88 to test.

    Args:
        validation: share of the examples outside the test part, in (0, 1).
        seed: of the validation part alone; the test part never changes.

    Raises:
        DataError: a share that cannot be met.
    """
    from sklearn.datasets import load_diabetes  # noqa: PLC0415  # slow to import

    inputs, targets = load_diabetes(return_X_y=True, scaled=False)
    parts = split({"inputs": torch.from_numpy(inputs), "targets": torch.from_numpy(targets)}, validation, 0.2, seed)
    found = []
    assert isinstance(parts.train, Examples)
    moments = {name: (column.mean(0), column.std(0)) for name, column in parts.train.items()}
    for part in (parts.train, parts.validation, parts.test):
        assert isinstance(part, Examples)
        columns = {name: ((part[name] - mean) / deviation).float() for name, (mean, deviation) in moments.items()}
        found.append(Examples(**columns))
    return Splits(*found)
