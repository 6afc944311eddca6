"""python -m experiments.benchmarks.training_step: what holding masks costs a training step, beside the dense step.

Of what it costs LeNet-300-100 on batches of 60, calls of hooks are 0 to 1.5 % of the step; the rest is memory. To mask
the gradients of 266,200 weights reads and writes them, and reads as many bytes of masks: 3.2 MB beside the 7.5 MB of
Adam and the 2 MB of the products. From the second-level cache that takes 21 microseconds, 1.6 % of a step of 1.3 ms; in
the step, where little of it is there, 5 to 9 %, by how busy the machine's memory is. Smaller masks do not help: torch's
vectorised kernels take operands of one width, and the others take 7 (a product with bool) to 14 times (`masked_fill_`)
as long. So 5 % is about the floor of masking whole gradients.
"""

import argparse
import statistics
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from experiments import models
from experiments.benchmarks.measuring import Row, median_ratio, show
from pruning import Evidence, prunable, prune, scorers
from pruning.execution.timing import in_turn


def stepper(model: nn.Module, inputs: torch.Tensor, masked: bool, steps: int) -> Callable[[], None]:
    """A call that takes `steps` steps of fused Adam, with or without masks of density 0.1."""
    targets = torch.randint(10, (len(inputs),))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    if masked:
        prune(scorers.magnitude(Evidence(model, prunable(model))), 0.1).attach(model, optimizer)

    def call() -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), targets).backward()
            optimizer.step()

    return call


def measured(rounds: int, scale: float, overhead: dict[str, float]) -> Iterator[Row]:
    """A row a network; its `overhead` is the masked step's time over the dense one's, minus 1."""
    cases = {
        "lenet_300_100, batch 60": (models.lenet_300_100, [1, 28, 28], 60, 20, rounds),
        "lenet_300_100, batch 128": (models.lenet_300_100, [1, 28, 28], 128, 20, rounds),
        "resnet20, batch 64": (models.resnet20, [3, 32, 32], 64, 1, max(1, rounds // 4)),
    }
    for name, (build, shape, batch, steps, turns) in cases.items():
        inputs = torch.randn(max(2, round(scale * batch)), *shape)
        contenders = {kind: stepper(build(shape, 10), inputs, kind == "masked", steps) for kind in ("dense", "masked")}
        seconds = in_turn(contenders, turns)
        ratio = median_ratio(seconds["masked"], seconds["dense"])
        overhead[name] = round(ratio - 1, 4)
        medians = [f"{statistics.median(seconds[kind]) / steps * 1e3:.3f}" for kind in ("dense", "masked")]
        yield name, *medians, f"{100 * (ratio - 1):+.1f} %"


def main(argv: Sequence[str] | None = None) -> None:
    """Run it; see the module's docstring."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=100, help="turns (of ResNet-20 a quarter as many)")
    parser.add_argument("--scale", type=float, default=1.0, help="of the batches' sizes")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    overhead: dict[str, float] = {}
    show(
        f"one training step, fused Adam, {options.threads} thread(s), medians of turns",
        ("network", "dense ms", "masked ms", "overhead"),
        measured(options.rounds, options.scale, overhead),
        {"overhead": overhead},
    )


if __name__ == "__main__":
    main()
