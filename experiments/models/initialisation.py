"""Initial weights by name, so that a study of initialisation needs one keyword and no other network."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from experiments.models.names import unknown_name
from pruning.errors import ModelError

INITIALISATIONS = ("xavier_normal", "kaiming_normal", "kaiming_uniform", "torch")


def initialise(model: nn.Module, init: str) -> nn.Module:
    """Draw new convolutional and linear weights of `model`, in place, from torch's global random state.

    Args:
        model: its biases become 0, its batch-norm weights 1.
        init: the distribution of the weights, all with mean 0;
            "xavier_normal": normal, variance 2 / (fan_in + fan_out) (Glorot & Bengio 2010);
            "kaiming_normal": normal, variance 2 / fan, the gain of ReLU (He et al. 2015). The fan is fan_out for
            convolutions, as in the ResNets of torch and torchvision, and fan_in for linear layers: by fan_out an
            output layer of ten classes would start with logits far too large;
            "kaiming_uniform": uniform with the same variances;
            "torch": weights, biases and batch norm stay as PyTorch drew them.

    Returns:
        `model` itself.

    Raises:
        ModelError: an unknown name.
    """
    if init not in INITIALISATIONS:
        raise ModelError(unknown_name("init", init, INITIALISATIONS))
    if init == "torch":
        return model
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            _draw(module.weight, init, "fan_out" if isinstance(module, nn.Conv2d) else "fan_in")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
    return model


def _draw(weight: Tensor, init: str, fan: Literal["fan_in", "fan_out"]) -> None:
    if init == "xavier_normal":
        nn.init.xavier_normal_(weight)
    elif init == "kaiming_normal":
        nn.init.kaiming_normal_(weight, mode=fan, nonlinearity="relu")
    else:
        nn.init.kaiming_uniform_(weight, mode=fan, nonlinearity="relu")
