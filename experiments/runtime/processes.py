"""Several processes that train one network together, as torchrun starts them: who they are, and what the first decides.

Outside of torchrun there is one process, the first of one, and nothing here does anything.
"""

import logging
import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

log = logging.getLogger("experiments")

_PATIENCE = timedelta(days=7)  # the first may wait that long for another run, which makes what it needs


def join(device: str = "auto") -> None:
    """Meet the other processes, if torchrun started several."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        from accelerate import PartialState  # noqa: PLC0415  # slow to import

        PartialState(cpu=on_cpu(device), timeout=_PATIENCE)


def on_cpu(device: str) -> bool:
    """Whether a run with `device` "auto" or "cpu" is on the CPU. Where there is no other, accelerate has to be told: it
    takes several processes for one otherwise."""
    return device == "cpu" or not torch.accelerator.is_available()


def world_size() -> int:
    """How many there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which one this is, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def is_main_process() -> bool:
    """Whether this is the one that writes."""
    return rank() == 0


def broadcast(value: Any) -> Any:
    """The `value` of the first process, in every process."""
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
