"""Accuracy and loss of a network: exact counts over all examples, whatever the batches."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from experiments.data import Examples

_BATCH = 1000


@dataclass(frozen=True)
class Measured:
    """Accuracy in [0, 1] = correct / seen, and the mean cross-entropy over all examples."""

    accuracy: float
    loss: float


@torch.no_grad()
def evaluate(model: nn.Module, examples: Examples) -> Measured:
    """Accuracy and loss in eval mode; the model's mode is put back."""
    device = next(model.parameters()).device
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    correct, loss = 0, 0.0
    for start in range(0, len(examples), _BATCH):
        inputs = examples.inputs[start : start + _BATCH].to(device)
        targets = examples.targets[start : start + _BATCH].to(device)
        outputs = model(inputs)
        correct += int((outputs.argmax(1) == targets).sum())
        loss += float(F.cross_entropy(outputs.float(), targets, reduction="sum"))
    for module, training in modes:
        module.training = training
    return Measured(correct / len(examples), loss / len(examples))
