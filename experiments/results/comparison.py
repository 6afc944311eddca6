"""Paired differences of methods to a baseline: the same seed, the same dense network, and how sure they are."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from experiments.records import require
from experiments.records.values import Value, remember, resolve
from experiments.results import curves
from experiments.results.exclusions import check_counted, counted, reasons
from experiments.results.labels import methods, setups
from experiments.results.significance import TESTS, judged, tested
from experiments.results.statistics import group, points, summarise_points
from pruning.errors import RecordsError

POINT, RELATIVE = 0.01, 0.05
"""What a critical sparsity may lose by default: a point of a metric in percent; of any other, a share of dense."""
_PAIR = ["requested_density", "seed"]
"""What the two points of a pair have in common."""


def by_setup(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The rows of every set-up (model, data, training of the dense networks), by `labels.setups`: only within one
    of them may methods be compared.
    """
    return {str(name): rows for name, rows in frame.groupby(setups(frame))}


@dataclass(frozen=True)
class Comparison:
    """All methods of one set-up against its baseline.

    Attributes:
        setup: its label, by `labels.setups`.
        baseline: the method's label.
        value: what is compared.
        differences, overall, summary: what the functions of these names return.
        unpaired: the methods that have no density and seed in common with the baseline; they are in `summary` alone.
        left_out: the methods without a network that counts, as all diverged (see `exclusions`).
    """

    setup: str
    baseline: str
    value: Value
    differences: pd.DataFrame
    overall: pd.DataFrame
    summary: pd.DataFrame
    unpaired: tuple[str, ...]
    left_out: tuple[str, ...] = ()

    @property
    def curved(self) -> bool:
        """Whether any method has several densities, and so a curve."""
        return bool(self.differences.groupby("method")["requested_density"].nunique().max() > 1)


def comparisons(
    frame: pd.DataFrame,
    baseline: str,
    value: Value | str | None = None,
    *,
    test: str = "t",
    interval: str = "t",
    alpha: float = 0.05,
    within: float | None = None,
) -> tuple[list[Comparison], list[str]]:
    """Every set-up of `frame` by itself, and a line for each that cannot be compared, which says why.

    `baseline` is a method's label, within its set-up or over the whole `frame`, or the beginning of one. Options are
    those of `differences` and `overall`. Set-ups without a pruned network that counts (see `exclusions`) are in
    neither; raises `RecordsError` where there is no other.
    """
    found, refused = [], []
    value = resolve(frame, value)
    left = counted(frame[frame["level"] > 0], value)
    check_counted(left, frame, value, "no pruned level in these rows, only dense networks; let the runs go on")
    whole = methods(frame)
    options: dict[str, Any] = {"test": test, "interval": interval, "alpha": alpha}
    parts = {setup: rows for setup, rows in by_setup(frame).items() if rows.index.isin(left.index).any()}
    for setup, rows in parts.items():
        try:
            final = points(rows, value)
            means = summarise_points(final, rows, value, interval)
            names, labels = list(means["method"].unique()), methods(rows)
            lost = tuple(name for name in labels[reasons(rows, value) != ""].unique() if name not in names)
            if len(names) == 1:
                why = f", as nothing is left of {'; '.join(lost)}" if lost else ""
                raise RecordsError(
                    f"{names[0]} is the only method{why}, so there is nothing to compare: run another scorer"
                )
            meant = labels[whole[rows.index] == baseline]
            known = [label for label in meant if label in names or label in lost]  # not of dense networks alone
            name = str(known[0]) if known else resolved(baseline, [*names, *lost])
            if name in lost:
                raise RecordsError(f"{name}: none of its networks counts: choose a baseline among: {'; '.join(names)}")
            paired = _differences(final, name, value, **options)
            if paired.empty:
                raise RecordsError(f"{name}: none of its runs can be paired by seed and density: repeat its runs")
            area = _overall(final, rows, name, value, within=within, **options)
        except RecordsError as error:
            refused.append(f"{setup}: {error}" if len(parts) > 1 else str(error))
        else:
            unpaired = tuple(method for method in names if method not in set(paired["method"]))
            found.append(Comparison(setup, name, value, paired, area, means, unpaired, lost))
    return found, refused


def differences(
    frame: pd.DataFrame,
    baseline: str,
    value: Value | str | None = None,
    *,
    test: str = "t",
    interval: str = "t",
    alpha: float = 0.05,
) -> pd.DataFrame:
    """Every method minus `baseline`, at each density that both have: pairs of runs with one seed and one dense network.

    `frame` holds one set-up (see `by_setup`); `baseline` is a method's label, or the beginning of one alone ("taylor"
    for "taylor (form=abs)"). The baseline itself is among the rows, with differences of zero.

    Columns: `method`, `requested_density`, `density` and `density_base` (realised, of both), `n` (pairs), `unpaired`
    (seeds that one of both has there and the other lacks, as those that diverged), `mean`,
    `std`, `low`, `high` of the differences in the unit of `value` (95 %, by `interval`), `p` of the two-sided test that
    they are zero ("t": Student's paired test; "wilcoxon": the signed-rank test, exact for few pairs), `p_holm` = p
    corrected for the densities of that method (Holm 1979), and `verdict`: "higher" or "lower" where p_holm < `alpha`,
    else "".

    p is NaN, and no verdict given, for one pair alone, and for differences that are equal and not zero at every seed:
    without spread Student's test would be sure of anything. Methods that have no density and seed in common with the
    baseline have no rows.

    Raises `RecordsError` where there is no such baseline, where it is the only method left though there are others, or
    where a pair did not start from the same dense network.
    """
    value = resolve(frame, value)
    final = points(frame, value)
    name = resolved(baseline, list(final["method"].unique()))
    return _differences(final, name, value, test=test, interval=interval, alpha=alpha)


def overall(
    frame: pd.DataFrame,
    baseline: str,
    value: Value | str | None = None,
    *,
    test: str = "t",
    interval: str = "t",
    alpha: float = 0.05,
    within: float | None = None,
) -> pd.DataFrame:
    """Every method's whole curve against that of `baseline`: one test a method, where many densities give many.

    Columns: `method`, `area` (mean over `seeds`; see `curves.area`), its `span` (see `curves.common_span`), `n`,
    `mean`, `std`, `low`, `high`, `p` of the paired differences in area as in `differences`, `p_holm` corrected for the
    methods, `verdict`; `critical` (the sparsity until which the mean over seeds stays `within` of dense, in the unit of
    the column; for None, within `POINT` of a metric in percent, of any other within the share `RELATIVE` of dense; see
    `curves.critical_sparsity`; NaN where it is not known which way is better) and `collapsed` (share of
    the networks, over seeds and densities; see `curves.collapsed`).
    A seed that lacks one of its method's densities has no area, nor has a method of one density, nor one that shares no
    density and seed with the baseline, nor one whose curve does not reach over the span; what follows from it is NaN.
    """
    value = resolve(frame, value)
    final = points(frame, value)
    name = resolved(baseline, list(final["method"].unique()))
    return _overall(final, frame, name, value, test=test, interval=interval, alpha=alpha, within=within)


def resolved(baseline: str, methods: Sequence[str]) -> str:
    """The one label among `methods` that `baseline` names: it whole, or the scorer, or the adaptation without its
    budget, that it begins with.
    """
    if baseline in methods:
        return baseline
    found = [method for method in methods if baseline in (head := method.split(" (")[0], head.split(", ")[0])]
    if len(found) == 1:
        return found[0]
    several = f"{baseline} may be any of {'; '.join(found)}" if found else f"no method is called {baseline}"
    raise RecordsError(f"{several}: choose a whole name among: {'; '.join(methods)}")


def _differences(
    final: pd.DataFrame, baseline: str, value: Value, *, test: str, interval: str, alpha: float
) -> pd.DataFrame:
    """`differences` of `points` that are known already, to the `baseline` of that whole label."""
    if test not in TESTS:
        raise ValueError(f"test={test}: choose {' or '.join(TESTS)}")
    require(final, ["dense"])
    columns = [*dict.fromkeys([*_PAIR, "run", "dense", "data", "model", "density", value.column])]
    base = final.loc[final["method"] == baseline, columns]
    pairs = final[["method", *columns]].merge(base, on=_PAIR, suffixes=("", "_base"))
    _check_dense(pairs, baseline)
    densities = {column: pairs[column].to_numpy(dtype=float) for column in ("density", "density_base")}
    minus_baseline = pairs[value.column].to_numpy(dtype=float) - pairs[f"{value.column}_base"].to_numpy(dtype=float)
    found: dict[str, list[dict[str, Any]]] = {}
    seeds = {point: set(final["seed"].to_numpy()[at]) for point, at in group(final).items()}
    for (method, requested), at in group(pairs).items():
        row = {"method": method, "requested_density": float(requested)}
        row |= {"unpaired": len(seeds[method, requested] ^ seeds[baseline, requested])}
        row |= {column: float(of[at].mean()) for column, of in densities.items()}
        found.setdefault(method, []).append(row | tested(minus_baseline[at], test, interval))
    if final["method"].nunique() > 1 and set(found) == {baseline}:
        raise RecordsError(
            f"{baseline}: no method shares a seed and a density with it; set the same seed= and density="
        )
    return remember(pd.DataFrame([row for rows in found.values() for row in judged(rows, alpha)]), value)


def _overall(
    final: pd.DataFrame,
    frame: pd.DataFrame,
    baseline: str,
    value: Value,
    *,
    test: str,
    interval: str,
    alpha: float,
    within: float | None,
) -> pd.DataFrame:
    """`overall` of `points` of `frame` that are known already, against the `baseline` of that whole label."""
    dense = curves.own_dense(final, frame, value)
    beside = final[["method", "requested_density", "density"]].assign(
        loss=value.lost(dense, final[value.column].astype(float)),
        dense=dense.abs(),
        collapsed=curves.collapsed(final, frame, value),
    )
    shared = final.merge(final.loc[final["method"] == baseline, _PAIR], on=_PAIR)["method"]
    whole = curves.complete(final[final["method"].isin(shared)])
    span = curves.common_span(whole)
    areas: dict[str, dict[Any, float]] = {str(method): {} for method in final["method"].unique()}
    for (method, seed), one in whole.groupby(["method", "seed"]):
        found = curves.area(one["density"].tolist(), one[value.column].tolist(), *span)
        if not math.isnan(found):
            areas[str(method)][seed] = found
    # Unknown at one seed, as where its dense network diverged, is unknown on average
    means = beside.groupby(["method", "requested_density"])[["density", "loss", "dense"]].agg(_mean_of_all)
    collapsed = beside.groupby("method")["collapsed"].agg(_mean_of_all)
    rows = []
    for method, own in areas.items():
        minus_baseline = np.array(
            [area - areas[baseline][seed] for seed, area in own.items() if seed in areas[baseline]]
        )
        nothing = dict.fromkeys(("mean", "std", "low", "high", "p"), math.nan) | {"n": 0}
        mean = means.loc[method]
        relative = within is None and not value.percent
        losses = mean["loss"] / mean["dense"] if relative else mean["loss"]
        allowed = (RELATIVE if relative else POINT) if within is None else within
        critical = curves.critical_sparsity(list(1 - mean["density"]), list(losses), allowed)
        rows.append(
            {
                "method": method,
                "area": float(np.mean(list(own.values()))) if own else math.nan,
                "seeds": len(own),
                "span": span,
            }
            | (tested(minus_baseline, test, interval) if len(minus_baseline) else nothing)
            | {"critical": critical if losses.notna().all() else math.nan}
            | {"collapsed": float(collapsed[method])}
        )
    return pd.DataFrame(judged(rows, alpha, among=[row["method"] != baseline for row in rows]))


def _mean_of_all(column: pd.Series) -> float:
    return float(column.mean(skipna=False))


def _check_dense(pairs: pd.DataFrame, baseline: str) -> None:
    """Another dense network, or other data, and the difference would be of both."""
    for name, what in (("dense", "dense network"), ("data", "data set"), ("model", "model")):
        other = pairs[pairs[name] != pairs[f"{name}_base"]]
        if not other.empty:
            row = other.iloc[0]
            raise RecordsError(
                f"runs {row['run']} and {row['run_base']} have the same seed ({row['seed']}) but not the same {what}: "
                f"{row['method']} and {baseline} cannot be compared; run both with the same settings and store="
            )
