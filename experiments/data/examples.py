"""What every data set is here: inputs and targets as two tensors, in three parts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pruning.errors import DataError


@dataclass(frozen=True, eq=False)  # eq=False: comparing tensors gives tensors, which have no truth value
class Examples:
    """Labelled examples that are held whole in memory.

    Attributes:
        inputs: float32 [n, ...], one example a row.
        targets: int64 [n], class indices from 0.

    Raises:
        DataError: no example, not as many targets as inputs, or targets that are not int64 of one dimension.
    """

    inputs: Tensor
    targets: Tensor

    def __post_init__(self) -> None:
        if self.targets.dim() != 1 or self.targets.dtype != torch.int64:
            raise DataError(
                f"targets: {self.targets.dtype} of shape {list(self.targets.shape)}, not class indices: "
                "give one int64 an example, shape [n]"
            )
        if self.inputs.dim() == 0 or len(self.inputs) != len(self.targets):
            raise DataError(
                f"examples: inputs of shape {list(self.inputs.shape)} for {len(self.targets)} targets: "
                "give one row of inputs for each target"
            )
        if len(self.targets) == 0:
            raise DataError("examples: there are none: give at least one, or another share of the data")

    def __len__(self) -> int:
        return len(self.targets)

    def to(self, device: torch.device | str) -> Examples:
        """The same examples on `device`."""
        return Examples(self.inputs.to(device), self.targets.to(device))


@dataclass(frozen=True, eq=False)
class Splits:
    """The three disjoint parts: weights learn from `train`, choices from `validation`, claims from `test`."""

    train: Examples
    validation: Examples
    test: Examples
