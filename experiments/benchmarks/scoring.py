"""python -m experiments.benchmarks.scoring: a scorer's time beside plain forward + backward, or beside the plain loop.

SNIP, Taylor, GraSP and a round of SynFlow are measured in forward + backward passes of the same batches; the diagonal
of the empirical Fisher beside a loop over single examples, with equal values; OBS by layer, and its update, in seconds.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments import models
from experiments.benchmarks.measuring import Row, median_ratio, rounded, show
from pruning import Evidence, prunable, prune, scorers
from pruning.curvature import layer_hessian
from pruning.evidence import Scores
from pruning.execution.timing import in_turn
from pruning.recovery import compensate


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The mean loss."""
    return F.cross_entropy(model(batch[0]), batch[1])


def case(name: str, batches: int, size: int) -> Evidence:
    """A network of that name, in eval mode, and random batches."""
    build, shape = {
        "lenet_300_100": (models.lenet_300_100, [1, 28, 28]),
        "lenet_5": (models.lenet_5, [1, 28, 28]),
        "resnet20": (models.resnet20, [3, 32, 32]),
    }[name]
    model = build(shape, 10).eval()
    data = [(torch.randn(size, *shape), torch.randint(10, (size,))) for _ in range(batches)]
    return Evidence(model, prunable(model), data, cross_entropy)


def plain(evidence: Evidence) -> Callable[[], None]:
    """Forward and backward of all batches, gradients added up."""

    def call() -> None:
        evidence.model.zero_grad()
        for batch in evidence.batches:
            cross_entropy(evidence.model, batch).backward()

    return call


def loop(evidence: Evidence) -> Scores:
    """The empirical Fisher diagonal, one example at a time."""
    total = {name: torch.zeros_like(p) for name, p in evidence.parameters.items()}
    count = 0
    for inputs, targets in evidence.batches:
        for i in range(len(inputs)):
            loss = cross_entropy(evidence.model, (inputs[i : i + 1], targets[i : i + 1]))
            for name, g in zip(total, torch.autograd.grad(loss, list(evidence.parameters.values())), strict=True):
                total[name].addcmul_(g, g)
            count += 1
    return {name: value / count for name, value in total.items()}


def passes(rounds: int, scale: float, ratios: dict[str, float]) -> Iterator[Row]:
    """Ratios to forward + backward of the same batches; of SynFlow, which sees no data, of one batch."""
    for name, batches, full, turns in (("lenet_300_100", 10, 100, rounds), ("resnet20", 2, 64, max(1, rounds // 4))):
        size = max(2, round(scale * full))
        evidence, one = case(name, batches, size), case(name, 1, size)
        contenders = {
            "snip": (scorers.snip, evidence),
            "taylor": (scorers.taylor, evidence),
            "grasp": (scorers.grasp, one),
            "synflow": (scorers.synflow, one),
        }
        for scorer, (score, seen) in contenders.items():
            calls = {"plain": plain(seen), scorer: lambda score=score, seen=seen: score(seen)}
            seconds = in_turn(calls, turns)
            ratio = median_ratio(seconds[scorer], seconds["plain"])
            ratios[f"{scorer}, {name}"] = rounded(ratio)
            medians = [f"{statistics.median(seconds[kind]) * 1e3:.1f}" for kind in ("plain", scorer)]
            yield f"{scorer}, {name}, {len(list(seen.batches))} x {size}", *medians, f"{ratio:.2f}"


def fisher(rounds: int, scale: float, ratios: dict[str, float], differences: dict[str, float]) -> Iterator[Row]:
    """How many times as fast as the loop, and the largest difference relative to a tensor's largest value."""
    size = max(2, round(scale * 100))
    # the first batch is checked besides, whatever their number: few batches show that cost, many hide it
    for name, batches in (("lenet_300_100", 2), ("lenet_300_100", 10), ("lenet_5", 2), ("lenet_5", 10)):
        evidence, title = case(name, batches, size), f"{name}, {batches} x {size}"
        calls: dict[str, Callable[[], Any]] = {
            "loop": lambda evidence=evidence: loop(evidence),
            "fisher": lambda evidence=evidence: scorers.fisher(evidence),
        }
        seconds = in_turn(calls, max(1, rounds // 6))
        ratio = median_ratio(seconds["loop"], seconds["fisher"])
        ratios[title] = rounded(ratio)
        want, found = loop(evidence), scorers.fisher(evidence)
        differences[title] = max(float((found[n] - want[n]).abs().max() / want[n].max()) for n in want)
        medians = [f"{statistics.median(seconds[kind]) * 1e3:.1f}" for kind in ("loop", "fisher")]
        yield f"fisher, {title}; left: the loop", *medians, f"{ratio:.1f} x as fast"


class Attention(nn.Module):
    """Three projections of one input."""

    def __init__(self, width: int):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.q(x) + self.k(x) + self.v(x)


def obs(width: int, examples: int, found: dict[str, float]) -> Iterator[Row]:
    """Seconds of scoring by one inverse, of selection, and of the update of what stays at half the weights."""
    x = torch.randn(examples, width) @ torch.randn(width, width) / width**0.5
    for name, model in (("one layer", nn.Linear(width, width)), ("q, k, v", Attention(width))):
        evidence = Evidence(model, prunable(model), [x], lambda model, batch: model(batch).square().mean())
        start = time.perf_counter()
        masks = prune(scorers.obs(evidence), 0.5)
        scored = time.perf_counter()
        compensate(evidence, masks)
        end = time.perf_counter()
        found[f"{name}: score"] = rounded(scored - start)
        found[f"{name}: compensate"] = rounded(end - scored)
        inverses = len(list(layer_hessian(evidence)))
        text = f"obs, {name}, {width} x {width}; left: compensate"
        yield text, f"{(end - scored) * 1e3:.0f}", f"{(scored - start) * 1e3:.0f}", f"{inverses} inverse"


def main(argv: Sequence[str] | None = None) -> None:
    """Run it; see the module's docstring."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=30, help="turns (of what is slow fewer)")
    parser.add_argument("--scale", type=float, default=1.0, help="of the batches' sizes")
    parser.add_argument("--width", type=int, default=768, help="of the layers that OBS scores")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    ratios: dict[str, float] = {}
    speed: dict[str, float] = {}
    differences: dict[str, float] = {}
    seconds: dict[str, float] = {}
    show(
        f"scoring, {options.threads} thread(s), medians of turns",
        ("scorer, network, batches", "forward + backward ms", "score ms", "ratio"),
        chain(
            passes(options.rounds, options.scale, ratios),
            fisher(options.rounds, options.scale, speed, differences),
            obs(options.width, 2048, seconds),
        ),
        {
            "ratio": ratios,
            "fisher_times_as_fast": speed,
            "fisher_difference": differences,
            "obs_seconds": seconds,
        },
    )


if __name__ == "__main__":
    main()
