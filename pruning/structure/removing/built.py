"""What a configuration of transformers builds, and how a model differs from that."""

import copy
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pruning.errors import PruningError, first_line
from pruning.parameters import within


@dataclass(frozen=True)
class Difference:
    """How a model and the one that a configuration builds differ.

    Attributes:
        names: tensors that only one of them has.
        sizes: (in what is built, in the model) of all dimensions that differ.
        factors: (module, attribute) that are no whole numbers, as scales and kinds of attention.
        numbers: (module, attribute) of whole numbers and lists of kinds: a module may hold some that it does not use.
        words: the first of them, in words.
    """

    names: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    factors: tuple[tuple[str, str], ...]
    numbers: tuple[tuple[str, str], ...]
    words: str

    @property
    def grave(self) -> int:
        """How many differences there are beside numbers."""
        return len(self.names) + len(self.sizes) + len(self.factors)

    @property
    def size(self) -> int:
        """How many there are, where a tensor that is missing counts most."""
        return 1000 * len(self.names) + len(self.sizes) + len(self.factors) + len(self.numbers)


Key = tuple[tuple[str, ...], str]
"""Names of the configurations around a value, and its own."""


def values_of(config: Any, owner: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str, Any]]:
    """(names of the configurations around it, name, value) of all values, also of configurations within."""
    for name, value in list(vars(config).items()):
        if callable(getattr(value, "to_dict", None)):
            yield from values_of(value, (*owner, name))
        elif not name.startswith("_"):
            yield owner, name, value


def changed(config: Any, changes: Mapping[Key, Any]) -> Any:
    """A copy of `config` with other values."""
    made = copy.deepcopy(config)
    for (owner, name), value in changes.items():
        holder = made
        for outer in owner:
            holder = getattr(holder, outer)
        vars(holder)[name] = value  # checked as a whole, when it is read
    return made


def built_of(part: nn.Module, config: Any) -> nn.Module | str:
    """What `config` builds after it was written and read, without values; or why not."""
    with _quiet(), torch.random.fork_rng(devices=()), torch.device("meta"):
        try:
            return type(part)(type(config).from_dict(config.to_dict()))
        except PruningError:
            raise
        except Exception as error:  # whatever the class raises that cannot be built so: the answer is why
            return first_line(error)


class _ParametersWithoutValues(TorchFunctionMode):
    """What torch.empty makes, as parameters, is on the meta device; tables, which are computed, have their values."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function is torch.empty:
            kwargs["device"] = "meta"
        return function(*args, **kwargs)


def other_table(part: nn.Module, config: Any) -> str | None:
    """The first table of `part`, a tensor that files do not have, which is not as `config` makes it, in words; or None.

    Sines of positions, say, are others where the hidden size is another, and not some of those that there were.
    """
    with _quiet(), torch.random.fork_rng(devices=()), _ParametersWithoutValues():
        try:
            built = type(part)(type(config).from_dict(config.to_dict()))
        except PruningError:
            raise
        except Exception as error:  # whatever the class raises that cannot be built so: the answer is why
            return f"its tables cannot be compared: {first_line(error)}"
    own, made = dict(_tables(part)), dict(_tables(built))
    for name in sorted(own.keys() & made.keys()):
        if own[name].is_meta or made[name].is_meta:
            return f"{name} cannot be compared"
        if own[name].shape != made[name].shape or not _close(own[name], made[name]):
            return f"{name} has other values"
    return None


def _tables(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, module in model.named_modules():
        buffers = {key: module._buffers.get(key) for key in module._non_persistent_buffers_set}
        for key, value in (*buffers.items(), *vars(module).items()):
            if isinstance(value, Tensor):
                yield within(name, key), value


def _close(one: Tensor, other: Tensor) -> bool:
    """Whether they are equal but for the rounding of another device."""
    one, other = one.detach().cpu(), other.detach().to(one.dtype)
    if not one.is_floating_point():
        return torch.equal(one, other)
    return torch.allclose(one, other, rtol=_ROUNDING, atol=_ROUNDING, equal_nan=True)


_ROUNDING = 1e-5


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what transformers logs of each configuration that it reads."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """All parameters and buffers, under all of their names."""
    tensors = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    return {name: tuple(tensor.shape) for name, tensor in tensors}


def difference_of(part: nn.Module, built: nn.Module, odd: frozenset[str]) -> Difference:
    """How `part` differs from what a configuration built; `odd`: tensors that it may lack."""
    own, other = shapes_of(part), shapes_of(built)
    tables = _transient(part)  # of which it may have some that nothing reads any more
    names = sorted((own.keys() - other.keys() - tables) | (other.keys() - own.keys() - odd))
    words = [f"{name} is only in {'the model' if name in own else 'what it builds'}" for name in names]
    sizes = []
    for name in sorted(own.keys() & other.keys()):
        if own[name] != other[name]:
            words.append(f"{name} has shape {list(own[name])}, not {list(other[name])}")
        if len(own[name]) != len(other[name]):
            names.append(name)
        else:
            sizes += [(a, b) for a, b in zip(other[name], own[name], strict=True) if a != b]
    mine, theirs = _attributes(part), _attributes(built)
    unlike = sorted(key for key in mine.keys() & theirs.keys() if mine[key] != theirs[key])
    words += [f"{name}.{key} is {mine[name, key]}, not {theirs[name, key]}" for name, key in unlike]
    numbers = tuple(key for key in unlike if _may_be_idle(mine[key], theirs[key]))
    factors = tuple(key for key in unlike if key not in numbers)
    return Difference(tuple(names), tuple(sizes), factors, numbers, words[0] if words else "")


def attribute(model: nn.Module, module: str, name: str) -> Any:
    """What a module of `model` holds under a name."""
    return vars(model.get_submodule(module))[name]


def _transient(model: nn.Module) -> frozenset[str]:
    """Names of tables that are no part of a file of the model, but computed again."""
    return frozenset(
        within(name, key) for name, module in model.named_modules() for key in module._non_persistent_buffers_set
    )


def _may_be_idle(mine: Any, theirs: Any) -> bool:
    """Whether an attribute may differ of a module that does not use it: a whole number, or kinds that are gone."""
    if isinstance(mine, list | tuple) and isinstance(theirs, list | tuple):
        return set(theirs) <= set(mine) and all(isinstance(kind, str) for kind in mine)
    return type(mine) is int and type(theirs) is int


def _attributes(model: nn.Module) -> dict[tuple[str, str], Any]:
    """(module, attribute) → a number, a word, or several; all that may tell how it computes."""
    return {
        (name, key): value
        for name, module in model.named_modules()
        if not isinstance(module, nn.modules.dropout._DropoutNd)
        for key, value in vars(module).items()
        if _simple(value) and not key.startswith("_") and key not in _STATES and "drop" not in key
    }


_STATES = ("training", "gradient_checkpointing", "name_or_path", "loss_type", "kernel_config")


def _simple(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_simple(part) for part in value)
    return isinstance(value, int | float | str) or value is None
