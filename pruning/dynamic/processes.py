"""The processes of a DDP-wrapped model: one average, and one opinion about the masks."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from pruning.masks import Masks


def parallel(model: nn.Module) -> DistributedDataParallel | None:
    """The DDP wrapper around or inside `model`'s other wrappers; None for a model of one process."""
    while not isinstance(model, DistributedDataParallel):
        inner = model._modules.get("_orig_mod")
        if inner is None:
            return None
        model = inner
    return model


@torch.no_grad()
def average_(model: nn.Module, tensors: Iterable[Tensor]) -> None:
    """Each of `tensors` becomes its mean over the processes of `model`, as DDP does with gradients."""
    wrapper = parallel(model)
    if wrapper is None:
        return
    for tensor in tensors:
        dist.all_reduce(tensor, group=wrapper.process_group)
        tensor /= dist.get_world_size(wrapper.process_group)


def of_first_process(model: nn.Module, masks: Masks) -> Masks:
    """The masks that the first process of `model` holds: scores of other data, or other rounding, would part them."""
    wrapper = parallel(model)
    if wrapper is None:
        return masks
    found = {name: mask.clone() for name, mask in masks.items()}
    for mask in found.values():
        dist.broadcast(mask, dist.get_global_rank(wrapper.process_group, 0), group=wrapper.process_group)
    return Masks(found)
