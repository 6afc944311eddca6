"""python -m experiments.replications.collapse: how far networks can be compressed before a layer is empty.

Tanaka et al. 2020 (SynFlow), figures 1 and 2. At the maximal compression N/L one of N weights is left in each of L
layers. They find that pruning at initialisation in one round empties a layer orders of magnitude before that, and that
SynFlow in 100 rounds does not. Networks without biases, noise as inputs, labels by chance; nothing is trained.

The paper gives orders, not numbers, for these networks. What it says "elsewhere" are min and max of another run of such
a set-up; medians may lie two steps of the grid of 0.1 outside them. SNIP and GraSP collapse the earlier, the more
examples they see (SNIP on LeNet-300-100: 10^3.0 with 16, 10^1.8 with 1,000); 256 are the default of the authors' code.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median

import pandas as pd
import torch
from matplotlib import style
from matplotlib.figure import Figure
from torch import nn

from experiments.models import mlp
from experiments.replications.at_initialisation import cross_entropy, pruned
from experiments.replications.claims import Claim, Study, arguments, run, span
from experiments.results.figures import COLOURS, MARKERS, STYLE
from experiments.runtime.seeding import generator, seeded
from pruning import Evidence, Masks, prunable, prune, schedules, scorers
from pruning.evidence import Scorer

NETWORKS = {"LeNet-300-100": (300, 100), "MLP 6 x 100": (100,) * 6}
ROUNDS = 100
EXAMPLES = 256
SYNFLOW = f"SynFlow, {ROUNDS} rounds"
TOLERANCE = 0.2

ELSEWHERE = {
    "LeNet-300-100": {
        "random": (2.8, 3.4),
        "magnitude": (3.0, 3.2),
        "SNIP": (2.1, 2.3),
        "GraSP": (2.1, 2.2),
        "SynFlow, 1 round": (1.2, 1.2),
    },
    "MLP 6 x 100": {
        "magnitude": (1.3, 1.4),
        "SNIP": (1.6, 1.9),
        "GraSP": (1.6, 1.8),
        "SynFlow, 1 round": (0.6, 0.6),
    },
}


def grid(weights: int, layers: int, step: float = 0.1) -> list[float]:
    """log10 compressions in steps of `step` below the maximum N/L, and the maximum itself."""
    maximum = math.log10(weights / layers)
    return [*(round(step * k, 6) for k in range(1, math.ceil(maximum / step - 1e-9))), maximum]


def critical(masks_at: Callable[[float], Masks], compressions: Sequence[float]) -> float:
    """The largest of the ascending log10 `compressions` at which no layer is empty; 0 if there is none."""
    return next((c for c in reversed(compressions) if not masks_at(10**-c).emptied), 0.0)


def methods(model: nn.Module, inputs: int, classes: int, seed: int) -> dict[str, Callable[[float], Masks]]:
    """Name of a method → function from a density to the masks of `model`."""
    draws = generator(seed, "noise")
    batches = [(torch.randn(EXAMPLES, inputs, generator=draws), torch.randint(classes, (EXAMPLES,), generator=draws))]

    def at_once(scorer: Scorer) -> Callable[[float], Masks]:
        return partial(prune, scorer(Evidence(model, prunable(model), batches, cross_entropy)))

    def in_rounds(density: float) -> Masks:
        return pruned(model, scorers.synflow, schedules.exponential(density, rounds=ROUNDS)[1:], batches)

    return {
        "random": at_once(partial(scorers.random, seed=seed)),
        "magnitude": at_once(scorers.magnitude),
        "SNIP": at_once(scorers.snip),
        "GraSP": at_once(scorers.grasp),
        "SynFlow, 1 round": at_once(scorers.synflow),
        SYNFLOW: in_rounds,
    }


def measure(
    name: str, hidden: Sequence[int], seed: int, inputs: int = 784, classes: int = 10
) -> list[dict[str, object]]:
    """One row a method: log10 of the critical compression of one network."""
    with seeded(seed, "initialisation"):
        model = mlp([inputs], classes, hidden=hidden, bias=False, init="kaiming_normal")
    sizes = [weight.numel() for weight in prunable(model).values()]
    compressions = grid(sum(sizes), len(sizes))
    return [
        {
            "network": name,
            "method": method,
            "seed": seed,
            "weights": sum(sizes),
            "log10_critical": critical(masks_at, compressions),
            "log10_maximum": compressions[-1],
        }
        for method, masks_at in methods(model, inputs, classes, seed).items()
    ]


def claims(rows: pd.DataFrame) -> list[Claim]:
    """The median over seeds of each method on each network."""
    found = []
    for (network, method), group in rows.groupby(["network", "method"], sort=False):
        values, maximum = group["log10_critical"].tolist(), float(group["log10_maximum"].iloc[0])
        paper, low, high = f"below {maximum:.2f}", None, maximum - 0.5
        if method == SYNFLOW:
            paper, low, high = f"N/L, {maximum:.2f}", maximum - 0.1, None
        elif method in ELSEWHERE.get(network, {}):
            least, most = ELSEWHERE[network][method]
            paper, low, high = f"{paper}; elsewhere {least} to {most}", least - TOLERANCE, most + TOLERANCE
        found.append(Claim(f"{network}, {method}", paper, median(values), low, high, span(values)))
    return found


@style.context(["default", STYLE])
def draw(rows: pd.DataFrame) -> Figure:
    """A dot a seed, and the maximum as a line."""
    networks, names = list(rows["network"].unique()), list(rows["method"].unique())
    figure = Figure(figsize=(6.5, 2.6), layout="constrained")
    for panel, network in zip(figure.subplots(1, len(networks), sharey=True, squeeze=False)[0], networks, strict=True):
        some = rows[rows["network"] == network]
        for place, method in enumerate(names):
            values = some[some["method"] == method]["log10_critical"]
            colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
            panel.hlines(place, values.min(), values.max(), color=colour, zorder=2)
            panel.plot(values, [place] * len(values), marker, color=colour, markersize=6, mec="white", zorder=3)
        panel.axvline(some["log10_maximum"].iloc[0], color="black", linestyle="--", linewidth=1, zorder=1)
        panel.set_title(f"{network}, {some['weights'].iloc[0]:,} weights")
        panel.set_yticks(range(len(names)), names)
        panel.set_xlim(0, rows["log10_maximum"].max() + 0.3)
    panel.set_ylim(len(names) - 0.5, -0.5)
    figure.supxlabel("log10 of the largest compression without an empty layer (dashed: one weight a layer)", fontsize=9)
    return figure


def study(options: argparse.Namespace) -> Study:
    """All networks, methods and seeds."""
    rows = pd.DataFrame(
        [row for name, hidden in NETWORKS.items() for seed in options.seeds for row in measure(name, hidden, seed)]
    )
    return Study(
        "Tanaka et al. 2020: log10 of the critical compression, median [min, max]", claims(rows), rows, draw(rows)
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; the exit code."""
    return run("collapse", study, arguments(__doc__).parse_args(argv))


if __name__ == "__main__":
    raise SystemExit(main())
