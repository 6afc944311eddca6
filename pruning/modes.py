"""Train and eval modes of a model's modules, as before afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def kept_modes(model: nn.Module) -> Iterator[None]:
    """Put the mode of every module of `model` back afterwards, whatever happens within."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Run all of `model` in eval mode within; each of its modules is in its own mode again afterwards."""
    with kept_modes(model):
        model.eval()
        yield
