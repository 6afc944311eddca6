"""Which points of a careful evaluation a folder of runs satisfies: Blalock et al. 2020, section 6 and appendix B."""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from experiments.labels import baselines
from experiments.statistics import points

SEEDS, OPERATING_POINTS, PAIRS = 3, 5, 3


@dataclass(frozen=True)
class Check:
    """A point of the list: what is recommended, whether it is so here, and what was found."""

    point: str
    satisfied: bool
    found: str


def checklist(frame: pd.DataFrame, value: str = "test_accuracy") -> list[Check]:
    """All points that rows can tell of, in the order of the paper. Raises what `statistics.points` raises."""
    final = points(frame, value)
    return [
        _baselines(final),
        _layer_controls(final),
        _pairs(final),
        _operating_points(final),
        _tradeoff(final, frame, value),
        _seeds(final),
        _costs(final),
        _start(final, frame),
        _budget(final),
        _software(frame),
        _top_five(final),
    ]


def _baselines(final: pd.DataFrame) -> Check:
    scorers = sorted(set(final["scorer"].astype(str)))
    missing = [name for name in ("magnitude", "random") if name not in scorers]
    found = f"scorers: {', '.join(scorers)}"
    if missing:
        found += f"; add {' and '.join(missing)}"
    return Check("Compared with magnitude and random pruning", not missing, found)


def _layer_controls(final: pd.DataFrame) -> Check:
    controls = set(final["control"].dropna()) if "control" in final else set()
    there = "layer_shuffled" in set(final["scorer"]) or bool(controls & {"shuffle", "random"})
    found = f"controls: {', '.join(sorted(controls))}" if controls else "no controls"
    found += "" if there else "; add scorer=layer_shuffled or controls=[shuffle]"
    return Check("Random masks with the same layer-wise densities", there, found)


def _pairs(final: pd.DataFrame) -> Check:
    pairs = sorted({f"{row.data} with {row.model}" for row in final.itertuples()})
    return Check(f"At least {PAIRS} pairs of data set and architecture", len(pairs) >= PAIRS, "; ".join(pairs))


def _operating_points(final: pd.DataFrame) -> Check:
    counts = final.groupby("method")["requested_density"].nunique()
    kept = final.loc[final["density"] > 0, "density"]
    reach = f", from {1 / kept.max():.3g} to {1 / kept.min():.3g} times compressed" if len(kept) else ""
    found = f"{_range(counts)} densities a method{reach}"
    return Check(f"At least {OPERATING_POINTS} operating points a curve", bool(counts.min() >= OPERATING_POINTS), found)


def _tradeoff(final: pd.DataFrame, frame: pd.DataFrame, value: str) -> Check:
    """Curves that end before anything is lost cannot tell methods apart."""
    start = frame[frame["level"] == 0].drop_duplicates("dense").set_index("dense")[value]
    lost = (final["dense"].map(start).astype(float) - final[value].astype(float)).groupby(final["method"]).max()
    worst = float(lost.max())
    unit = f"{100 * worst:.3g} points" if value.endswith("accuracy") else f"{worst:.3g}"
    enough = worst >= 0.1 if value.endswith("accuracy") else worst > 0
    return Check("Curves reach to where accuracy is lost", bool(enough), f"at most {unit} below the dense network")


def _seeds(final: pd.DataFrame) -> Check:
    counts = final.groupby(["method", "requested_density"])["seed"].nunique()
    found = f"{_range(counts)} seeds a point; mean, standard deviation and interval are in every table"
    return Check(f"At least {SEEDS} seeds a point, with their spread", bool(counts.min() >= SEEDS), found)


def _costs(final: pd.DataFrame) -> Check:
    there = {"macs", "dense_macs"} <= set(final.columns) and bool(final["macs"].notna().all())
    speed = (final["dense_macs"] / final["macs"].replace(0, np.nan)).max() if there else math.nan
    found = (
        f"compression, and up to {speed:.3g} times fewer multiply-accumulates (of linear layers and convolutions)"
        if there
        else "compression alone"
    )
    return Check("Both size and theoretical speed-up", there, found)


def _start(final: pd.DataFrame, frame: pd.DataFrame) -> Check:
    setups = baselines(frame).loc[frame["level"] > 0]
    networks = frame[frame["level"] > 0].assign(setup=setups).groupby(["setup", "seed"])["dense"].nunique()
    trained = frame.loc[frame["level"] == 0].drop_duplicates("dense")
    return Check(
        "All methods start from the same dense networks",
        bool((networks == 1).all()),
        f"{len(trained)} dense networks, trained here; {int((networks != 1).sum())} seeds with several",
    )


def _budget(final: pd.DataFrame) -> Check:
    if "total_epochs" not in final:
        return Check("Equal training for all methods", False, "rows do not tell their epochs")
    spent = final.groupby(["requested_density", "method"])["total_epochs"].mean().unstack()
    same = bool((spent.max(axis=1) - spent.min(axis=1) < 1e-6).all())
    each = spent.mean().round(2)
    found = (
        f"{each.iloc[0]:g} epochs in all"
        if same and each.nunique() == 1
        else "; ".join(f"{name}: {epochs:g} epochs" for name, epochs in each.items())
    )
    return Check("Equal training for all methods", same, found)


def _software(frame: pd.DataFrame) -> Check:
    told = frame["versions"].dropna() if "versions" in frame else []
    found = sorted({", ".join(f"{name} {version}" for name, version in versions.items()) for versions in told})
    return Check("The same library versions for all", len(found) == 1, "; ".join(found) or "rows do not tell them")


def _top_five(final: pd.DataFrame) -> Check:
    return Check("Top-1 and top-5 accuracy", False, "only top-1 is measured")


def _range(counts: pd.Series) -> str:
    low, high = int(counts.min()), int(counts.max())
    return str(low) if low == high else f"{low}\N{EN DASH}{high}"
