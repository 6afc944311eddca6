"""python -m experiments.replications.adaptation: published claims about training little of a network.

Hu et al. 2022 (LoRA), table 6: rank 1 is about as good as rank 8 (query and value of GPT-3: 73.4 and 73.8 on WikiSQL,
91.3 and 91.6 on MultiNLI). Ansell et al. 2022 (LT-SFT): the weights that full fine-tuning moves most are a better
support than random ones. Houlsby et al. 2019: adapters come within 0.4 points of full fine-tuning on GLUE with 3.6 % of
its weights. That a support should be chosen by data and not by size, and that merging LoRA into a pruned network fills
its zeros while an update within the survivors does not, is what papers on fine-tuning sparse models take for granted.

Here the upper half of MiniLM on 20 Newsgroups, as in experiment=adaptation: learning rates are searched on validation
texts for every method, alike. Accuracies are points of the test part, differences those of the same seeds.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from experiments.replications import composed, dots
from experiments.replications.at_initialisation import ends, paired
from experiments.replications.claims import Claim, Study, arguments, run
from experiments.results.intervals import mean_interval

ACCURACY, ERROR = "test_accuracy_(%)", "test_error_(%)"
SMALL, LARGE = "lora:1", "lora:8"
HEAD, FULL, LORA, ADAPTERS = "head alone", "full", "LoRA", "adapters"
CHANGE, RANDOM, MAGNITUDE, GRADIENT = "largest changes", "random", "magnitude", "gradient"
METHODS: dict[str, tuple[str, ...]] = {
    HEAD: ("adaptation=head",),
    FULL: ("adaptation=full",),
    LORA: ("adaptation=lora",),
    ADAPTERS: ("adaptation=adapters",),
    CHANGE: ("adaptation=lt_sft", f"adaptation.budget=['{SMALL}']"),
    **{
        name: (
            "adaptation=sparse",
            f"adaptation.budget=['{SMALL}']",
            f"adaptation.scorer._target_=pruning.scorers.{name}",
        )
        for name in (RANDOM, MAGNITUDE, GRADIENT)
    },
}
PRUNED = {
    "LoRA merged": ("adaptation=lora_filling",),
    "within survivors": ("adaptation=sparse",),
}


def measure(options: argparse.Namespace) -> pd.DataFrame:
    """One row a network: method, seed, budget, density, trained weights, filled zeros, accuracy."""
    common = ["experiment=adaptation", *options.overrides]
    halved = ("density=0.5", f"adaptation.budget=['{SMALL}']")
    found = []
    for seed in options.seeds:
        runs = {name: (*common, *given) for name, given in METHODS.items()}
        runs |= {name: (*common, *given, *halved) for name, given in PRUNED.items()}
        for method, overrides in runs.items():
            name = f"{method.replace(' ', '_')}-seed{seed}"
            rows = composed.rows(options.folder / "adaptation", name, [*overrides, f"seed={seed}"])
            rows = rows[rows["level"] > 0].assign(method=method)
            rows["budget"] = rows["adaptation_budget"].fillna("")
            rows["trained"], rows["filled"] = rows["adaptation_trained"], rows["adaptation_filled"]
            rows[ACCURACY], rows[ERROR] = 100 * rows["test_accuracy"], 100 * (1 - rows["test_accuracy"])
            rows["removed"] = round(0.5 * rows["prunable"])
            columns = ["method", "seed", "budget", "requested_density", "density", "trained", "filled", "removed"]
            found.append(rows[[*columns, ACCURACY, ERROR]])
    return pd.concat(found, ignore_index=True)


def claims(rows: pd.DataFrame) -> list[Claim]:
    """Differences in points of accuracy, of the same seeds; [95 % t-intervals]."""

    def better(one: str, other: str, size: str = "", other_size: str = "") -> tuple[float, str]:
        pair = [{"method": m} | ({"budget": b} if b else {}) for m, b in ((one, size), (other, other_size))]
        difference = paired(rows, ACCURACY, *pair)
        return difference.mean, ends(difference)

    rank, spread = better(LORA, LORA, LARGE, SMALL)
    found = [Claim("LoRA: rank 8 - rank 1", "0.3 to 0.4", rank, None, 1.0, spread)]
    for worse, paper in ((RANDOM, "above 0"), (MAGNITUDE, "above 0")):
        gain, spread = better(CHANGE, worse)
        found.append(Claim(f"support of the largest changes - {worse}", paper, gain, 0.0, None, spread))
    gain, spread = better(GRADIENT, MAGNITUDE)
    found.append(Claim("support of the largest gradients - magnitude", "above 0", gain, 0.0, None, spread))
    loss, spread = better(FULL, ADAPTERS, "", LARGE)
    found.append(Claim("full fine-tuning - adapters", "0.4", loss, None, 1.0, spread))
    for method, low, high in (("LoRA merged", 0.99, None), ("within survivors", None, 0.0)):
        at = rows[rows["method"] == method]
        share = mean_interval((at["filled"] / at["removed"]).tolist())
        text = f"share of zeros filled, {method}"
        found.append(Claim(text, "all" if low else "none", share.mean, low, high))
    return found


def draw(rows: pd.DataFrame) -> Figure:
    """Errors of all methods at the smaller budget; the line is the head alone."""
    dense = rows[(rows["requested_density"] == 1.0) & (rows["budget"] != LARGE)]
    errors = dense.groupby("method")[ERROR].apply(list)
    least = dense.loc[dense["method"] == LORA, "trained"].min()
    shown = {name: errors[name] for name in METHODS if name != HEAD}
    return dots.draw({"": shown}, errors[HEAD], HEAD, f"Trained: {least:,.0f} weights, but for full fine-tuning")


def study(options: argparse.Namespace) -> Study:
    """All seeds."""
    rows = measure(options)
    title = "Little of MiniLM trained on 20 Newsgroups: points of test accuracy, mean [95 % t-interval]"
    return Study(title, claims(rows), rows, draw(rows))


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; the exit code."""
    parser = arguments(__doc__)
    parser.add_argument(
        "--overrides", nargs="*", default=[], help="of the experiment's fields, as on the command line of a run"
    )
    return run("adaptation", study, parser.parse_args(argv))


if __name__ == "__main__":
    raise SystemExit(main())
