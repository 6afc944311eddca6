"""Which configuration builds a model like this one: found by trying values in the ratios in which tensors shrank."""

from collections.abc import Iterator
from typing import Any

from torch import nn

from pruning.structure.coupling.families import numberless
from pruning.structure.removing.built import Difference, Key, built_of, changed, difference_of, shapes_of, values_of
from pruning.structure.removing.deleting import Left

Fit = tuple[Difference, Any, nn.Module]
"""How a model differs from what a configuration builds; the configuration; what it builds."""


def shortened(part: nn.Module, built: nn.Module, left: Left, odd: frozenset[str]) -> tuple[Any, nn.Module]:
    """A configuration with fewer layers, and what it builds: numbers of layers, and lists of one entry a layer."""
    found = part.config
    for places in left.values():
        best = len(difference_of(part, built, odd).names)
        for owner, name, value in values_of(found):
            if "layer" not in name or type(value) is not int or value <= len(places) or value <= max(places, default=0):
                continue
            changes: dict[Key, Any] = {(owner, name): len(places)}
            for other, key, entries in values_of(found):
                if other == owner and isinstance(entries, list | tuple) and len(entries) == value:
                    changes[other, key] = type(entries)(entries[i] for i in places)
            tried = changed(found, changes)
            made = built_of(part, tried)
            if isinstance(made, str):
                continue
            names = len(difference_of(part, made, odd).names)
            if names < best:
                found, built = tried, made
                break
    return found, built


def fitting(part: nn.Module, odd: frozenset[str]) -> list[Fit]:
    """Configurations that build a model like `part`, found by trying; the most alike first, and one at least.

    Values that may be sizes are changed in the ratios in which tensors shrank, the one that helps most first; then
    again with another one first, as the product of two may be all that shows.
    """
    base = part.config
    starts = [base]
    heads, width = (getattr(base, name, None) for name in ("num_attention_heads", "hidden_size"))
    if getattr(base, "head_dim", None) is None and type(heads) is int and type(width) is int and width % heads == 0:
        starts.append(changed(base, {((), "head_dim"): width // heads}))  # else it follows from the number of heads
    found: list[Fit] = []
    for start in starts:
        built = built_of(part, start)
        if isinstance(built, str):
            continue
        first = difference_of(part, built, odd), start, built
        found.append(first)
        pairs = frozenset(first[0].sizes) | {(size, size) for shape in shapes_of(part).values() for size in shape}
        if not first[0].names and _alike(part, built):
            found += [_followed(part, fit, pairs, odd) for fit in _better(part, first, pairs, odd)]
        if not first[0].size:
            break
    return sorted(found, key=lambda fit: (fit[0].grave > 0, fit[0].size))


_Pairs = frozenset[tuple[int, int]]
"""Sizes before and after, also of what has stayed."""


def _followed(part: nn.Module, fit: Fit, pairs: _Pairs, odd: frozenset[str]) -> Fit:
    """Where the steps that help most lead."""
    while fit[0].size and (better := _better(part, fit, pairs, odd)):
        fit = better[0]
    return fit


def _better(part: nn.Module, fit: Fit, pairs: _Pairs, odd: frozenset[str]) -> list[Fit]:
    """Configurations with one value changed that are closer to `part`, the closest first."""
    tried = [(config, built_of(part, config)) for config in _candidates(fit[1], pairs)]
    fits = [(difference_of(part, built, odd), config, built) for config, built in tried if not isinstance(built, str)]
    return sorted((other for other in fits if other[0].size < fit[0].size), key=lambda other: other[0].size)


def _alike(part: nn.Module, built: nn.Module) -> bool:
    """Whether tensors of the same names, but for the numbers in them, and of one size had the same part removed."""
    known: dict[object, int] = {}
    others = shapes_of(built)
    for name, shape in shapes_of(part).items():
        for dim, (size, before) in enumerate(zip(shape, others.get(name, shape), strict=True)):
            if known.setdefault((numberless(name), dim, before), size) != size:
                return False
    return True


def _candidates(config: Any, pairs: _Pairs) -> Iterator[Any]:
    """Configurations with one value changed, or all that are equal to it."""
    together: dict[tuple[int, int], list[Key]] = {}
    for owner, name, value in values_of(config):
        sizes: set[int] = set()
        if type(value) is int and value > 1 and not any(word in name for word in _NO_SIZES):
            sizes = {value * after // before for before, after in pairs if value * after % before == 0}
        elif value is None and name in _DERIVED:
            sizes = {after for _, after in pairs}
        for size in sorted(sizes):
            if size not in (value, 0):
                yield changed(config, {(owner, name): size})
                if value is not None:
                    together.setdefault((value, size), []).append((owner, name))
    yield from (changed(config, dict.fromkeys(keys, size)) for (_, size), keys in together.items() if len(keys) > 1)


_NO_SIZES = ("vocab", "token", "position", "label", "layers", "version")
_DERIVED = ("n_inner", "intermediate_size", "ffn_dim", "d_ff")
"""Sizes that follow from others where the configuration does not give them."""
