"""python -m experiments.benchmarks.execution: a training step on the kept weights alone, beside the masked dense one.

Whole steps (forward, backward, fused Adam) of 784-1024-1024-1024-10 and of LeNet-300-100 on batches of 128, pruned by
magnitude, every layer to the same density, one thread; masked and sparse in turn, medians. Also what weights, their
places and Adam's state take in memory in the sparse form.
"""

import argparse
import copy
import statistics
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.benchmarks.measuring import in_turn, median_ratio, show
from pruning import Evidence, prunable, prune, scorers
from pruning.allocation import Uniform
from pruning.execution import sparse_execution

_NETWORKS = {"784-1024-1024-1024-10": (784, 1024, 1024, 1024, 10), "784-300-100-10": (784, 300, 100, 10)}
_BATCH = 128


def main() -> None:
    """Run it; see the module's docstring."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--density", type=float, nargs="+", default=[0.1, 0.05, 0.02, 0.01])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows, found = [], {}
    for name, sizes in _NETWORKS.items():
        for density in arguments.density:
            masked, sparse, kept, taken = contenders(sizes, density)
            seconds = in_turn({"masked": masked, "sparse": sparse}, arguments.rounds, warmup=5)
            speedup = median_ratio(seconds["masked"], seconds["sparse"])
            times = {key: 1000 * statistics.median(value) for key, value in seconds.items()}
            rows.append(
                (
                    name,
                    f"{density:g}",
                    f"{times['masked']:.2f}",
                    f"{times['sparse']:.2f}",
                    f"{speedup:.2f}",
                    f"{taken / kept:.1f}",
                )
            )
            found.setdefault(name, {})[f"{1 - density:g}"] = round(speedup, 2)
    show(
        f"a training step of {_BATCH} examples, {arguments.threads} thread, milliseconds",
        ("network", "density", "masked", "sparse", "speed-up", "bytes a kept weight"),
        rows,
        {"speedup": found},
    )


def contenders(sizes: tuple[int, ...], density: float) -> tuple[Callable[[], None], Callable[[], None], int, int]:
    """A masked and a sparse step of the same network, the weights that are kept, the bytes of the sparse one."""
    torch.manual_seed(0)
    model = nn.Sequential()
    for inputs, outputs in pairwise(sizes):
        model.extend([nn.Linear(inputs, outputs), nn.ReLU()])
    model = model[:-1]
    masks = prune(scorers.magnitude(Evidence(model, prunable(model))), density, allocation=Uniform())
    other = copy.deepcopy(model)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    masks.attach(model, optimizer)
    sparse_execution(other, masks)
    second = torch.optim.Adam(other.parameters(), fused=True)
    batch = torch.randn(_BATCH, sizes[0]), torch.randint(sizes[-1], (_BATCH,))
    sparse = partial(_step, other, second, *batch)
    sparse()
    state = [value for of in second.state.values() for value in of.values() if isinstance(value, Tensor)]
    taken = sum(tensor.nbytes for tensor in (*other.parameters(), *other.buffers(), *state))
    return partial(_step, model, optimizer, *batch), sparse, masks.kept, taken


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor, targets: Tensor) -> None:
    optimizer.zero_grad()
    F.cross_entropy(model(inputs), targets).backward()
    optimizer.step()


if __name__ == "__main__":
    main()
