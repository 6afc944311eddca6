"""python -m experiments.benchmarks.scoring: a scorer's time beside plain forward + backward of the same batches."""

import argparse
import statistics
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments import models
from experiments.benchmarks.measuring import in_turn, median_ratio, show
from pruning import Evidence, prunable, scorers


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The mean loss."""
    return F.cross_entropy(model(batch[0]), batch[1])


def plain(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> Callable[[], None]:
    """Forward and backward of all batches, gradients added up."""

    def call() -> None:
        model.zero_grad()
        for batch in batches:
            cross_entropy(model, batch).backward()

    return call


def main() -> None:
    """Run it; see the module's docstring."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=1)
    threads = parser.parse_args().threads
    torch.set_num_threads(threads)
    rows, ratios = [], {}
    cases = {
        "lenet_300_100": (models.lenet_300_100, [1, 28, 28], 100, 10, 40),
        "resnet20": (models.resnet20, [3, 32, 32], 64, 2, 8),
    }
    for name, (build, shape, size, count, rounds) in cases.items():
        model = build(shape, 10)
        batches = [(torch.randn(size, *shape), torch.randint(10, (size,))) for _ in range(count)]
        evidence = Evidence(model, prunable(model), batches, cross_entropy)
        seconds = in_turn(
            {
                "plain": plain(model, batches),
                "snip": lambda evidence=evidence: scorers.snip(evidence),
                "taylor": lambda evidence=evidence: scorers.taylor(evidence),
            },
            rounds,
            warmup=2,
        )
        for scorer in ("snip", "taylor"):
            ratio = median_ratio(seconds[scorer], seconds["plain"])
            ratios[f"{scorer}, {name}"] = round(ratio, 3)
            medians = [f"{statistics.median(seconds[kind]) * 1e3:.1f}" for kind in ("plain", scorer)]
            rows.append((f"{scorer}, {name}, {count} x {size}", *medians, f"{ratio:.2f} x"))
    show(
        f"scoring, {threads} thread(s), medians of turns",
        ("scorer, network, batches", "forward + backward ms", "score ms", "ratio"),
        rows,
        {"ratio": ratios},
    )


if __name__ == "__main__":
    main()
