"""Execution of masks in training: sparse where asked for and possible."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from torch import nn

from experiments.runtime.processes import world_size
from pruning.dynamic import Regime
from pruning.errors import StructureError
from pruning.execution import Execution, ExecutionPolicy, masked
from pruning.inputs import Inputs
from pruning.parameters import unwrapped
from pruning.structure import Structure, trace

if TYPE_CHECKING:
    from accelerate import Accelerator

log = logging.getLogger("experiments")


def execution_of(regime: Regime, policy: ExecutionPolicy, inputs: Inputs, accelerated: Accelerator) -> Execution:
    """The execution of `regime` by `policy`, masked where sparse kernels are lacking; `inputs` of one forward pass."""
    lacking = {
        "half precision": accelerated.mixed_precision != "no",
        "several processes": world_size() > 1,
        accelerated.device.type: accelerated.device.type != "cpu",
    }
    if policy is not masked and any(lacking.values()):
        reasons = " and ".join(name for name, true in lacking.items() if true)
        log.info("execution: masked, as there is no sparse one for %s", reasons)
        policy = masked
    return Execution(regime, policy, inputs, None if policy is masked else _structure(regime.model, inputs))


def _structure(model: nn.Module, inputs: Inputs) -> Structure | None:
    """Trace the model to find dead units; None if it cannot be traced."""
    try:
        return trace(unwrapped(model), inputs)
    except StructureError as error:
        log.debug("units from which no path leads to an output are worked out: %s", error)
        return None
