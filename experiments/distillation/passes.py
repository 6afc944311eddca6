"""Forward passes, with what a distillation compares besides outputs: what modules give, and attention."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from experiments.data.examples import Batch
from experiments.tasks import Task, call
from pruning.errors import ModelError
from pruning.inputs import arguments
from pruning.parameters import unwrapped


@dataclass(frozen=True)
class Pass:
    """What a model gave for a batch.

    Attributes:
        outputs: as the model returned them, or their tensor alone where that was computed before.
        states: name of a module → its outputs, one for each time it was called, with examples first.
        attention: of each layer of a model of transformers, the probabilities [n, heads, queries, keys].
    """

    outputs: Any
    states: Mapping[str, Sequence[Tensor]] = field(default_factory=dict)
    attention: tuple[Tensor, ...] = ()


def forward(task: Task, model: nn.Module, batch: Batch, modules: Collection[str] = (), attention: bool = False) -> Pass:
    """Call `model` and keep what `modules` give, and the `attention` if asked for; see `with_attention`.

    Raises `ModelError` for a module without a tensor among its outputs, and for a model that gives no attention.
    """
    with _recorded(unwrapped(model), modules) as states:
        if not attention:
            return Pass(call(task, model, batch), states)
        positional, named = arguments(task.inputs(batch))
        outputs = model(*positional, **named, output_attentions=True)
    maps = getattr(outputs, "attentions", None)
    if not maps or not all(isinstance(one, Tensor) and one.dim() == 4 for one in maps):
        raise ModelError(f"distillation: {type(unwrapped(model)).__name__} gives no attention: choose {_OTHERS}")
    return Pass(outputs, states, tuple(maps))


_OTHERS = "distillation=logits or hidden, or another model of transformers"


def with_attention(model: nn.Module) -> None:
    """Let a model of transformers compute its attention as a product that can be read, in place.

    Raises `ModelError` for any other model.
    """
    choose = getattr(unwrapped(model), "set_attn_implementation", None)
    if choose is None:
        raise ModelError(f"distillation: {type(unwrapped(model)).__name__} has no attention: choose {_OTHERS}")
    choose("eager")


@contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """Compute without gradients, in full precision, and put the random states back: a student draws the same numbers
    with a teacher as without.
    """
    python, numpy = random.getstate(), np.random.get_state()
    own = [device] if device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices=own), torch.autocast(device.type, enabled=False):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@contextmanager
def _recorded(model: nn.Module, modules: Collection[str]) -> Iterator[dict[str, list[Tensor]]]:
    """The outputs of `modules` in the passes within, by name."""
    found: dict[str, list[Tensor]] = {name: [] for name in modules}
    hooks = [model.get_submodule(name).register_forward_hook(partial(_record, name, found[name])) for name in modules]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _record(name: str, found: list[Tensor], module: nn.Module, inputs: Any, outputs: Any) -> None:
    first = outputs[0] if isinstance(outputs, tuple | list) and outputs else outputs
    if not isinstance(first, Tensor):
        raise ModelError(
            f"distillation.layers: {name} gives a {type(first).__name__}, not a tensor: name a module within it"
        )
    found.append(first.clone())  # an activation that follows may work in place
