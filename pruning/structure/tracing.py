"""`trace`: find what belongs together in a model, and try out that it can be removed."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from pruning.copying import on_meta
from pruning.errors import StructureError, first_line
from pruning.inputs import Inputs
from pruning.parameters import unwrapped
from pruning.structure.coupling.solving import solve
from pruning.structure.coupling.structure import Structure, structure_of
from pruning.structure.recording.tape import ForwardError, Tape, record
from pruning.structure.removing.shrinking import is_whole
from pruning.structure.trial import trial


def trace(model: nn.Module, example_inputs: Inputs, *, lossy: bool = False) -> Structure:
    """Find the units of `model`: channels, neurons and heads, each with everything that must go with it.

    One forward pass on the meta device, where tensors have shapes but no values (on the model's own where that is not
    possible), ties the dimensions of all tensors to each other. Then some units are removed for a trial, on the meta
    device too; modules that do not run as foreseen keep all they have, and the structure says so. Nothing of the model
    changes: weights, buffers, modes, hooks, device. A model inside `torch.compile` or DDP is unwrapped.

    Args:
        example_inputs: a tensor, a tuple of positional or a mapping of keyword arguments. One example will do.
        lossy: also units over which a layer norm, group norm, softmax or mean takes its statistics; the network
            without them is then another than the masked one.

    Raises:
        StructureError: the model does not run on these inputs, or cannot be made smaller anywhere.
    """
    if not isinstance(model, nn.Module):
        raise StructureError(f"this is a {type(model).__name__}, no module: give a network, not its class")
    model = unwrapped(model)
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise StructureError(f"{name or 'the model'}: is scripted: give the module from which it was made")
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise StructureError(f"{name}: has no shape yet: call the model once before it is traced")
    return _tried(model, _recorded(model, example_inputs), example_inputs, lossy)


def _recorded(model: nn.Module, inputs: Inputs) -> Tape:
    try:
        return record(on_meta(model), inputs)
    except ForwardError:
        return _with_values(model, inputs)  # it asks for them, or has tensors that are no buffers


def _with_values(model: nn.Module, inputs: Inputs) -> Tape:
    try:
        return record(model, inputs)
    except ForwardError as failure:
        raise StructureError(
            f"{failure.module or type(model).__name__}: the model does not run on the example inputs "
            f"({type(failure.cause).__name__}: {first_line(failure.cause)}): give inputs that it takes, as "
            "trace(model, (x, y)) or trace(model, {'name': x})"
        ) from failure


@dataclass(frozen=True)
class _Remedy:
    """What may help where a class goes wrong: families of two units are let be, or some of its integers."""

    pairs: bool = False
    constants: frozenset[tuple[type, str]] = frozenset()


def _remedies(kind: type, structure: Structure, changed: Iterable[tuple[type, str]]) -> Iterator[_Remedy]:
    """One unit left of two may be a special case, as in `einsum`; an integer may be equal to a size by chance."""
    if any(family.size == 2 for family in structure.families):
        yield _Remedy(pairs=True)
    own = sorted((pair for pair in changed if pair[0] is kind), key=lambda pair: pair[1])
    yield from (_Remedy(constants=frozenset([pair])) for pair in own)
    if len(own) > 1:
        yield _Remedy(constants=frozenset(own))


def _tried(model: nn.Module, tape: Tape, inputs: Inputs, lossy: bool) -> Structure:
    """Remove units for a trial until the smaller model runs as foreseen.

    First with all integers that modules hold as they are; where that goes wrong, with those changed that seem to be
    sizes; then with one remedy after the other for the class at fault; and if none helps, its modules are frozen.
    """
    integers = frozenset((type(m), name) for m in model.modules() for name, value in vars(m).items() if is_whole(value))
    constants = integers
    frozen: dict[str, str] = {}
    left_to_try: dict[type, Iterator[_Remedy]] = {}
    current: dict[type, _Remedy] = {}
    reasons: dict[type, str] = {}  # the first of a class; with remedies it goes wrong in other ways
    again: set[type] = set()  # classes of which a module was frozen
    solution = solve(tape, frozenset(), lossy)
    while True:
        smallest = 3 if any(remedy.pairs for remedy in current.values()) else 2
        structure = structure_of(solution, dict(frozen), inputs, constants, smallest)
        outcome = trial(model, structure)
        if outcome.fault is None:
            return _settled(model, structure, outcome.changed)
        if outcome.asks_values:
            tape = _with_values(model, inputs)
            solution = solve(tape, frozenset(frozen), lossy)
            continue
        if constants == integers:
            constants = frozenset()
            continue
        module, reason = outcome.fault
        kind = _kind(model, module)
        reason = reasons.setdefault(kind, reason)
        remedies = left_to_try.setdefault(kind, _remedies(kind, structure, outcome.changed))
        current[kind] = next(remedies, _Remedy())
        constants = frozenset().union(*(remedy.constants for remedy in current.values()))
        if current[kind] != _Remedy():
            continue
        del reasons[kind]
        alike = _alike(model, module, frozen, kind in again)
        again.add(kind)
        if not alike:
            raise StructureError(
                f"{module or type(model).__name__}: {reason}, and freezing it does not help: "
                "remove channels by hand, or report the model"
            )
        frozen |= dict.fromkeys(alike, reason)
        solution = solve(tape, frozenset(frozen), lossy)


def _settled(model: nn.Module, structure: Structure, changed: Iterable[tuple[type, str]]) -> Structure:
    """`structure` with as few integers to change as its trial needs: a limit may be equal to a width, and the example
    not reach it."""
    for pair in sorted(changed, key=lambda pair: (pair[0].__qualname__, pair[1])):
        fewer = replace(structure, constants=structure.constants | {pair})
        if trial(model, fewer).fault is None:
            structure = fewer
    return structure


def _alike(model: nn.Module, name: str, frozen: Iterable[str], again: bool) -> list[str]:
    """What is frozen for a fault in `name`: the innermost module around it that is not torch's own, or if it happens
    `again` in its class, all of that class; with the torch modules directly in them. If all that is frozen already, the
    next one around it."""
    modules = dict(model.named_modules())
    while True:
        name = _owner(modules, name)
        alike = [n for n, module in modules.items() if type(module) is type(modules[name])] if again else [name]
        alike += [n for parent in alike for n in _own(modules, parent)]
        if new := sorted(set(alike) - set(frozen)):
            return new
        if not name:
            return []
        name = name.rpartition(".")[0]


def _owner(modules: dict[str, nn.Module], name: str) -> str:
    """The innermost module around `name`, or itself, that is not torch's own; or the model."""
    while name and type(modules[name]).__module__.startswith("torch.nn."):
        name = name.rpartition(".")[0]
    return name


def _kind(model: nn.Module, name: str) -> type:
    return type(model.get_submodule(_owner(dict(model.named_modules()), name)))


def _own(modules: dict[str, nn.Module], parent: str) -> Iterable[str]:
    """The modules of torch.nn under `parent` that no other class is around."""
    for child, module in modules[parent].named_children():
        if type(module).__module__.startswith("torch.nn."):
            name = f"{parent}.{child}" if parent else child
            yield name
            yield from _own(modules, name)
