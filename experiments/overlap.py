"""How much masks have in common: between scorers at one seed, and between seeds of one scorer."""

from collections.abc import Callable, Mapping
from itertools import combinations, combinations_with_replacement
from typing import Any

import numpy as np
import pandas as pd

from pruning import Masks

Loader = Callable[[Mapping[str, Any]], Masks | None]


def jaccard(one: Masks, other: Masks) -> float:
    """|A ∩ B| / |A ∪ B| of the weights kept by two masks over the tensors that both have; 1 where neither keeps any.

    Two independent masks of density d overlap by about d / (2 - d). Jaccard 1901.
    """
    names = [name for name in one if name in other]
    both = sum(int((one[name] & other[name]).sum()) for name in names)
    either = sum(int((one[name] | other[name]).sum()) for name in names)
    return both / either if either else 1.0


def overlaps(points: pd.DataFrame, load: Loader) -> pd.DataFrame:
    """The mean Jaccard index for every requested density and pair of methods; `load` gives the masks of a row.

    Columns: `requested_density`, `method`, `other`, `jaccard` (mean over pairs), `n` (pairs), `chance` (of two
    independent masks of the realised densities). Of two methods, pairs share the dense network, and so seed, model and
    data; of a method and itself, a pair is of two seeds. `points` are those of `statistics.points`; pairs that there
    are none of have no row.
    """
    rows = []
    for requested, at in points.groupby("requested_density", sort=False):
        masks = {(row["method"], row["dense"]): load(row) for row in at.to_dict("records")}
        density = at.groupby("method", sort=False)["density"].mean()
        for method, other in combinations_with_replacement(density.index, 2):
            found = [
                jaccard(one, two) for one, two in _pairs(masks, method, other) if one is not None and two is not None
            ]
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


def _pairs(
    masks: Mapping[tuple[str, int], Masks | None], method: str, other: str
) -> list[tuple[Masks | None, Masks | None]]:
    starts = {name: [dense for of, dense in masks if of == name] for name in (method, other)}
    if method == other:
        return [(masks[method, a], masks[method, b]) for a, b in combinations(starts[method], 2)]
    return [(masks[method, dense], masks[other, dense]) for dense in starts[method] if dense in starts[other]]
