"""python -m experiments.replications.xor: one deletion from a network that solves XOR, Hassibi & Stork 1993, section 5.

They find that only OBS takes a weight whose loss the others can make up for: the network still solves XOR, without
retraining. (Were "right" the weight with the lowest loss after retraining, magnitude would find it, too.)
"""

import argparse
import sys
from collections.abc import Sequence
from copy import deepcopy

import pandas as pd
import torch
from matplotlib import style
from matplotlib.figure import Figure

from experiments.replications.claims import Claim, Study, arguments, run
from experiments.replications.sigmoid import METHODS, Problem, Sigmoids, train, without_one
from experiments.results.figures import COLOURS, STYLE
from pruning import Masks, prunable
from pruning.errors import DataError

XOR = Problem(
    inputs=torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], dtype=torch.float64),
    targets=torch.tensor([[0.0], [1.0], [1.0], [0.0]], dtype=torch.float64),
    hidden=2,
    decay=1e-4,
)


def deletions(seeds: Sequence[int]) -> pd.DataFrame:
    """A row an initialisation that solves XOR, and method: how many of the four are right after one deletion."""
    rows = []
    for seed in seeds:
        dense = Sigmoids(2, XOR.hidden, seed)
        train(dense, XOR)
        if XOR.right(dense) < 4:
            continue
        for method in METHODS:
            network = deepcopy(dense)
            without_one(network, XOR, method, Masks.dense(prunable(network)))
            rows.append({"seed": seed, "method": method, "right": XOR.right(network)})
    if not rows:
        raise DataError("xor: no initialisation solves it: give more or other --seeds")
    return pd.DataFrame(rows)


def solved(rows: pd.DataFrame) -> dict[str, int]:
    """The number of networks that still solve XOR, by method."""
    return {method: int((rows[rows["method"] == method]["right"] == 4).sum()) for method in METHODS}


@style.context(["default", STYLE])
def draw(rows: pd.DataFrame) -> Figure:
    """Bars: the share that still solves XOR."""
    figure = Figure(figsize=(3.6, 2.6), layout="constrained")
    panel = figure.subplots()
    total = rows["seed"].nunique()
    counts = solved(rows)
    bars = panel.bar(list(counts), [100 * count / total for count in counts.values()], color=COLOURS[:3], width=0.6)
    panel.bar_label(bars, [f"{count} of {total}" for count in counts.values()], padding=2, fontsize=8)
    panel.set_ylim(0, 112)
    panel.set_yticks(range(0, 101, 25))
    panel.grid(visible=False, axis="x")
    panel.set_ylabel("Still solve XOR (%)")
    panel.set_title("After one deletion, not retrained")
    return figure


def study(options: argparse.Namespace) -> Study:
    """One deletion from every network."""
    rows = deletions(options.seeds)
    total = rows["seed"].nunique()
    counts = solved(rows)
    claims = [
        Claim("OBS: share that still solves XOR", "all", counts["OBS"] / total, 1.0, 1.0, f"{counts['OBS']}/{total}"),
        *(
            Claim(f"{m}: share that still solves XOR", "few", counts[m] / total, None, 0.5, f"{counts[m]}/{total}")
            for m in METHODS[1:]
        ),
    ]
    notes = f"{total} of {len(options.seeds)} initialisations solve XOR"
    return Study("Hassibi & Stork 1993: XOR after one deletion", claims, rows, draw(rows), notes)


if __name__ == "__main__":
    sys.exit(run("xor", study, arguments(__doc__, seeds=range(60)).parse_args()))
