"""python -m experiments.replications.obd_prediction: the rise of the objective that OBD predicts, and the actual one.

Le Cun et al. 1990 (Optimal Brain Damage), figure 1: at a minimum, weights are removed in the order of their saliency
½·h_kk·w_k², without training again. The sum of the saliencies predicts the objective until about 800 of 2,578 free
parameters (30 %) are gone; then the actual objective rises faster. In the order of magnitude it is higher, and in
random order off the scale.

Here: 64-30-30-10 tanh (3,120 weights) on 8x8 digits, float64, squared error plus weight decay, brought close to a
minimum by L-BFGS. The objective has both terms, so the curvature of a weight is that of the error (Gauss-Newton) plus
the decay. Far from a minimum the forecast is worse: after 1,000 iterations instead of 4,000 the actual objective is
already 1.1 to 1.3 times the predicted one at 30 %. The paper compares objectives; the rises alone, small beside the
objective at first, differ by more, and are shown; so is 80 %, where the order of OBD is no better than magnitude.
"""

import argparse
from collections.abc import Sequence
from copy import deepcopy
from statistics import median
from typing import Any

import pandas as pd
import torch
from matplotlib import style
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.data import Examples, digits
from experiments.models import mlp
from experiments.replications.claims import Claim, Study, arguments, run, span
from experiments.results.figures import COLOURS, LINES, STYLE
from experiments.runtime.seeding import seeded
from pruning import Evidence, prunable, prune, scorers
from pruning.evidence import Scores

DECAY = 1e-3
ITERATIONS = 4000
SHARES = tuple(k / 20 for k in range(20))
OBD, MAGNITUDE, RANDOM = "order of OBD", "order of magnitude", "random order"


def squared_error(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Σ over outputs of the squared error, mean over examples."""
    return (model(batch[0]) - batch[1]).square().sum(1).mean()


def objective(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Objective of training: the squared error, and half the decay times the squares of all prunable weights."""
    return squared_error(model, batch) + DECAY / 2 * sum(w.square().sum() for w in prunable(model).values())


def minimised(
    data: Examples, seed: int, hidden: Sequence[int], iterations: int
) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """A network at a minimum of the objective on all of `data`, and these data as one batch."""
    classes = int(data["targets"].max()) + 1
    batch = data["inputs"].double(), F.one_hot(data["targets"], classes).double()
    with seeded(seed, "initialisation"):
        model = mlp(list(data["inputs"].shape[1:]), classes, hidden=hidden, activation="tanh", init="xavier_normal")
    model = model.double()
    optimizer = torch.optim.LBFGS(
        model.parameters(),
        max_iter=iterations,
        history_size=20,
        line_search_fn="strong_wolfe",
        tolerance_grad=1e-9,
        tolerance_change=0.0,
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = objective(model, batch)
        value.backward()
        return value

    optimizer.step(closure)
    optimizer.zero_grad()
    return model, batch


def saliencies(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Scores:
    """½·h_kk·w_k² of the objective."""
    of_error = scorers.obd(Evidence(model, prunable(model), [batch], squared_error))
    return {name: s + DECAY / 2 * model.get_parameter(name).detach().square() for name, s in of_error.items()}


def measure(
    data: Examples,
    seed: int,
    hidden: Sequence[int] = (30, 30),
    iterations: int = ITERATIONS,
    shares: Sequence[float] = SHARES,
) -> list[dict[str, Any]]:
    """One row an order and share removed: the predicted objective (order of OBD only) and the actual one."""
    model, batch = minimised(data, seed, hidden, iterations)
    start = objective(model, batch)
    gradients = torch.autograd.grad(start, list(prunable(model).values()))
    saliency = saliencies(model, batch)
    evidence = Evidence(model, prunable(model))
    orders = {OBD: saliency, MAGNITUDE: scorers.magnitude(evidence), RANDOM: scorers.random(evidence, seed=seed)}
    rows = []
    for order, scores in orders.items():
        for share in shares:
            masks, cut = prune(scores, 1 - share), deepcopy(model)
            masks.apply_(cut)
            rise = sum(float(s[~masks[name]].sum()) for name, s in saliency.items())
            rows.append(
                {
                    "seed": seed,
                    "order": order,
                    "share": share,
                    "removed": masks.total - masks.kept,
                    "predicted": start.item() + rise if order == OBD else None,
                    "actual": objective(cut, batch).item(),
                    "largest_gradient": max(float(g.abs().max()) for g in gradients),
                }
            )
    return rows


def claims(rows: pd.DataFrame) -> list[Claim]:
    """Ratios of objectives, of the same seeds."""

    def ratio(text: str, paper: str, values: list[float], low: float | None, high: float | None) -> Claim:
        return Claim(text, paper, median(values), low, high, span(values))

    actual = rows.pivot_table(index=["share", "seed"], columns="order", values="actual")
    predicted = rows[rows["order"] == OBD].set_index(["share", "seed"])["predicted"]
    departure = (actual[OBD] / predicted).unstack()
    start = actual[OBD].unstack().loc[0.0]
    rise = (actual[OBD].unstack() - start) / (predicted.unstack() - start)
    above_obd = {order: (actual[order] / actual[OBD]).unstack() for order in (MAGNITUDE, RANDOM)}
    return [
        *(
            ratio(f"actual / predicted at {share:.0%} removed", "agree", _at(departure, share), 0.8, 1.25)
            for share in (0.1, 0.2, 0.3)
        ),
        ratio("actual / predicted rise alone at 30% removed", "", _at(rise, 0.3), None, None),
        ratio("actual / predicted at 70% removed", "above 1", _at(departure, 0.7), 1.5, None),
        ratio("order of magnitude / of OBD at 60% removed", "above 1", _at(above_obd[MAGNITUDE], 0.6), 1.0, None),
        ratio("order of magnitude / of OBD at 80% removed", "", _at(above_obd[MAGNITUDE], 0.8), None, None),
        ratio("random order / of OBD at 30% removed", "off the scale", _at(above_obd[RANDOM], 0.3), 10.0, None),
    ]


def _at(table: pd.DataFrame, share: float) -> list[float]:
    return table.loc[share].tolist()


@style.context(["default", STYLE])
def draw(rows: pd.DataFrame) -> Figure:
    """Medians over seeds, and the range from the smallest to the largest."""
    figure = Figure(figsize=(6.5, 3.6), layout="constrained")
    panel = figure.subplots()
    curves = [("actual", order) for order in (RANDOM, MAGNITUDE, OBD)] + [("predicted", OBD)]
    for place, (value, order) in enumerate(curves):
        values = rows[rows["order"] == order].pivot_table(index="share", columns="seed", values=value)
        black = value == "predicted"
        colour = "black" if black else COLOURS[(2, 1, 0)[place]]
        label = "predicted by the sum of saliencies" if black else f"actual, {order}"
        panel.plot(100 * values.index, values.median(axis=1), LINES[black], color=colour, label=label)
        panel.fill_between(100 * values.index, values.min(axis=1), values.max(axis=1), color=colour, alpha=0.15, lw=0)
    panel.axvline(30, color="grey", linestyle=":", linewidth=1)
    panel.set_yscale("log")
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.yaxis.set_minor_formatter(NullFormatter())
    panel.set_xlabel("Removed weights (%); dotted: where the paper's forecast ends")
    panel.set_ylabel("Objective on the training data")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def study(options: argparse.Namespace) -> Study:
    """All seeds."""
    data = digits().train
    rows = pd.DataFrame([row for seed in options.seeds for row in measure(data, seed, iterations=options.iterations)])
    return Study(
        "Le Cun et al. 1990, figure 1: ratios of objectives, median [min, max]", claims(rows), rows, draw(rows)
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; the exit code."""
    parser = arguments(__doc__)
    parser.add_argument("--iterations", type=int, default=ITERATIONS, help="of L-BFGS")
    return run("obd_prediction", study, parser.parse_args(argv))


if __name__ == "__main__":
    raise SystemExit(main())
