"""python -m experiments.benchmarks.lottery: a level of the lottery ticket, beside the loop that most research code has.

A level here: prune LeNet-300-100 by a fifth, put the rest back to the start, train, evaluate, store. The loop takes its
examples one by one from a `torch.utils.data.DataLoader`: as pictures, transformed by torchvision each time they are
seen, or as tensors that are ready; it multiplies by the masks in every step. It sees the same batches in the same
order, so both end with the same network up to rounding, and accuracies are shown. The time outside training steps is
all of a level but forward, backward, masking and the optimizer's step; `gathering` is the part of it that takes the
examples of a batch from memory.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

from experiments.benchmarks.measuring import median_ratio, rounded, show
from experiments.data import Batch, Examples
from experiments.replications import composed
from experiments.running import stages
from experiments.running.levels import Level, evaluate
from experiments.running.setting import Setting
from experiments.runtime.errors import report_error
from experiments.runtime.extras import missing
from experiments.runtime.seeding import generator
from experiments.store import Store
from experiments.training import loop as training
from pruning import Evidence, Masks, prunable, prune, scorers
from pruning.execution.timing import in_turn

try:
    from torchvision import transforms
except ModuleNotFoundError as error:
    if __name__ == "__main__":
        raise SystemExit(report_error(missing(str(error.name)))) from None
    raise

DENSITY = 0.8
TITLES = {"ours": "stages", "tensors": "DataLoader of tensors", "pictures": "DataLoader of pictures"}
Loading = Callable[[Examples], Dataset[Any]]


class Pictures(Dataset[Any]):
    """MNIST as torchvision keeps it: bytes, which become a PIL image and then a standardised tensor when asked for."""

    def __init__(self, examples: Examples) -> None:
        low, high = float(examples["inputs"].min()), float(examples["inputs"].max())
        pixels = ((examples["inputs"][:, 0] - low) / (high - low) * 255).round()
        self.pixels = pixels.numpy().astype(np.uint8)
        self.targets = examples["targets"].tolist()
        normalise = transforms.Normalize([-low / (high - low)], [1 / (high - low)])
        self.transform = transforms.Compose([transforms.ToTensor(), normalise])

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[index])), self.targets[index]


def tensors(examples: Examples) -> Dataset[Any]:
    """The same examples, ready to be used."""
    return TensorDataset(examples["inputs"], examples["targets"])


def level(setting: Setting, folder: Path) -> float:
    """A level by the project's own stages, in an empty store; its test accuracy."""
    setting = replace(setting, store=Store(folder))
    start = stages.initial(setting)
    pruned = stages.prune(setting, start, DENSITY, lambda network: stages.score(setting, network))
    ticket = stages.recover(setting, pruned, DENSITY)
    row = evaluate(setting, ticket, Level(1, 1, 1, DENSITY, DENSITY), start)
    return float(row["test_accuracy"])


def loop(load: Loading, setting: Setting, folder: Path) -> float:
    """The same level by a loop as it is mostly written; its test accuracy."""
    splits, size = setting.splits, setting.config.training.batch_size
    model = setting.new_model()
    masks = prune(scorers.magnitude(Evidence(model, prunable(model))), DENSITY)
    optimizer = torch.optim.Adam(model.parameters(), lr=setting.config.optimizer["lr"])
    train = load(splits.train)
    for epoch in range(setting.config.training.epochs):
        order = torch.randperm(len(splits.train), generator=generator(setting.config.seed, "order", epoch))
        for inputs, targets in DataLoader(train, batch_sampler=[part.tolist() for part in order.split(size)]):
            _multiply(dict(model.named_parameters()), masks)
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
    _multiply(dict(model.named_parameters()), masks)
    folder.mkdir()
    torch.save(model.state_dict(), folder / "model.pt")
    model.eval()
    with torch.no_grad():
        found = {}
        for name, examples in (("validation", splits.validation), ("test", splits.test)):
            right = sum(int((model(x).argmax(1) == y).sum()) for x, y in DataLoader(load(examples), batch_size=1000))
            found[name] = right / len(examples)
    return found["test"]


@torch.no_grad()
def _multiply(parameters: dict[str, torch.nn.Parameter], masks: Masks) -> None:
    for name, mask in masks.items():
        parameters[name].mul_(mask)


def timed_steps(seconds: list[float]) -> Callable[..., Tensor]:
    """The training loop's step, which adds what it took to the last of `seconds`."""
    step = training._step

    def timed(*args: Any) -> Tensor:
        start = time.perf_counter()
        loss = step(*args)
        seconds[-1] += time.perf_counter() - start
        return loss

    return timed


def timed_batches(seconds: list[float]) -> Callable[..., Iterator[Batch]]:
    """The training loop's batches, which add what gathering one took to the last of `seconds`."""
    batches = training.upcoming

    def timed(*args: Any) -> Iterator[Batch]:
        start = time.perf_counter()
        for batch in batches(*args):
            seconds[-1] += time.perf_counter() - start
            yield batch
            start = time.perf_counter()

    return timed


@dataclass(frozen=True)
class Seconds:
    """Seconds of one contender.

    Attributes:
        levels: each turn's seconds, warm-up left out.
        steps: what they took inside training steps.
        gathering: what they took to gather batches.
        accuracy: on the test data, of the last turn.
    """

    levels: list[float]
    steps: list[float]
    gathering: list[float]
    accuracy: float


def measured(setting: Setting, turns: int, folder: Path) -> dict[str, Seconds]:
    """Seconds of all contenders in turn; steps and gathering are measured of "ours" alone, else zero."""
    names, accuracies = count(), {}
    steps: dict[str, list[float]] = {name: [] for name in TITLES}
    gathering: dict[str, list[float]] = {name: [] for name in TITLES}

    def call(name: str, run: Callable[[Setting, Path], float]) -> None:
        steps[name].append(0.0)
        gathering[name].append(0.0)
        with (
            patch.object(training, "_step", timed_steps(steps[name])),
            patch.object(training, "upcoming", timed_batches(gathering[name])),
        ):
            accuracies[name] = run(setting, folder / str(next(names)))

    runs = {"ours": level, "tensors": partial(loop, tensors), "pictures": partial(loop, Pictures)}
    seconds = in_turn({name: partial(call, name, run) for name, run in runs.items()}, turns, warmup=1)
    return {
        name: Seconds(levels, steps[name][-turns:], gathering[name][-turns:], accuracies[name])
        for name, levels in seconds.items()
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Run it; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--data", default="mnist5k", help="digits is smaller")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    overrides = [f"data={options.data}", "model=lenet_300_100", "optimizer=adam", "optimizer.lr=1.2e-3"]
    overrides += ["recovery=rewind", f"training.epochs={options.epochs}"]
    with tempfile.TemporaryDirectory() as place:
        setting = composed.setting(Store(Path(place)), overrides)
        found = measured(setting, options.turns, Path(place))
    ours = found["ours"]
    ratios = {name: median_ratio(one.levels, ours.levels) for name, one in found.items()}
    rows = []
    for name, one in found.items():
        median = statistics.median(one.levels)
        cells = f"{median:.2f}", f"{median / options.epochs:.3f}", f"{ratios[name]:.2f}", f"{one.accuracy:.3f}"
        rows.append((TITLES[name], *cells))
    show(
        f"a level of LeNet-300-100, {options.epochs} epochs of {len(setting.splits.train):,} digits, "
        f"{options.threads} thread(s), medians",
        ("", "s a level", "s an epoch", "ratio", "test accuracy"),
        rows,
        {
            "seconds_level": rounded(statistics.median(ours.levels)),
            "seconds_epoch": rounded(statistics.median(ours.levels) / options.epochs),
            "speedup": {name: rounded(ratios[name]) for name in ("tensors", "pictures")},
            "outside_steps": round(1 - median_ratio(ours.steps, ours.levels), 4),
            "gathering": round(median_ratio(ours.gathering, ours.levels), 4),
            "accuracy": {name: one.accuracy for name, one in found.items()},
        },
    )


if __name__ == "__main__":
    main()
