"""python -m experiments.benchmarks.smaller: what half of the MACs costs in time, once it is removed.

ResNet-20 on [3, 32, 32], whose shortcuts are convolutions (B) or append zeros (A: of the residual width, only the first
16 channels can go), and a BERT-like encoder (4 layers of width 256, 64 tokens); random weights. Channels,
heads, neurons are pruned by magnitude to half of the MACs, in multiples of 8, removed, verified, and timed beside the
whole network: medians.
"""

import argparse
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from experiments.benchmarks.measuring import Row, median_ratio, rounded, show
from experiments.models.resnet import resnet20
from pruning import Evidence, prunable, prune, scorers
from pruning.execution.timing import in_turn
from pruning.structure import Budget, Channels, remove, trace, verify


def models(batch: int) -> dict[str, tuple[nn.Module, torch.Tensor]]:
    """The networks and what they see."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(256, 8, 1024, batch_first=True, norm_first=True, activation="gelu")
    return {
        "ResNet-20": (resnet20([3, 32, 32], 10, shortcut="B").eval(), torch.randn(batch, 3, 32, 32)),
        "ResNet-20 (A)": (resnet20([3, 32, 32], 10, shortcut="A").eval(), torch.randn(batch, 3, 32, 32)),
        "BERT-like": (nn.TransformerEncoder(layer, 4, enable_nested_tensor=False).eval(), torch.randn(batch, 64, 256)),
    }


def measured(density: float, rounds: int, batch: int, speedups: dict[str, float]) -> Iterator[Row]:
    """A row a network, pruned to `density` of its MACs."""
    for name, (model, inputs) in models(batch).items():
        structure = trace(model, inputs[:2])
        scores = scorers.magnitude(Evidence(model, prunable(model)))
        channels = Channels(structure, pooling="mean", normalise="mean", multiple_of=_multiples(structure))
        masks = prune(scores, density, channels, Budget(structure, "macs"))
        small = remove(model, masks, structure)
        difference = verify(model, masks, small, inputs)
        share = trace(small, inputs[:2]).cost("macs") / structure.cost("macs")
        with torch.inference_mode():
            seconds = in_turn(
                {"whole": lambda m=model, x=inputs: m(x), "small": lambda s=small, x=inputs: s(x)}, rounds
            )
        speedup = median_ratio(seconds["whole"], seconds["small"])
        speedups[name] = rounded(speedup)
        times = [f"{1000 * statistics.median(seconds[key]):.1f}" for key in ("whole", "small")]
        yield name, f"{share:.3f}", *times, f"{speedup:.2f}", f"{difference:.1e}"


def main(argv: Sequence[str] | None = None) -> None:
    """Run it; see the module's docstring."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--density", type=float, default=0.5, help="share of the MACs")
    parser.add_argument("--batch", type=int, default=32, help="examples")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    speedups: dict[str, float] = {}
    show(
        f"a forward pass of {options.batch} examples, {torch.get_num_threads()} thread, milliseconds",
        ("network", "MACs left", "whole", "small", "speed-up", "difference"),
        measured(options.density, options.rounds, options.batch, speedups),
        {"speedup": speedups},
    )


def _multiples(structure: Any) -> dict[str, int]:
    """Eight channels or neurons at a time; heads one by one."""
    return {family.name: 1 if family.kind == "heads" else 8 for family in structure.families}


if __name__ == "__main__":
    main()
