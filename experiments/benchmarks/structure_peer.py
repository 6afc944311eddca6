"""torch-pruning on the models of the structure benchmark: what it removes, and whether the rest computes the same."""

import logging
import math
import resource
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from time import process_time
from typing import Any

import torch
import torch_pruning
from torch import Tensor, nn

from experiments.benchmarks.structure_models import disturbed, models, warm_up
from pruning.errors import PruningError
from pruning.inputs import outputs_in
from pruning.structure import TOLERANCE, verify

_FIRST_TAG = 0x3F800000
"""The bits of 1.0: tags are the floats that follow it, so that no arithmetic on them is slow or makes no number."""


def judge(group: str, name: str, share: float, limit: float, sending: Any) -> None:
    """Prune a `share` of that model and send what came of it. The process ends where that takes longer than `limit`
    CPU seconds.
    """
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    model, inputs = dict(models(group))[name]()
    model = disturbed(model)
    before = _shapes(model, inputs)
    prune(*warm_up(), share)
    found: dict[str, Any] = {}
    try:
        small = tagged(model)
        with cpu_limit(limit):
            start = process_time()
            prune(small, inputs, share)
            found["torch-pruning s"] = process_time() - start
        masks = untagged(small, model)
        total, left = (sum(p.numel() for p in one.parameters()) for one in (model, small))
        found["torch-pruning left"] = left / total
        if _shapes(small, inputs) != before:
            verdict = "other shapes"
        elif left == total:
            verdict = "nothing removed"
        elif masks is None:
            verdict = "runs"
        else:
            found["torch-pruning difference"] = difference = verify(model, masks, small, inputs)
            verdict = "right" if difference <= TOLERANCE else "other values"
    except PruningError as error:  # ours, which could not compare
        verdict, found["torch-pruning reason"] = "runs", str(error)
    except Exception as error:  # of a peer, whatever it is
        verdict = type(error).__name__
    sending.send(found | {"torch-pruning": verdict})


@contextmanager
def cpu_limit(seconds: float) -> Iterator[None]:
    """Limit this process to `seconds` more of CPU time; then the system ends it by SIGXCPU."""
    soft, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(process_time() + seconds), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


def prune(model: nn.Module, inputs: Any, share: float) -> None:
    """Trace, choose at random and remove, with the default arguments; the classifier is spared."""
    layers = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    last = [module for module in layers if isinstance(module, nn.Linear)][-1:] or layers[-1:]
    importance = torch_pruning.importance.RandomImportance()
    torch_pruning.pruner.MagnitudePruner(model, inputs, importance, pruning_ratio=share, ignored_layers=last).step()


def tagged(model: nn.Module) -> nn.Module:
    """A copy in which every number of parameters and float buffers encodes its place in the tensor."""
    copy = deepcopy(model)
    for value in _numbers(copy).values():
        places = torch.arange(value.numel(), dtype=torch.int32) + _FIRST_TAG
        value.data = places.view(torch.float32).view(value.shape)
    return copy


def untagged(small: nn.Module, model: nn.Module) -> dict[str, Tensor] | None:
    """Put the numbers of `model` where their tags are in `small`; masks of the parameters that are left of `model`.

    None where some number of `small` is no tag: it was computed, so there is no masked network to compare with.
    """
    originals = _numbers(model) | dict(model.named_parameters(remove_duplicate=False))  # it may have untied weights
    masks = {}
    for name, value in _numbers(small).items():
        places = value.detach().contiguous().view(torch.int32).long() - _FIRST_TAG
        if name not in originals or bool(((places < 0) | (places >= originals[name].numel())).any()):
            return None
        value.data = originals[name].detach().flatten()[places]
        if isinstance(value, nn.Parameter):
            masks[name] = torch.zeros(originals[name].shape, dtype=torch.bool)
            masks[name].view(-1)[places.flatten()] = True
    return masks


def _numbers(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers in single precision."""
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: value for name, value in named.items() if value.dtype == torch.float32}


def _shapes(model: nn.Module, inputs: Any) -> list[tuple[int, ...]]:
    with torch.no_grad():
        outputs = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    return [tuple(output.shape) for output in outputs_in(outputs)]
