"""Families alike: of which one number of units, as in a configuration, describes all; and units bundled by rank."""

import math
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from pruning.errors import GranularityError
from pruning.granularity import Units
from pruning.structure.coupling.families import Family, numberless


def kinds(families: Iterable[Family], equal: bool | tuple[str, ...]) -> list[tuple[Family, ...]]:
    """The families of one kind together, in the order of the first of each.

    Args:
        equal: False: each for itself. True: those of one kind and size whose slices lie in tensors of the same names,
            but for the numbers in them, as `h.0.mlp.c_fc.weight` and `h.1.mlp.c_fc.weight`. Globs of family names:
            also all those that the same glob matches, first come first served.

    Raises:
        GranularityError: families that one glob matches differ in size.
    """
    found: dict[object, list[Family]] = {}
    globs = equal if isinstance(equal, tuple) else ()
    for family in families:
        glob = next((glob for glob in globs if fnmatchcase(family.name, glob)), None)
        pattern = frozenset((numberless(name), dim) for name, dim in family.members)
        key: object = family.name if equal is False else (family.kind, family.size, pattern) if glob is None else glob
        found.setdefault(key, []).append(family)
        first = found[key][0]
        if glob is not None and first.size != family.size:
            raise GranularityError(
                f"equal={glob!r}: {first.name} has {first.size} units, {family.name} {family.size}: give one for each"
            )
    return [tuple(alike) for alike in found.values()]


def bundles(
    families: Sequence[Family],
    scores: Sequence[Tensor],
    alive: Sequence[Tensor],
    minimum: Sequence[int],
    multiple: Sequence[int],
) -> Units:
    """The units of families of one size: of each family the best, the second best, … together.

    A bundle has as many of each family, `multiple` (the least that is one of all), but for the last, which has what is
    left. It is worth the mean of the living ones, and dead where the families have not as many living ones in it.

    Args:
        scores, alive: [units] of each family.
        minimum, multiple: of each family; the largest minimum counts.
    """
    size, width = families[0].size, math.lcm(*multiple)
    count = -(-size // width)
    orders = [
        torch.argsort(torch.where(lives, own, -torch.inf), descending=True, stable=True)
        for own, lives in zip(scores, alive, strict=True)
    ]
    if len(families) == 1 and width == 1:  # in the order of the tensors
        orders = [torch.arange(size, device=scores[0].device)]
    ranked = torch.stack([own[order] for own, order in zip(scores, orders, strict=True)])
    lives = torch.stack([own[order] for own, order in zip(alive, orders, strict=True)])
    numbers = torch.stack([family.first + order.cpu() for family, order in zip(families, orders, strict=True)])
    pad = (0, count * width - size)
    lives = torch.nn.functional.pad(lives, pad).view(len(families), count, width)
    ranked = torch.nn.functional.pad(ranked, pad).view_as(lives).masked_fill(~lives, 0.0)
    members = torch.nn.functional.pad(numbers, pad, value=-1).view(len(families), count, width)
    living = lives.sum(2)
    return Units(
        scores=ranked.sum((0, 2)) / living.sum(0).clamp(min=1),
        alive=(living[0] > 0) & (living == living[0]).all(0),
        shape=torch.Size((size, 1)),
        minimum=-(-max(minimum) // width),
        members=members.transpose(0, 1).reshape(count, -1),
    )
