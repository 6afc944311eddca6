"""Gradients of all positions, removed ones too, taken only at the steps that ask for them."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from pruning.evidence import Scores, accumulated
from pruning.processes import average_


class DenseGradients:
    """∂L/∂w at every position, summed over the backward passes between `collect` and `take`.

    They are read before the masks are put on them, so before clipping. Over the processes of a DDP-wrapped model they
    are averaged, as DDP averages what the optimizer sees.
    """

    def __init__(self, model: nn.Module, parameters: Mapping[str, nn.Parameter]):
        self._model, self._parameters = model, parameters
        self._sums: Scores = {}
        self._removers: list[Callable[[], None]] = []

    def collect(self) -> None:
        """Read all backward passes from now on."""
        self.stop()
        for name, parameter in self._parameters.items():
            handle = parameter.register_hook(self._hook(name))  # type: ignore[no-untyped-call]  # torch's own
            self._removers.append(handle.remove)

    def stop(self) -> None:
        """Read no more, and forget what was read."""
        self._sums = {}
        while self._removers:
            self._removers.pop()()

    def take(self) -> Scores:
        """What was read, in at least float32; 0 where the loss does not reach. Reading ends."""
        found = {
            name: self._sums[name] if name in self._sums else torch.zeros_like(accumulated(parameter))
            for name, parameter in self._parameters.items()
        }
        self.stop()
        average_(self._model, found.values())
        return found

    def _hook(self, name: str) -> Callable[[Tensor], None]:
        def hook(gradient: Tensor) -> None:
            read = accumulated(gradient)
            self._sums[name] = self._sums[name] + read if name in self._sums else read.clone()

        return hook
