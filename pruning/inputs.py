"""What a model is called with, and the tensors in it."""

import copy
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor, nn

Inputs = Tensor | Sequence[Any] | Mapping[str, Any]
"""What a model is called with: one tensor, positional arguments, or keyword arguments."""


def arguments(inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """`inputs` as positional and keyword arguments."""
    if isinstance(inputs, Tensor):
        return (inputs,), {}
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return tuple(inputs), {}


def arguments_for(model: nn.Module, inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """`arguments`, with tensors on the device of the model's first parameter."""
    device = next((p.device for p in model.parameters()), None)
    args, kwargs = arguments(inputs)
    if device is None:
        return args, kwargs
    return mapped(args, lambda x: x.to(device)), mapped(kwargs, lambda x: x.to(device))


def copies_for(model: nn.Module, inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """`arguments_for`, as copies that a model may write into."""
    args, kwargs = arguments_for(model, inputs)
    return mapped(args, Tensor.clone), mapped(kwargs, Tensor.clone)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors in nested tuples, lists, sets, mappings and dataclasses; other objects are not looked into."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors_in(part)
    elif isinstance(value, list | tuple | set | frozenset):
        for part in value:
            yield from tensors_in(part)
    elif is_dataclass(value) and not isinstance(value, type):
        for part in fields(value):
            yield from tensors_in(getattr(value, part.name))


def outputs_in(value: Any) -> list[Tensor]:
    """The tensors in what a model returned; in its attributes, if it is another object than `tensors_in` knows.

    An object beside tensors, as the cache of a language model, is not part of the result.
    """
    return list(tensors_in(value)) or list(tensors_in(getattr(value, "__dict__", None)))


def mapped(value: Any, function: Callable[[Tensor], Any]) -> Any:
    """`value` with `function` of every tensor in its tuples, lists, mappings and dataclasses, of their kinds."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, list | tuple):
        items = [mapped(part, function) for part in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    is_mapping, has_fields = isinstance(value, MutableMapping), is_dataclass(value) and not isinstance(value, type)
    if not (is_mapping or has_fields):
        return value
    named = dict(value) if is_mapping else {part.name: getattr(value, part.name) for part in fields(value)}
    named = {name: mapped(part, function) for name, part in named.items()}
    if is_mapping and has_fields:  # the outputs of transformers refuse to be updated
        return type(value)(**named)
    made = copy.copy(value)
    if is_mapping:
        made.update(named)
    else:
        for name, part in named.items():
            object.__setattr__(made, name, part)
    return made
