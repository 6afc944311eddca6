"""Checklist of a careful evaluation, applied to a folder of runs: Blalock et al. 2020, section 6 and appendix B."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from experiments.records.values import Value, resolve
from experiments.results.curves import own_dense
from experiments.results.labels import setups
from experiments.results.statistics import points

SEEDS, OPERATING_POINTS, PAIRS = 3, 5, 3
LOSS = 0.05
"""Drop that every curve should reach: 5 points of a metric in percent, 5 % of the dense value of any other."""


@dataclass(frozen=True)
class Check:
    """A point of the list: what is recommended, whether it is so here, and what was found."""

    point: str
    satisfied: bool
    found: str


def checklist(frame: pd.DataFrame, value: Value | str | None = None) -> list[Check]:
    """All points that rows can decide, in the order of the paper. Raises what `statistics.points` raises."""
    value = resolve(frame, value)
    final = points(frame, value).assign(setup=setups)
    return [
        _baselines(final),
        _layer_controls(final),
        _pairs(final),
        _operating_points(final),
        *([_tradeoff(final, frame, value)] if value.metric is not None else []),
        _seeds(final),
        _costs(final),
        _start(frame),
        _budget(final),
        _software(frame),
        *([_top_five(final)] if "test_accuracy" in final else []),
    ]


def _baselines(final: pd.DataFrame) -> Check:
    scorers = final.groupby("setup")["scorer"].unique()
    missing = [name for name in ("magnitude", "random") if any(name not in there for there in scorers)]
    found = f"scorers: {', '.join(sorted(set(final['scorer'])))}"
    if missing:
        found += f"; add {' and '.join(missing)}" + (" to every set-up" if len(scorers) > 1 else "")
    return Check("Compared with magnitude and random pruning", not missing, found)


def _layer_controls(final: pd.DataFrame) -> Check:
    controls = set(final["control"].dropna()) if "control" in final else set()
    there = "layer_shuffled" in set(final["scorer"]) or bool(controls & {"shuffle", "random"})
    controls |= {"layer_shuffled"} & set(final["scorer"])
    found = ", ".join(sorted(controls)) or "no controls"
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


def _tradeoff(final: pd.DataFrame, frame: pd.DataFrame, value: Value) -> Check:
    """Whether the mean curve of every method reaches a density where something is lost: before, they look alike."""
    dense = own_dense(final, frame, value)
    lost = value.lost(dense, final[value.column].astype(float))
    lost = lost if value.percent else lost / dense.abs()
    means = lost.groupby([final["method"], final["requested_density"]]).agg(lambda one: one.mean(skipna=False))
    lost = means.groupby("method").agg(lambda one: one.max(skipna=False))
    worse = "below" if value.metric is None or value.metric.higher_is_better else "above"
    if value.percent:
        amount = f"{100 * lost.min():.3g} points or more {worse} the dense network on average"
    else:
        amount = f"{100 * lost.min():.3g} % or more {worse} the dense network on average"
    found = f"every method reaches {amount} ({lost.idxmin()} the least)" if lost.notna().all() else ""
    return Check(
        f"Curves reach to where {value.words} is lost"
        if worse == "below"
        else f"Curves reach to where {value.words} rises",
        bool(lost.min(skipna=False) >= LOSS),
        found or "some dense row is missing",
    )


def _seeds(final: pd.DataFrame) -> Check:
    counts = final.groupby(["method", "requested_density"])["seed"].nunique()
    found = f"{_range(counts)} seeds a point; mean and interval are in every table, the standard deviation in every CSV"
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


def _start(frame: pd.DataFrame) -> Check:
    labelled = setups(frame).loc[frame["level"] > 0]
    networks = frame[frame["level"] > 0].assign(setup=labelled).groupby(["setup", "seed"])["dense"].nunique()
    trained = frame.loc[frame["level"] == 0].drop_duplicates("dense")
    return Check(
        "All methods start from the same dense networks",
        bool((networks == 1).all()),
        f"{len(trained)} dense networks, trained here; {int((networks != 1).sum())} seeds with several",
    )


def _budget(final: pd.DataFrame) -> Check:
    if "total_epochs" not in final:
        return Check("Equal training for all methods", False, "rows have no epochs")
    tickets = final[final["control"].isna()] if "control" in final else final
    spent = tickets.groupby(["setup", "requested_density", "method"])["total_epochs"].mean()
    within = spent.groupby(["setup", "requested_density"])
    same = bool((within.max() - within.min() < 1e-6).all())
    each = spent.groupby(["setup", "method"]).mean().round(2)
    found = (
        f"{each.iloc[0]:g} epochs in all"
        if same and each.nunique() == 1
        else "; ".join(
            f"{method}: {epochs:g} epochs"
            for method, epochs in zip(each.index.get_level_values("method"), each, strict=True)
        )
    )
    return Check("Equal training for all methods", same, found)


def _software(frame: pd.DataFrame) -> Check:
    given: Iterable[Any] = frame["versions"].dropna() if "versions" in frame else []
    found = sorted({", ".join(f"{name} {version}" for name, version in versions.items()) for versions in given})
    return Check("The same library versions for all", len(found) == 1, "; ".join(found) or "rows have no versions")


def _top_five(final: pd.DataFrame) -> Check:
    there = "test_top5_accuracy" in final and bool(final["test_top5_accuracy"].notna().all())
    found = "both are in the rows" if there else "only top-1 is measured"
    return Check("Top-1 and top-5 accuracy", there, found)


def _range(counts: pd.Series) -> str:
    low, high = int(counts.min()), int(counts.max())
    return str(low) if low == high else f"{low}\N{EN DASH}{high}"
