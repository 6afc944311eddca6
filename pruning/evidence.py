"""All that a scorer may look at, and the promise that looking leaves no trace."""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pruning.errors import ScoreError
from pruning.parameters import storage

Batch = Any
"""Whatever the loss takes, mostly (inputs, targets). Its first tensor's first dimension counts the examples."""

Scores = dict[str, Tensor]


@dataclass(frozen=True)
class Evidence:
    """What a scorer sees.

    Raises:
        ScoreError: two Parameters of the model, not one in two places, share the memory of a prunable weight.

    Attributes:
        model: in the mode (train or eval) in which it is to be scored; scorers do not change it.
        parameters: the prunable ones, as `prunable` gives them.
        batches: re-iterable; data-free scorers ignore it.
        loss: mean over the batch's examples, all of equal weight, as the mean over all batches weights them so.
        masks: what is still alive, name → bool tensor; None: everything. Removed weights are zero in the model.
        initial: the prunable weights at initialisation, by name, for scorers that compare with them.
    """

    model: nn.Module
    parameters: Mapping[str, nn.Parameter]
    batches: Iterable[Batch] = ()
    loss: Callable[[nn.Module, Batch], Tensor] | None = None
    masks: Mapping[str, Tensor] | None = None
    initial: Mapping[str, Tensor] | None = None

    def __post_init__(self) -> None:
        prunable = {storage(p): (name, p) for name, p in self.parameters.items()}
        for other, parameter in self.model.named_parameters():
            name, known = prunable.get(storage(parameter), (other, parameter))
            if known is not parameter:  # a gradient reaches only one of them
                raise ScoreError(
                    f"{other}: shares the memory of {name}, but is another Parameter: tie them as one, "
                    "as in decoder.weight = encoder.weight"
                )


Scorer = Callable[[Evidence], Scores]


def gradients(evidence: Evidence) -> Iterator[tuple[Scores, int]]:
    """∂L/∂w of the mean loss on each batch, as (name → tensor in at least float32, examples in the batch).

    Weights, gradients, buffers, train and eval flags and random state of the model are as before when the iterator is
    exhausted or closed. A parameter that the loss does not reach has gradient 0.

    Raises:
        ScoreError: no loss, no batches, or batches that can be iterated only once.
    """
    if evidence.loss is None:
        raise ScoreError("this scorer needs gradients: give Evidence a loss")
    names, parameters = list(evidence.parameters), list(evidence.parameters.values())
    seen = 0
    with untouched(evidence.model, parameters):
        for batch in evidence.batches:
            seen += 1
            with torch.enable_grad():
                loss = scalar_loss(evidence, batch)
                found = torch.autograd.grad(loss, parameters, allow_unused=True)
            yield (
                {
                    name: torch.zeros_like(accumulated(p)) if g is None else accumulated(g)
                    for name, p, g in zip(names, parameters, found, strict=True)
                },
                examples(batch),
            )
    if not seen:
        raise ScoreError("this scorer needs data: batches is empty, or could be iterated only once (give a list)")


def mean_gradient(evidence: Evidence) -> Scores:
    """∂L/∂w of the mean loss over all examples, however the data are cut into batches. See `gradients`."""
    total: Scores = {}
    count = 0
    for batch, size in gradients(evidence):
        count += size
        for name, gradient in batch.items():
            total[name] = total[name].add_(gradient, alpha=size) if name in total else gradient * size
    return {name: gradient.div_(count) for name, gradient in total.items()}


@contextmanager
def untouched(model: nn.Module, parameters: Iterable[nn.Parameter] = ()) -> Iterator[None]:
    """Put buffers, gradients, flags and random state of `model` back afterwards; let `parameters` take gradients.

    Buffers are copied back in place, so that whoever holds one still holds it; those that a module assigned anew, as
    moving averages do, are given back.
    """
    assigned = [(module, dict(module._buffers)) for module in model.modules()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers() if _writable(buffer)]
    modes = [(module, module.training) for module in model.modules()]
    accumulated_before = [(p, p.grad) for p in model.parameters()]
    frozen = [p for p in parameters if not p.requires_grad]
    devices = sorted(
        {t.device.index for t in model.parameters() if t.device.type == "cuda" and t.device.index is not None}
    )
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=devices):
        try:
            for parameter in frozen:
                parameter.requires_grad_(True)
            for parameter, _ in accumulated_before:
                parameter.grad = None  # a backward pass would add to a gradient that exists, in place
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
            for parameter in frozen:
                parameter.requires_grad_(False)
            for module, training in modes:
                module.training = training
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
    assert evidence.loss is not None
    loss = evidence.loss(evidence.model, batch)
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        what = f"shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise ScoreError(f"the loss is no single number but {what}: give the mean over the batch")
    if not loss.requires_grad:
        raise ScoreError("the loss has no gradient: give one that is not detached, and score outside inference_mode")
    return loss.reshape(())


def output_tensor(outputs: Any) -> Tensor:
    """The outputs on which the loss depends: the tensor itself, or the logits of a transformers-like output."""
    found = outputs if isinstance(outputs, Tensor) else getattr(outputs, "logits", None)
    if not isinstance(found, Tensor):
        raise ScoreError(
            f"the model's output is no tensor, and has none named logits, but a {type(outputs).__name__}: "
            "wrap the model in one that returns a tensor"
        )
    return found


def _writable(buffer: Tensor) -> bool:
    """Whether a forward pass can write to it at all: not to one that is expanded, or made in inference mode."""
    expanded = any(step == 0 and size > 1 for step, size in zip(buffer.stride(), buffer.shape, strict=True))
    return not expanded and not buffer.is_inference()


def accumulated(tensor: Tensor) -> Tensor:
    """`tensor`, detached, in at least float32: products of halves underflow (1e-3 · 1e-5 is 0 in float16)."""
    tensor = tensor.detach()
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def examples(batch: Batch) -> int:
    """How many examples `batch` holds: the first dimension of the first tensor in it."""
    if isinstance(batch, Tensor):
        if batch.dim() and not len(batch):
            raise ScoreError("a batch holds no examples: leave it out")
        return len(batch) if batch.dim() else 1
    parts = batch.values() if isinstance(batch, Mapping) else batch
    if isinstance(parts, Iterable) and not isinstance(parts, str | bytes):
        for part in parts:
            if isinstance(part, Tensor | Mapping | list | tuple):
                return examples(part)
    raise ScoreError(
        f"a batch of type {type(batch).__name__} holds no tensor: give tensors, or tuples or dicts of them"
    )
