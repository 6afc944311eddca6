"""Tiny networks, one a way in which channels are coupled; each with inputs, and the number of units of each family."""

from typing import Any

import torch
from torch import nn

from tests.pruning.structure.zoo import attention, convolutions, felt, norms, operators, rows
from tests.pruning.structure.zoo.case import Case

CASES: dict[str, Case] = {
    **convolutions.CASES,
    **rows.CASES,
    **attention.CASES,
    **norms.CASES,
    **operators.CASES,
    **felt.CASES,
}


def build(name: str, seed: int = 0) -> tuple[nn.Module, Any]:
    """A network in eval mode, with statistics and parameters that a training might have left, and inputs."""
    make, inputs, _ = CASES[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = make().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)
            for buffer_name, buffer in model.named_buffers():
                if buffer_name.endswith("running_mean"):
                    buffer.normal_(0, 0.3)
                if buffer_name.endswith("running_var"):
                    buffer.uniform_(0.5, 1.5)
        return model, inputs()
