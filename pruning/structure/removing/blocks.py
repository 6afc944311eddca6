"""Residual blocks: which modules give back their input without their parameters, and taking them out."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pruning.inputs import Inputs, arguments_for, mapped, tensors_in
from pruning.parameters import unwrapped


class Skip(nn.Module):
    """Module in the place of a removed block: returns its first argument, whatever else it is called with."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return next(tensors_in((args, kwargs)))


def find_blocks(model: nn.Module, inputs: Inputs) -> tuple[str, ...]:
    """The smallest modules of `model` that are the identity when all their parameters are zero.

    Residual blocks are, where the shortcut is the identity: found by trying, on `inputs`, in eval mode. `model` is not
    changed.
    """
    trial = copy.deepcopy(unwrapped(model)).eval()
    for module in trial.modules():  # a cache grows from call to call
        if getattr(getattr(module, "config", None), "use_cache", False):
            module.config.use_cache = False  # type: ignore[union-attr]  # to torch, a tensor or module
    passes = _passes(trial, inputs)
    found: list[str] = []
    for name, module in reversed(list(trial.named_modules())):  # children come before their parents
        if name not in passes or any(inner.startswith(f"{name}.") for inner in found):
            continue
        args, kwargs = passes[name]
        if next(module.parameters(), None) is not None and _is_identity(module, args, kwargs):
            found.append(name)
    return tuple(reversed(found))


def removed_blocks(model: nn.Module, masks: Mapping[str, Tensor], inputs: Inputs) -> tuple[str, ...]:
    """The blocks of which `masks` leave nothing; the outermost, where they lie in each other."""
    gone = {name for name, mask in masks.items() if not bool(mask.any())}
    whole = []
    for name, module in unwrapped(model).named_modules():
        own = [f"{name}.{key}" for key, _ in module.named_parameters()]
        if name and own and all(key in gone for key in own):
            whole.append(name)
    if not whole:
        return ()
    blocks = find_blocks(model, inputs)
    return tuple(name for name in blocks if name in whole)


def skip_(model: nn.Module, blocks: tuple[str, ...]) -> None:
    """Put a `Skip` in the place of each block."""
    for block in blocks:
        owner, _, name = block.rpartition(".")
        model.get_submodule(owner)._modules[name] = Skip()


def _passes(model: nn.Module, inputs: Inputs) -> dict[str, tuple[Any, Any]]:
    """Module name → arguments of its first call, where its output is one tensor like its first argument."""
    seen: dict[str, tuple[Any, Any]] = {}
    handles = []
    for name, module in model.named_modules():

        def watch(_: nn.Module, args: Any, kwargs: Any, output: Any, name: str = name) -> None:
            first = next(tensors_in((args, kwargs)), None)
            if isinstance(output, Tensor) and first is not None and output.shape == first.shape:
                seen.setdefault(name, (args, kwargs))

        handles.append(module.register_forward_hook(watch, with_kwargs=True))
    args, kwargs = arguments_for(model, inputs)
    try:
        with torch.no_grad():
            model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _is_identity(module: nn.Module, args: Any, kwargs: Any) -> bool:
    """Whether `module`, a copy of its own, gives its first argument back when its parameters are zero.

    Whatever that is: zeros, which arrive in a masked model, are given back by any layer without a bias. Arguments that
    are nowhere negative, as after a ReLU, stay so.
    """
    before = [p.detach().clone() for p in module.parameters()]
    first = next(tensors_in((args, kwargs)))
    if not first.is_floating_point():
        return False  # indices, conditions or waves: no residual stream
    noise = torch.randn(first.shape, generator=torch.Generator().manual_seed(0)).to(first)
    other = noise.abs() if bool((first >= 0).all()) else noise
    swapped = mapped((args, kwargs), lambda tensor: other if tensor is first else tensor)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        outputs = [
            (value, module(*given, **named)) for value, (given, named) in ((first, (args, kwargs)), (other, swapped))
        ]
        for parameter, value in zip(module.parameters(), before, strict=True):
            parameter.copy_(value)
    return all(isinstance(output, Tensor) and torch.equal(output, value) for value, output in outputs)
