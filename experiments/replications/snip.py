"""python -m experiments.replications.snip: SNIP before training, beside random and beside magnitude after training.

Lee et al. 2019, table 1: LeNet-300-100 on MNIST has 1.7 % error dense, 1.6 % at 95 % sparsity and 2.4 % at 98 % when
SNIP prunes it at initialisation; section 5.1: "negligible loss" at 90 %. Magnitude, with training before and after
(Han et al. 2015), has 1.6 % at 91.7 %. That SNIP is better than random masks is in Frankle et al. 2021.

The embedded 5,000 digits (3,600 to train) give an error three times as large, so gaps to the dense network are
compared, not errors: within a point at 90 and 95 %, as the standard error of an error of 5 % on 1,000 test digits is
0.7 points, and within two at 98 %, where the paper's gap is four tenths of its dense error. On MNIST: half a point.

Found on these digits: as published at 90 %, but 2 and 4 points behind the dense network at 95 and 98 %, so these two
claims are outside. The training error is nought, and three times as many epochs, tried for one seed, do not help.
"""

import argparse
from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from experiments import data
from experiments.data import Splits
from experiments.replications import dots
from experiments.replications.at_initialisation import batch, cross_entropy, ends, initial, paired, trained
from experiments.replications.claims import Claim, Study, arguments, run
from experiments.results.figures.axes import percent
from experiments.results.intervals import mean_interval
from pruning import Evidence, prunable, prune, scorers

ERROR = "test_error_(%)"
DENSITIES = (0.1, 0.05, 0.02)
EPOCHS = 40
SNIP, RANDOM, MAGNITUDE, DENSE = "SNIP, then trained", "random, then trained", "trained, magnitude, fine-tuned", "dense"
TOLERANCES = {"mnist5k": (1.0, 1.0, 2.0), "mnist": (0.5, 0.5, 0.5)}
GAPS = (("about 0", 0.0), ("-0.1", -0.1), ("+0.7", 0.7))


def measure(
    splits: Splits, seed: int, epochs: int = EPOCHS, densities: Sequence[float] = DENSITIES, **network: Any
) -> list[dict[str, Any]]:
    """The test errors of one seed: all start from the same weights, and masks of a scorer from one scoring.

    Fine-tuning takes half the epochs, from a tenth of the learning rate.
    """
    start = initial(splits.train, seed, **network)
    examples = [batch(splits.train, 100, seed)]
    dense = deepcopy(start)
    error = trained(dense, splits, epochs, seed)
    rows = [{"method": DENSE, "seed": seed, "requested_density": 1.0, "density": 1.0, ERROR: error}]
    plans = {
        SNIP: (start, scorers.snip, epochs, 0.1),
        RANDOM: (start, partial(scorers.random, seed=seed), epochs, 0.1),
        MAGNITUDE: (dense, scorers.magnitude, epochs // 2, 0.01),
    }
    for method, (origin, scorer, duration, rate) in plans.items():
        scores = scorer(Evidence(origin, prunable(origin), examples, cross_entropy))
        for density in densities:
            masks = prune(scores, density)
            error = trained(deepcopy(origin), splits, duration, seed, masks, rate)
            row = {"method": method, "seed": seed, "requested_density": density, "density": masks.density, ERROR: error}
            rows.append(row)
    return rows


def claims(rows: pd.DataFrame, tolerances: Sequence[float]) -> list[Claim]:
    """Differences in points of error, of the same seeds; [95 % t-intervals]."""

    def at(method: str, density: float) -> Mapping[str, object]:
        return {"method": method, "requested_density": density}

    dense = at(DENSE, 1.0)
    error = mean_interval(rows[rows["method"] == DENSE][ERROR].tolist())
    found = [Claim("dense: error in %", "1.7 (60,000 digits)", error.mean, spread=ends(error))]
    for density, (paper, gap), room in zip(DENSITIES, GAPS, tolerances, strict=True):
        difference = paired(rows, ERROR, at(SNIP, density), dense)
        text = f"SNIP - dense at {percent(density)}"
        found.append(Claim(text, paper, difference.mean, gap - room, gap + room, ends(difference)))
    for density in DENSITIES[1:]:
        difference = paired(rows, ERROR, at(RANDOM, density), at(SNIP, density))
        text = f"random - SNIP at {percent(density)}, lower end of the interval"
        found.append(Claim(text, "above 0", difference.low, 0.0, None, f"(mean {difference.mean:.1f})"))
    difference = paired(rows, ERROR, at(MAGNITUDE, DENSITIES[0]), dense)
    text = f"magnitude and fine-tuning - dense at {percent(DENSITIES[0])}"
    room = tolerances[0]
    return [*found, Claim(text, "-0.1 (91.7 %)", difference.mean, -0.1 - room, -0.1 + room, ends(difference))]


def draw(rows: pd.DataFrame) -> Figure:
    """Errors by sparsity; the line is the dense network's."""
    errors = rows.groupby(["requested_density", "method"])[ERROR].apply(list)
    methods = (SNIP, MAGNITUDE, RANDOM)
    densities = sorted(set(rows["requested_density"]) - {1.0}, reverse=True)
    groups = {percent(d): {method: errors[d, method] for method in methods} for d in densities}
    return dots.draw(groups, errors[1.0, DENSE], DENSE, "Sparsity of the weights")


def study(options: argparse.Namespace) -> Study:
    """All seeds, on the data that were asked for."""
    splits = getattr(data, options.data)()
    rows = pd.DataFrame([row for seed in options.seeds for row in measure(splits, seed, options.epochs)])
    title = f"Lee et al. 2019, table 1: LeNet-300-100 on {options.data}, {options.epochs} epochs; points of test error"
    return Study(f"{title}, mean [95 % t-interval]", claims(rows, TOLERANCES[options.data]), rows, draw(rows))


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; the exit code."""
    parser = arguments(__doc__)
    parser.add_argument("--data", choices=list(TOLERANCES), default="mnist5k")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of a full training; 30 of them are run")
    return run("snip", study, parser.parse_args(argv))


if __name__ == "__main__":
    raise SystemExit(main())
