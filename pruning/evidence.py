"""All that a scorer may look at, and the promise that looking leaves no trace."""

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, wraps
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from pruning.batches import Batch, examples
from pruning.errors import ScoreError
from pruning.layouts import STANDARD, LaidOut, Layout, layouts
from pruning.modes import kept_modes
from pruning.parameters import check_values, check_whole, storage
from pruning.processes import parallel

Scores = dict[str, Tensor]


@dataclass(frozen=True)
class Evidence:
    """What a scorer sees.

    Raises:
        ScoreError: two Parameters of the model, not one in two places, share the memory of a prunable weight.
        ParameterError: a weight is sharded over processes, or offloaded, so that its values are not here.

    Attributes:
        model: in the mode (train or eval) in which it is to be scored; scorers do not change it. Inside a
            DistributedDataParallel scores are of the data of all its processes.
        parameters: the prunable ones, as `prunable` gives them.
        batches: re-iterable; data-free scorers ignore it.
        loss: mean over the batch's examples, all of equal weight, as the mean over all batches weights them so.
        masks: what is still alive, name → bool tensor; None: everything. Removed weights are zero in the model.
        initial: the prunable weights at initialisation, by name, for scorers that compare with them.
        count: what the loss of a batch is the mean over, above 0: its weight in the mean over batches. None: its
            examples, by `pruning.batches.examples`.
        block: the name of the block that `model` is, in `pruning.sequential`; its `loss` then only runs it.
    """

    model: nn.Module
    parameters: Mapping[str, nn.Parameter]
    batches: Iterable[Batch] = ()
    loss: Callable[[nn.Module, Batch], Tensor] | None = None
    masks: Mapping[str, Tensor] | None = None
    initial: Mapping[str, Tensor] | None = None
    count: Callable[[Batch], float] | None = None
    block: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.parameters, Mapping):
            raise ScoreError(
                f"Evidence: parameters are {type(self.parameters).__name__}, not name → parameter: give prunable(model)"
            )
        check_whole(self.model, self.parameters)
        check_values(self.parameters)
        prunable = {storage(p): (name, p) for name, p in self.parameters.items()}
        for other, parameter in self.model.named_parameters():
            name, known = prunable.get(storage(parameter), (other, parameter))
            if known is not parameter:  # a gradient reaches only one of them
                raise ScoreError(
                    f"{other}: shares the memory of {name}, but is another Parameter: tie them as one, "
                    "as in decoder.weight = encoder.weight"
                )

    @cached_property
    def layouts(self) -> Mapping[str, Layout]:
        """How each prunable weight is seen as rows of inputs, one for each output."""
        return dict.fromkeys(self.parameters, STANDARD) | layouts(self.model, self.parameters)

    @property
    def local(self) -> nn.Module:
        """The model as this process runs it alone: without its DDP wrapper, whose passes wait for all processes."""
        wrapper = parallel(self.model)
        return self.model if wrapper is None else wrapper.module

    def size(self, batch: Batch) -> float:
        """The weight of `batch` in a mean over all data: `count` of it, or its number of examples."""
        if self.count is None:
            return examples(batch)
        found = float(self.count(batch))
        if not 0.0 < found < math.inf:
            raise ScoreError(
                f"Evidence count= returned {found}: give how many examples or tokens the loss averages over, above 0"
            )
        return found


Scorer = Callable[[Evidence], Scores]
_AnyScorer = TypeVar("_AnyScorer", bound=Callable[..., Scores])


def laid_out(scorer: _AnyScorer) -> _AnyScorer:
    """A decorator of scorers: where weights are not [outputs, …], their scores bring the layouts along."""

    @wraps(scorer)
    def scored(evidence: Any, *args: Any, **kwargs: Any) -> Scores:
        if not isinstance(evidence, Evidence):
            name, given = getattr(scorer, "__name__", "this scorer"), type(evidence).__name__
            raise ScoreError(f"{name}: scores an Evidence, this is {given}: give Evidence(model, prunable(model), …)")
        return with_layouts(scorer(evidence, *args, **kwargs), evidence)

    return cast(_AnyScorer, scored)


def with_layouts(scores: Scores, evidence: Evidence) -> Scores:
    """`scores` of the weights of `evidence` with their layouts, where any is not the standard one."""
    if isinstance(scores, LaidOut) or all(layout == STANDARD for layout in evidence.layouts.values()):
        return scores
    return LaidOut(scores, evidence.layouts)


@contextmanager
def untouched(model: nn.Module, parameters: Iterable[nn.Parameter] = ()) -> Iterator[None]:
    """Put buffers, gradients, flags and random state of `model` back afterwards; let `parameters` take gradients.

    Buffers are copied back in place, so that whoever holds one still holds it; those that a module assigned again, as
    moving averages do, are given back.
    """
    assigned = [(module, dict(module._buffers)) for module in model.modules()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers() if _writable(buffer)]
    accumulated_before = [(p, p.grad) for p in model.parameters()]
    frozen = [p for p in parameters if not p.requires_grad]
    hooks = [(h, dict(h)) for p in model.parameters() if (h := getattr(p, "_post_accumulate_grad_hooks", None))]
    devices = sorted(
        {t.device.index for t in model.parameters() if t.device.type == "cuda" and t.device.index is not None}
    )
    python, numpy = random.getstate(), np.random.get_state()
    with kept_modes(model), torch.random.fork_rng(devices=devices):
        try:
            for parameter in frozen:
                parameter.requires_grad_(True)
            for parameter, _ in accumulated_before:
                parameter.grad = None  # a backward pass would add to a gradient that exists, in place
            for each, _ in hooks:
                each.clear()  # a backward pass would run them: they hold masks, or step an optimizer
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
            for parameter in frozen:
                parameter.requires_grad_(False)
            for each, registered in hooks:
                each.update(registered)
            for parameter, gradient in accumulated_before:
                parameter.grad = gradient
            for module, owned in assigned:
                module._buffers.clear()
                module._buffers.update(owned)
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)


def scalar_loss(evidence: Evidence, batch: Batch) -> Tensor:
    """The loss of `batch`, in the graph; `ScoreError` if it is not what a gradient can be taken of."""
    loss = loss_of(evidence, batch)
    if not loss.requires_grad:
        raise ScoreError("the loss has no gradient: give one that is not detached, and score outside inference_mode")
    return loss.reshape(())


def loss_of(evidence: Evidence, batch: Batch) -> Tensor:
    """The loss of `batch`, one number. Raises `ScoreError` for what is none, or where there is no loss at all."""
    assert evidence.loss is not None
    if evidence.block is not None:
        raise ScoreError(
            "a block has no loss of its own: take a scorer of weights or inputs (magnitude, wanda, obs), or score the "
            "whole model (calibration=whole)"
        )
    loss = evidence.loss(evidence.local, batch)
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        what = f"shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise ScoreError(f"the loss is no single number but {what}: give the mean over the batch")
    return loss


def output_tensor(outputs: Any) -> Tensor:
    """The outputs on which the loss depends: the tensor itself, the only one of a tuple, or what is named logits."""
    if isinstance(outputs, Tensor):
        return outputs
    found = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", None)
    if isinstance(outputs, tuple | list) and not isinstance(found, Tensor):
        tensors = [one for one in outputs if isinstance(one, Tensor)]
        found = tensors[0] if len(tensors) == 1 else None
    if not isinstance(found, Tensor):
        raise ScoreError(
            f"the model's output is no tensor, and has none named logits, but a {type(outputs).__name__}: "
            "wrap the model in one that returns a tensor"
        )
    return found


def _writable(buffer: Tensor) -> bool:
    """Whether a forward pass can write to it at all: not to one that is expanded, sparse or made in inference mode."""
    if buffer.layout is not torch.strided:
        return False
    expanded = any(step == 0 and size > 1 for step, size in zip(buffer.stride(), buffer.shape, strict=True))
    return not expanded and not buffer.is_inference()


def accumulated(tensor: Tensor) -> Tensor:
    """`tensor`, detached, dense, in at least float32: products of halves underflow (1e-3 · 1e-5 is 0 in float16)."""
    tensor = tensor.detach() if tensor.layout is torch.strided else tensor.detach().to_dense()
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def effect(gradient: Tensor, weight: Tensor) -> Tensor:
    """g·w, minus the change of the loss when w goes, to first order; of complex weights Re(ḡ·w)."""
    return (gradient.conj() * weight).real if weight.is_complex() else gradient * weight


def check_real(parameters: Mapping[str, Tensor], what: str) -> None:
    """Raise `ScoreError` for complex weights, where `what` is defined for real ones."""
    for name, parameter in parameters.items():
        if parameter.is_complex():
            raise ScoreError(f"{name}: is complex, and {what} is defined for real weights: exclude it")
