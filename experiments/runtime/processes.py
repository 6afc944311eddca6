"""Data-parallel processes, as torchrun starts them: rank, world size, broadcast and sum.

Outside of torchrun there is one process, which is the main process, and nothing here has an effect.
"""

import logging
import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

log = logging.getLogger("experiments")

_PATIENCE = timedelta(days=7)  # the main process may wait that long for another run, which makes what it needs


def join(device: str = "auto") -> None:
    """Join the process group, if torchrun started several processes."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        from accelerate import PartialState  # noqa: PLC0415  # slow to import

        PartialState(cpu=on_cpu(device), timeout=_PATIENCE)


def on_cpu(device: str) -> bool:
    """Whether a run with `device` "auto" or "cpu" is on the CPU.

    Pass the answer to accelerate: on a machine without accelerators it would take several processes for one.
    """
    return device == "cpu" or not torch.accelerator.is_available()


def world_size() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def is_main_process() -> bool:
    """Whether this is the process that writes files and logs."""
    return rank() == 0


def broadcast(value: Any) -> Any:
    """The `value` of the main process, in every process."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def all_reduce(value: Any) -> Any:
    """The sum of a tensor over all processes, in every process."""
    if world_size() > 1:
        value = value.clone()
        dist.all_reduce(value)
    return value
