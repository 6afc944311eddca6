"""Several labels of each digit."""

from __future__ import annotations

import torch

from experiments.data.embedded import digits
from experiments.data.examples import Examples, Splits

LABELS = {"even": (0, 2, 4, 6, 8), "prime": (2, 3, 5, 7), "above four": (5, 6, 7, 8, 9), "with a loop": (0, 6, 8, 9)}


def digit_labels(validation: float = 0.1, seed: int = 0) -> Splits:
    """The digits of `digits`, with four labels each: is it even, prime, above four, and has it a loop?

    "targets" are float32 [n, 4], of zeros and ones. Arguments as of `digits`.
    """
    parts = digits(validation, seed)
    found = []
    for part in (parts.train, parts.validation, parts.test):
        assert isinstance(part, Examples)
        labels = [torch.isin(part["targets"], torch.tensor(those)) for those in LABELS.values()]
        found.append(Examples(inputs=part["inputs"], targets=torch.stack(labels, 1).float()))
    return Splits(*found)
