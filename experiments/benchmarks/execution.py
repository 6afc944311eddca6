"""python -m experiments.benchmarks.execution: a training step on the kept weights alone, beside the masked dense one.

Whole steps (forward, backward, fused Adam), every layer pruned by magnitude to the same density. Masked and sparse
steps take turns of several, so that neither begins in caches that the other has filled; medians of turns. Also what the
weights, their places and Adam's state take in memory in the sparse form.

What LeNet-300-100 can gain is bounded. On one thread of an AMD EPYC with AVX-512, in batches of 128 and CPU time, a
masked step takes 2.3 to 2.5 ms. A sparse one whose products, and the turning of the batch that they need, are left out
takes 0.54 at any density: zero_grad, loss, ReLU, autograd and Adam, which both forms need, take 0.34 of that, and some
forty calls around the products (biases and their gradients, indices, layouts) the rest. So with products for nothing a
step would be 4.3 to 4.5 times as fast as the masked one, and 2, 2.8, 3.4 and 4 times at 90, 95, 98 and 99 % leave
0.6, 0.3, 0.15 and 0.05 ms for them. They take 0.65, 0.45, 0.35 and 0.3 with torch's fastest kernels (sampled products
a half of that, bags a third), and so the step reaches 1.9, 2.3, 2.6 and 2.8 times.
"""

import argparse
import copy
import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle, pairwise
from pathlib import Path

import pandas as pd
import torch
from matplotlib import style
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.benchmarks.measuring import median_ratio, rounded
from experiments.results.figures.style import COLOURS, STYLE, WIDTH, save
from pruning import Evidence, prunable, prune, scorers
from pruning.allocation import Uniform
from pruning.dynamic import FixedMasks
from pruning.execution import Execution, sparse
from pruning.execution.modules import SparseLinear
from pruning.execution.timing import in_turn

_NETWORKS = ("784-1024-1024-1024-10", "784-300-100-10")
_BATCHES, _STEPS = 16, 8


@dataclass(frozen=True)
class _Measured:
    """One network at one density: milliseconds a step, their ratio, and the bytes of the sparse form."""

    network: str
    density: float
    masked: float
    sparse: float
    speedup: float
    kept: int
    nbytes: int


def main() -> None:
    """Run it; see the module's docstring."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--network", nargs="+", default=_NETWORKS, help="sizes of its layers, from inputs to classes")
    parser.add_argument("--density", type=float, nargs="+", default=[0.1, 0.05, 0.02, 0.01])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--figure", type=Path, help="where to draw seconds a step against density: PATH.png and others")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"a training step of {arguments.batch} examples, {arguments.threads} thread(s), milliseconds")
    print(f"{'network':<22} density  masked  sparse  speed-up       bytes  a kept weight")
    found = []
    for network in arguments.network:
        for density in sorted(arguments.density)[::-1]:
            row = measured(network, density, arguments.batch, arguments.rounds)
            found.append(row)
            print(
                f"{row.network:<22} {row.density:>7g} {row.masked:>7.2f} {row.sparse:>7.2f} {row.speedup:>9.2f}"
                f" {row.nbytes:>11,} {row.nbytes / row.kept:>14.1f}",
                flush=True,
            )
    speedups = {
        network: {f"{1 - row.density:.4g}": rounded(row.speedup) for row in found if row.network == network}
        for network in arguments.network
    }
    first, *others = arguments.network
    print(json.dumps({"speedup": speedups[first]} | {f"speedup {network}": speedups[network] for network in others}))
    if arguments.figure:
        table = pd.DataFrame([vars(row) for row in found])
        save(drawn(table), arguments.figure, table)


def measured(network: str, density: float, batch: int, rounds: int) -> _Measured:
    """Masked and sparse steps of the same network in turn."""
    torch.manual_seed(0)
    sizes = [int(size) for size in network.split("-")]
    model = nn.Sequential()
    for inputs, outputs in pairwise(sizes):
        model.extend([nn.Linear(inputs, outputs), nn.ReLU()])
    model = model[:-1]
    masks = prune(scorers.magnitude(Evidence(model, prunable(model))), density, allocation=Uniform())
    other = copy.deepcopy(model)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    masks.attach(model, optimizer)
    second = torch.optim.Adam(other.parameters(), fused=True)
    batches = [(torch.randn(batch, sizes[0]), torch.randint(sizes[-1], (batch,))) for _ in range(_BATCHES)]
    Execution(FixedMasks(other, second, masks), sparse, batches[0][0]).ready()
    seconds = in_turn(
        {"masked": _stepper(model, optimizer, batches), "sparse": _stepper(other, second, batches)}, rounds, warmup=3
    )
    patterns = [module.pattern for module in other.modules() if isinstance(module, SparseLinear)]
    state = [value for of in second.state.values() for value in of.values() if isinstance(value, Tensor)]
    return _Measured(
        network,
        density,
        *(1000 * statistics.median(seconds[form]) / _STEPS for form in ("masked", "sparse")),
        speedup=median_ratio(seconds["masked"], seconds["sparse"]),
        kept=masks.kept,
        nbytes=sum(tensor.nbytes for tensor in (*other.parameters(), *state, *patterns)),
    )


def drawn(table: pd.DataFrame) -> Figure:
    """Milliseconds a step against density for each network: masked, sparse, and what is kept of the masked time."""
    numbers = FuncFormatter(lambda value, _: f"{value:g}")
    with style.context(["default", STYLE]):
        figure = Figure(figsize=(WIDTH, 3.0), layout="constrained")
        networks = table.groupby("network", sort=False)
        subplots = figure.subplots(1, len(networks), squeeze=False)[0]
        for axes, (network, rows) in zip(subplots, networks, strict=True):
            ideal = rows["masked"].median() * rows["density"]
            axes.plot(rows["density"], rows["masked"], "s-", color=COLOURS[1], label="masked")
            axes.plot(rows["density"], rows["sparse"], "o-", color=COLOURS[0], label="sparse")
            axes.plot(rows["density"], ideal, ":", color="black", label="ideal: masked times density")
            axes.set(xscale="log", yscale="log", title=network, xlabel="Density")
            axes.xaxis.set_major_locator(FixedLocator([1, 0.3, 0.1, 0.03, 0.01]))
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_formatter(numbers)
                axis.set_minor_formatter(NullFormatter())
            axes.invert_xaxis()
        figure.axes[0].set_ylabel("Milliseconds a step")
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def _stepper(
    model: nn.Module, optimizer: torch.optim.Optimizer, batches: list[tuple[Tensor, Tensor]]
) -> Callable[[], None]:
    endless = cycle(batches)

    def steps() -> None:
        for _ in range(_STEPS):
            inputs, targets = next(endless)
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), targets).backward()
            optimizer.step()

    return steps


if __name__ == "__main__":
    main()
