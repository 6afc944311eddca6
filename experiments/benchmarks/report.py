"""python -m experiments.benchmarks.report: what the report of a sweep costs, in CPU seconds, part by part.

The sweep is made up, as many methods, densities and seeds as asked for, of a LeNet-300-100 on digits with random masks
and weights: every figure is drawn. CPU seconds, unlike those of the clock, are the same on a machine that others use.
"""

import argparse
import io
import math
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from functools import wraps
from pathlib import Path
from time import process_time
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.layout_engine import ConstrainedLayoutEngine
from torch import nn

from experiments import records, report
from experiments.benchmarks.measuring import Row, show
from experiments.replications import composed
from experiments.results import figures, gallery, statistics
from experiments.results.intervals import INTERVALS
from experiments.running.conditions import conditions
from experiments.running.setting import Setting
from experiments.store import Store, networks
from pruning import Masks, prunable

SCORERS = ("magnitude", "random", "snip", "grasp", "synflow", "taylor", "fisher", "lamp", "obd", "gradient")
RECOVERIES = ("finetune", "rewind", "retrain", "lr_rewind", "none")
METHODS = [(SCORERS[0], RECOVERIES[0]), *((scorer, how) for how in RECOVERIES for scorer in SCORERS[1:])]
"""Methods; exactly one is magnitude, with which the others are compared."""
EPOCHS = 10
PARTS: Mapping[str, Sequence[tuple[Any, str]]] = {
    "rows": [(records, "read")],
    "means": [(statistics, name) for name in ("points", "summarise", "summarise_points", "dense")],
    "comparison": [(report, "_compared")],
    "numbers of figures": [(gallery, name) for name in ("layer_densities", "overlaps", "histograms", "losses")],
    "figures": [(figures, "accuracy")]
    + [(gallery, name) for name in ("difference", "layers", "overlap", "weights", "training")],
    "layout": [(ConstrainedLayoutEngine, "execute")],
    ".png": [(FigureCanvasAgg, "print_png")],
    ".pdf": [(FigureCanvasPdf, "print_pdf")],
    "page": [(report, "render")],
}
"""The functions that make each part of a report."""


def make_sweep(folder: Path, methods: int, densities: int, seeds: int) -> None:
    """Write the rows of a sweep below `folder`/runs, and its networks into `folder`/store."""
    store, rng = Store(folder / "store"), np.random.default_rng(0)
    asked = [float(f"{density:.3g}") for density in np.geomspace(0.5, 0.005, densities)]
    for number, (scorer, recovery) in enumerate(METHODS[:methods]):
        overrides = ["data=digits", "model=lenet_300_100", f"scorer={scorer}", f"recovery={recovery}"]
        setting = composed.setting(store, overrides)
        for seed in range(seeds):
            run = f"{scorer}-{recovery}-{seed}"
            rows = list(_run(setting, run, seed, asked, 0.02 + 0.002 * number, rng))
            records.write(folder / "runs" / run, rows)


def _run(
    setting: Setting, run: str, seed: int, densities: Sequence[float], loss: float, rng: np.random.Generator
) -> Iterator[dict[str, Any]]:
    torch.manual_seed(seed)
    model = setting.new_model()
    shared = {"format": records.FORMAT, "run": run, "scorer": run.split("-", maxsplit=1)[0], "model": "lenet_300_100"}
    shared |= {"data": "digits", "seed": seed, "config": setting.config.as_dict() | {"seed": seed}, "control": None}
    shared |= {"versions": {"torch": torch.__version__}, "threads": 1, "latency_ms": None, "epochs": EPOCHS}
    dense = ""
    for level, density in enumerate([1.0, *densities]):
        masks = _masks(model, density, rng)
        key = _network(setting.store, {"run": run if level else "dense", "seed": seed, "at": density}, model, masks)
        dense = dense or key
        accuracy = 0.97 + seed / 1000 - loss * (4 * level / len(densities)) ** 2 + rng.normal(0, 0.004) * bool(level)
        begin = EPOCHS * bool(level)
        layers = [{"name": line.name, "total": line.total, "kept": line.kept} for line in masks.table()]
        losses = [[begin + epoch + 1, 2 * 0.8**epoch + 0.01 * rng.random()] for epoch in range(EPOCHS)]
        yield shared | {
            "level": level,
            "round": min(level, 1),
            "rounds": min(level, 1),
            "requested_density": density,
            "density": masks.density,
            "prunable": masks.total,
            "kept": masks.kept,
            "layers": layers,
            "dense_macs": masks.total,
            "macs": masks.kept,
            "seconds": 1.0,
            "total_epochs": begin + EPOCHS,
            "test_accuracy": accuracy,
            "test_loss": 1 - accuracy,
            "losses": losses,
            "dense": dense,
            "network": key,
        }


def _masks(model: nn.Module, density: float, rng: np.random.Generator) -> Masks:
    shapes = {name: parameter.shape for name, parameter in prunable(model).items()}
    return Masks({name: torch.from_numpy(rng.random(shape, np.float32) < density) for name, shape in shapes.items()})


def _network(store: Store, identity: Mapping[str, Any], model: nn.Module, masks: Masks) -> str:
    course = {"steps": EPOCHS, "epoch_steps": 1, "position": EPOCHS}
    held = None if identity["run"] == "dense" else masks
    return store.obtain(
        "made_up", identity, lambda folder: networks.save(folder, model, held, course, [], None, conditions({}))
    ).key


@contextmanager
def timed(parts: Mapping[str, Sequence[tuple[Any, str]]]) -> Iterator[Counter[str]]:
    """CPU seconds of each part, without those of the parts that it calls."""
    seconds: Counter[str] = Counter()
    inner = [0.0]  # of each call that is going on: what parts within it took

    def timing(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            inner.append(0.0)
            begun = process_time()
            try:
                return function(*args, **kwargs)
            finally:
                took = process_time() - begun
                seconds[part] += took - inner.pop()
                inner[-1] += took

        return call

    with ExitStack() as stack:
        for part, functions in parts.items():
            for owner, name in functions:
                stack.enter_context(patch.object(owner, name, timing(part, getattr(owner, name))))
        yield seconds


def measured(arguments: Sequence[str], found: dict[str, float]) -> Iterator[Row]:
    """A row a part, and one of all."""
    with timed(PARTS) as seconds, redirect_stdout(io.StringIO()) as printed:
        begun = process_time()
        if report.main(arguments):
            raise SystemExit("no report: its error is above")
        total = process_time() - begun
    if "not drawn" in printed.getvalue():
        raise SystemExit(printed.getvalue())
    rest = total - math.fsum(seconds.values())
    for part, took in (*((part, seconds[part]) for part in PARTS), ("the rest", rest), ("all", total)):
        found[part] = round(took, 3)
        yield part, f"{took:.2f}", f"{100 * took / total:.0f} %"


def main(argv: Sequence[str] | None = None) -> None:
    """Run it; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--methods", type=int, default=20, choices=range(2, len(METHODS) + 1), metavar="N", help=f"2 to {len(METHODS)}"
    )
    parser.add_argument("--densities", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--interval", choices=tuple(INTERVALS), default="t")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make_sweep(folder, options.methods, options.densities, options.seeds)
        arguments = [str(folder / "runs"), "--store", str(folder / "store"), "--interval", options.interval]
        show(
            f"the report of {options.methods} methods, {options.densities} densities, {options.seeds} seeds",
            ("part", "CPU seconds", "share"),
            measured(arguments, found),
            {"cpu_seconds": found},
        )


if __name__ == "__main__":
    main()
