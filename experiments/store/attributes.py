"""Attributes of models and tasks that no state_dict holds: plain values, and buffers that are not persistent.

A model may read them from a file when it is made, so that they count in its identity; and it may change them in
training, after which neither a checkpoint nor a stored network has them.
"""

from __future__ import annotations

import hashlib
import logging
import random
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

log = logging.getLogger("experiments")

_INTERNAL = frozenset(vars(nn.Module())) | {"starting_masks"}
_PLAIN = (type(None), bool, int, float, complex, str, bytes, np.generic)


def attributes(holder: object) -> Iterator[tuple[str, Any]]:
    """Names and values: of every module of a model, or of another object.

    Weights that hooks compute from parameters before every call, as torch.nn.utils.weight_norm does, are none.
    """
    if not isinstance(holder, nn.Module):
        yield from vars(holder).items() if hasattr(holder, "__dict__") else ()
        return
    for path, module in holder.named_modules():
        prefix = f"{path}." if path else ""
        computed = {getattr(hook, "name", None) for hook in module._forward_pre_hooks.values()}
        computed |= {getattr(hook, "_tensor_name", None) for hook in module._forward_pre_hooks.values()}
        for name, value in vars(module).items():
            if name not in _INTERNAL and name not in computed:
                yield f"{prefix}{name}", value
        for name in sorted(module._non_persistent_buffers_set):
            yield f"{prefix}{name}", module._buffers.get(name)


def content_of_attributes(holder: object) -> str:
    """SHA-256 of all values that are data, or name a function or a class; the first 32 digits of 64.

    Of a module among them, as the teacher that a task holds, weights, buffers and attributes count too. Of other
    objects only the class does.
    """
    known = set(map(id, holder.modules())) if isinstance(holder, nn.Module) else set[int]()
    return _digest(repr(_contents(attributes(holder), known)).encode())[:32]


@dataclass(frozen=True)
class Kept:
    """What tells whether attributes of some objects have changed since: cheap, and for this process alone."""

    holders: Mapping[str, object]
    marks: Mapping[str, object]

    @classmethod
    def of(cls, **holders: object) -> Kept:
        """The attributes of `holders`, as they are now."""
        return cls(holders, _marks(holders))

    def report_changes(self) -> bool:
        """Whether an attribute has changed, or is new; which do is logged."""
        now = _marks(self.holders)
        names = [name for name in now if name not in self.marks or self.marks[name] != now[name]]
        if names:
            log.warning(
                "%s: changes in training, and is in no state_dict, so that the stored network lacks it, and a training "
                "that is killed begins again: make it a buffer, if outputs depend on it",
                ", ".join(names[:3]) + (", …" if len(names) > 3 else ""),
            )
        return bool(names)


def _marks(holders: Mapping[str, object]) -> dict[str, object]:
    trained = {id(p) for holder in holders.values() if isinstance(holder, nn.Module) for p in holder.parameters()}
    return {
        f"{of}.{name}": _mark(value, trained) for of, holder in holders.items() for name, value in attributes(holder)
    }


def _contents(named: Iterator[tuple[str, Any]], known: set[int]) -> list[tuple[str, str]]:
    return sorted((name, repr(_content(value, known))) for name, value in named)


def _content(value: Any, known: set[int]) -> object:
    """Plain data that tell values apart; `known`: ids of modules whose content counts already."""
    if isinstance(value, np.ndarray) and value.dtype.hasobject:  # its bytes are addresses
        value = value.tolist()
    if isinstance(value, Tensor):
        flat = value.detach().cpu().contiguous()
        return str(flat.dtype), list(flat.shape), _digest(flat.reshape(-1).view(torch.uint8).numpy().tobytes())
    if isinstance(value, Mapping):
        return [(repr(key), _content(item, known)) for key, item in value.items()]
    if isinstance(value, list | tuple | set | frozenset):
        found = [_content(item, known) for item in value]
        return found if isinstance(value, list | tuple) else sorted(map(repr, found))
    if isinstance(value, (*_PLAIN, np.ndarray)):
        return _plain(value)
    if isinstance(value, nn.Module) and id(value) not in known:
        known.update(map(id, value.modules()))
        kinds = [(path, _name(type(module))) for path, module in value.named_modules()]
        return kinds, _content(value.state_dict(), known), _contents(attributes(value), known)
    return _name(value if callable(value) and hasattr(value, "__qualname__") else type(value))


def _name(named: Any) -> str:
    return f"{named.__module__}.{named.__qualname__}"


def _mark(value: Any, trained: Container[int]) -> object:
    """What differs once `value` has changed; not for the parameters that are `trained`, which a state_dict has."""
    if isinstance(value, Tensor):
        return None if id(value) in trained else (id(value), value._version)
    if isinstance(value, Mapping):
        return [(repr(key), _mark(item, trained)) for key, item in value.items()]
    if isinstance(value, list | tuple):
        return [_mark(item, trained) for item in value]
    if isinstance(value, (*_PLAIN, np.ndarray)):
        return _plain(value)
    return _STATES.get(type(value), id)(value)


def _plain(value: Any) -> object:
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, _digest(np.ascontiguousarray(value).tobytes())
    return type(value).__name__, value


_STATES: dict[type, Callable[[Any], object]] = {
    np.random.Generator: lambda made: repr(made.bit_generator.state),
    np.random.RandomState: lambda made: repr(made.get_state()),
    random.Random: random.Random.getstate,
    torch.Generator: lambda made: _digest(made.get_state().numpy().tobytes()),
}
"""Random generators → their state."""


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
