"""Fully connected networks of any depth and width."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from math import prod

from torch import nn

from experiments.models.initialisation import initialise
from experiments.models.names import unknown_name
from experiments.models.shapes import example_shape, is_count, scaled
from pruning.errors import ModelError

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}


def mlp(
    shape: Sequence[int],
    outputs: int,
    *,
    hidden: Sequence[int] = (300, 100),
    bias: bool = True,
    batch_norm: bool = False,
    activation: str = "relu",
    init: str = "kaiming_normal",
    width: float = 1.0,
) -> nn.Module:
    """Flatten, then linear layers fc1, fc2, ... with an activation between them; the last one gives the logits.

    Args:
        shape: the shape of one example, of one dimension or more.
        outputs: numbers for each example: a logit a class, or those of a regression.
        hidden: the widths of the hidden layers; none gives multinomial logistic regression.
        bias: whether the linear layers have biases.
        batch_norm: batch norm after each hidden linear layer, which then has no bias whatever `bias` says: batch norm
            subtracts it again, and brings a shift of its own.
        activation: relu, leaky_relu, elu, gelu, silu, tanh or sigmoid.
        init: see `initialise`.
        width: factor of all hidden widths, above 0; each is rounded, and at least 1.

    Returns:
        A module from [batch, *shape] to [batch, outputs].

    Raises:
        ModelError: a shape, width, activation or initialisation that does not exist.
    """
    shape = example_shape("mlp", shape, outputs)
    if not all(is_count(size) for size in hidden):
        raise ModelError(f"mlp: hidden={list(hidden)} are no widths: give positive integers, such as [300, 100], or []")
    widths = [prod(shape), *scaled("mlp", width, *hidden)]
    if activation not in ACTIVATIONS:
        raise ModelError(unknown_name("mlp: activation", activation, ACTIVATIONS))
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    for number, (fan_in, fan_out) in enumerate(pairwise(widths), start=1):
        layers[f"fc{number}"] = nn.Linear(fan_in, fan_out, bias=bias and not batch_norm)
        if batch_norm:
            layers[f"bn{number}"] = nn.BatchNorm1d(fan_out)
        layers[f"{activation}{number}"] = ACTIVATIONS[activation]()
    layers[f"fc{len(widths)}"] = nn.Linear(widths[-1], outputs, bias=bias)
    return initialise(nn.Sequential(layers), init)
