"""Overlap of masks: between scorers at one seed, and between seeds of one scorer."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations, combinations_with_replacement
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from experiments.records import as_dicts
from pruning import Masks

Loader = Callable[[Mapping[str, Any]], Masks | None]

_PRODUCT = 2**24
"""Numbers in a factor of a product: 64 MB, and no count that float32 cannot hold."""


def jaccard(masks: Sequence[Masks]) -> np.ndarray:
    """|A ∩ B| / |A ∪ B| of the weights kept by every two of n masks, over the tensors that both have: shape (n, n).

    1 where neither keeps any. Two independent masks of density d overlap by about d / (2 - d). Jaccard 1901.
    """
    holders: dict[tuple[str, torch.Size], list[int]] = {}
    for place, held in enumerate(masks):
        for name, mask in held.items():
            holders.setdefault((name, mask.shape), []).append(place)
    both, either = np.zeros((2, len(masks), len(masks)), np.int64)
    for (name, _), places in holders.items():
        common = _common([masks[place][name] for place in places])
        kept, at = common.diagonal(), np.ix_(places, places)
        both[at] += common
        either[at] += kept[:, None] + kept - common
    return np.divide(both, either, out=np.ones(both.shape), where=either > 0)


def _common(masks: Sequence[Tensor]) -> np.ndarray:
    """Counts of places that every two masks, of one shape, both keep: a product of matrices, exact in float32."""
    found = torch.zeros(len(masks), len(masks), dtype=torch.int64)
    for parts in zip(*(torch.split(mask.flatten(), max(1, _PRODUCT // len(masks))) for mask in masks), strict=True):
        part = torch.stack(parts).float()
        found += (part @ part.T).long()
    return found.numpy()


def overlaps(points: pd.DataFrame, load: Loader) -> pd.DataFrame:
    """The mean Jaccard index for every requested density and pair of methods; `load` gives the masks of a row.

    Columns: `requested_density`, `method`, `other`, `jaccard` (mean over pairs), `n` (pairs), `chance` (of two
    independent masks of the realised densities). Of two methods, pairs share the dense network, and so seed, model and
    data; of a method and itself, a pair is of two seeds. `points` are those of `statistics.points`; pairs that there
    are none of have no row.
    """
    rows = []
    for requested, at in points.groupby("requested_density", sort=False):
        loaded = {(row["method"], (row["dense"], row["seed"])): load(row) for row in as_dicts(at)}
        masks = {key: found for key, found in loaded.items() if found is not None}
        index = jaccard(list(masks.values()))
        place = {key: number for number, key in enumerate(masks)}
        density = at.groupby("method", sort=False)["density"].mean()
        for method, other in combinations_with_replacement(density.index, 2):
            found = [index[place[one], place[two]] for one, two in _pairs(place, method, other)]
            a, b = float(density[method]), float(density[other])
            if found:
                rows.append(
                    {
                        "requested_density": requested,
                        "method": method,
                        "other": other,
                        "jaccard": float(np.mean(found)),
                        "n": len(found),
                        "chance": a * b / (a + b - a * b) if a + b else 1.0,
                    }
                )
    return pd.DataFrame(rows, columns=["requested_density", "method", "other", "jaccard", "n", "chance"])


Key = tuple[str, tuple[str, int]]
"""The method of a mask, and the dense network and seed that it is of: a pretrained network is one for all seeds."""


def _pairs(keys: Iterable[Key], method: str, other: str) -> list[tuple[Key, Key]]:
    """The keys of two masks each that are compared."""
    starts = {name: [dense for of, dense in keys if of == name] for name in (method, other)}
    if method == other:
        return [((method, a), (method, b)) for a, b in combinations(starts[method], 2)]
    return [((method, dense), (other, dense)) for dense in starts[method] if dense in starts[other]]
