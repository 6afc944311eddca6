"""Configurations of transformers models: made to describe what is left, or saving through transformers is refused.

`from_pretrained` builds a model from its configuration alone and gives random values to whatever the file lacks. So a
model that lost units or blocks may be saved by `save_pretrained` only if the configuration builds just this model:
tested by building it, on the meta device, after a round through the configuration's own file format.
"""

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from pruning.copying import cloned
from pruning.errors import StructureError
from pruning.inputs import Inputs
from pruning.parameters import within
from pruning.structure.coupling.families import numberless
from pruning.structure.removing.built import attribute, built_of, difference_of, other_table, shapes_of, values_of
from pruning.structure.removing.deleting import Left, delete_, numbered, restore_, skipped
from pruning.structure.removing.fitting import fitting, shortened
from pruning.structure.removing.verifying import unchanged

Odd = Mapping[str, frozenset[str]]
"""Name of a transformers model → tensors that its configuration makes, and that it was constructed without."""


@dataclass(frozen=True)
class Unsaveable:
    """What `save_pretrained` is, of a model that no configuration describes."""

    model: str
    reason: str

    def __call__(self, *_: Any, **__: Any) -> None:
        raise StructureError(
            f"{self.model}: {self.reason}, so from_pretrained would fail or load random weights: use "
            "pruning.structure.save(model, path), and load(path, model) with the model as it was built before"
        )


def pretrained_in(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The outermost transformers models in `model`: itself, or a backbone."""
    found: list[str] = []
    for name, module in model.named_modules():
        if any(outer == "" or name.startswith(f"{outer}.") for outer in found):
            continue
        methods = [getattr(module, key, None) for key in ("save_pretrained", "from_pretrained")]
        methods += [getattr(getattr(module, "config", None), key, None) for key in ("to_dict", "from_dict")]
        if all(callable(method) for method in methods):
            found.append(name)
            yield name, module


def odd_names(model: nn.Module) -> Odd:
    """The tensors that transformers models in `model` lack, as without a pooling layer, before anything is removed.

    Those of layers, which have a number in their name, do not count: they were taken out.
    """
    found = {}
    for name, part in pretrained_in(model):
        built = built_of(part, part.config)
        more = () if isinstance(built, str) else shapes_of(built).keys() - shapes_of(part).keys()
        found[name] = frozenset(key for key in more if numberless(key) == key)
    return found


def settle_(
    model: nn.Module, odd: Odd, left: Left | None = None, inputs: Inputs | None = None
) -> dict[str, tuple[int, ...]]:
    """Delete skipped blocks of transformers models in `model`, and let configurations describe what there is.

    Where none does, `save_pretrained` raises from now on, and says why.

    Args:
        left: lists whose blocks were deleted already, and what was left of them.
        inputs: of `model`. Whole numbers that its modules have kept though they do not use them become those of a
            model that is built again, if the outputs stay the same; without inputs none may differ.

    Returns:
        The lists that are shorter now, and what is left of them.
    """
    found: dict[str, tuple[int, ...]] = dict(left or {})
    for name, part in pretrained_in(model):
        for module in part.modules():
            if isinstance(vars(module).get("save_pretrained"), Unsaveable):
                del module.save_pretrained
        prefix = within(name, "")
        own = {key[len(prefix) :]: places for key, places in found.items() if key.startswith(prefix)}
        reason = _settled_(part, model, odd.get(name, frozenset()), own, inputs)
        found |= {prefix + key: places for key, places in own.items()}
        if reason is not None:
            for module in part.modules():
                if callable(getattr(module, "save_pretrained", None)):
                    module.save_pretrained = Unsaveable(type(part).__name__, reason)  # type: ignore[assignment]  # to torch, a tensor or module
    return found


def _settled_(
    part: nn.Module, model: nn.Module, odd: frozenset[str], left: dict[str, tuple[int, ...]], inputs: Inputs | None
) -> str | None:
    """`settle_` one of the models in `model`; None, or why no configuration describes it. Adds to `left`."""
    kind = type(part.config).__name__
    built = built_of(part, part.config)
    if isinstance(built, str):
        return f"it cannot be built from its configuration ({built})"
    deleted = {} if left else skipped(part)
    before = delete_(part, deleted)
    left |= deleted
    if left:
        found, built = shortened(part, built, left, odd)
        undo = _renumber_(part, built, left)
        difference = difference_of(part, built, odd)
        if difference.names or difference.factors:
            _undo_(undo)
            restore_(part, before)
            for name in before:
                del left[name]
            return f"blocks are gone that {kind} cannot leave out ({difference.words})"
        _adopt_(part, found, built)
    own = difference_of(part, built, odd).numbers  # neither what the old configuration says, nor the new one
    fits = fitting(part, odd)
    words = min((fit[0] for fit in fits), key=lambda found: found.size).words
    for difference, found, made in fits:
        others = [key for key in difference.numbers if key in own and type(attribute(part, *key)) is int]
        if others and not difference.grave:
            name, key = others[0]
            words = f"{name}.{key} is {attribute(part, name, key)}, not {attribute(made, name, key)}"
        if difference.grave or others or (difference.numbers and inputs is None):
            continue
        twin = cloned(model) if difference.numbers else model
        undo = [*_agree_(part, made, difference.numbers), *_adopt_(part, found, made)]
        if inputs is None or not difference.numbers or unchanged(twin, model, inputs):
            table = other_table(part, found)
            if table is None:
                return None
            words = table
        _undo_(undo)
    return f"no {kind} describes it ({words})"


_Undo = list[tuple[dict[str, Any], str, Any]]
"""(attributes, name, value) as they were; `_MISSING`, where there was none."""

_MISSING = object()


def _set_(holder: Any, name: str, value: Any, undo: _Undo) -> None:
    """Set an attribute, unchecked: values of a configuration are checked together, when it is read."""
    undo.append((vars(holder), name, vars(holder).get(name, _MISSING)))
    vars(holder)[name] = value


def _undo_(undo: _Undo) -> None:
    for attributes, name, value in reversed(undo):
        attributes[name] = value
        if value is _MISSING:
            del attributes[name]


def _renumber_(part: nn.Module, built: nn.Module, left: Left) -> _Undo:
    """Give blocks their new numbers, as `layer_idx`: integers that are the old place here, the new one in `built`."""
    undo: _Undo = []
    others = dict(built.named_modules())
    for name, module, old, new in numbered(part, left):
        for key, value in list(vars(module).items()):
            other = vars(others[name]).get(key) if name in others else None
            if old != new and type(value) is int and value == old and type(other) is int and other == new:
                _set_(module, key, new, undo)
    return undo


def _agree_(part: nn.Module, built: nn.Module, numbers: Iterable[tuple[str, str]]) -> _Undo:
    """Give modules the whole numbers that they have in `built`."""
    undo: _Undo = []
    for name, key in numbers:
        _set_(part.get_submodule(name), key, attribute(built, name, key), undo)
    return undo


def _adopt_(part: nn.Module, found: Any, built: nn.Module) -> _Undo:
    """Give all configurations in `part` the values that `found`, which builds `built`, has other than its own."""
    undo: _Undo = []
    old = {(owner, name): value for owner, name, value in values_of(part.config)}
    changes = {(o, n): value for o, n, value in values_of(found) if (o, n) not in old or old[o, n] != value}
    others = dict(built.named_modules())
    for (owner, name), value in changes.items():
        holder: Any = part.config
        for outer in owner:
            holder = getattr(holder, outer)
        _set_(holder, name, copy.deepcopy(value), undo)
    for name, module in part.named_modules():
        own, other = (getattr(m, "config", None) for m in (module, others.get(name)))
        if own is not None and other is not None and own is not part.config and hasattr(own, "to_dict"):
            for _, key in changes:
                if key in vars(other):
                    _set_(own, key, copy.deepcopy(vars(other)[key]), undo)
    return undo
