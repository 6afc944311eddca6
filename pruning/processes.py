"""Processes of a DDP-wrapped model: sums and averages over them, and the masks on which they agree."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel


def parallel(model: nn.Module) -> DistributedDataParallel | None:
    """The DDP wrapper around or inside `model`'s other wrappers; None for a model of one process."""
    while not isinstance(model, DistributedDataParallel):
        inner = model._modules.get("_orig_mod")
        if inner is None:
            return None
        model = inner
    return model


@torch.no_grad()
def sum_(model: nn.Module, tensors: Iterable[Tensor]) -> None:
    """Each of `tensors` becomes its sum over the processes of `model`; the same tensor given twice is summed once."""
    wrapper = parallel(model)
    if wrapper is None:
        return
    for tensor in _each_once(tensors):
        dist.all_reduce(tensor, group=wrapper.process_group)


def sum_of(model: nn.Module, count: float) -> float:
    """The sum of `count` over the processes of `model`."""
    wrapper = parallel(model)
    if wrapper is None:
        return count
    summed = torch.tensor(count, dtype=torch.float64, device=next(model.parameters()).device)
    sum_(model, [summed])
    return float(summed)


@torch.no_grad()
def average_(model: nn.Module, tensors: Iterable[Tensor]) -> None:
    """Each of `tensors` becomes its mean over the processes of `model`, as DDP does with gradients."""
    wrapper = parallel(model)
    if wrapper is None:
        return
    tensors = _each_once(tensors)
    sum_(model, tensors)
    for tensor in tensors:
        tensor /= dist.get_world_size(wrapper.process_group)


def _each_once(tensors: Iterable[Tensor]) -> list[Tensor]:
    return list({id(tensor): tensor for tensor in tensors}.values())


def of_first_process(model: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Masks of the first process of `model`: scores of other data, or other rounding, would make them differ.

    `masks` are of the same parameters in all processes, on the devices of the model's parameters.
    """
    wrapper = parallel(model)
    if wrapper is None:
        return dict(masks)
    device = next(model.parameters()).device
    found = {name: mask.to(device, copy=True) for name, mask in masks.items()}
    for mask in found.values():
        dist.broadcast(mask, dist.get_global_rank(wrapper.process_group, 0), group=wrapper.process_group)
    return found
