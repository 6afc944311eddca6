"""Which form of a layer is faster on this machine: measured once for a shape and class of density, and remembered."""

import json
import logging
import os
import platform
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from math import log2
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from pruning.execution.modules import sparsify_
from pruning.execution.product import Pattern, block_columns, has_csr
from pruning.execution.timing import in_turn

log = logging.getLogger("pruning")

ROUNDS = 9
PRODUCTS = 3
"""Which products were measured: to be raised when they become faster or slower."""
GAIN = 1.1
"""By how much a form must be faster to be chosen: below that it may be noise, and the one before it is simpler."""


@dataclass(frozen=True)
class Case:
    """A layer as the measurement sees it.

    Attributes:
        outputs, inputs: of the matrix.
        rows: of a batch, or its images where it is a convolution; rounded to a power of two.
        positions: of an image, rounded alike; 0 for a Linear.
        density: kept / all, rounded to the next of 1, 0.7, 0.5, 0.35, … (two classes an octave).
        dtype: of the weights.
        threads: of torch.
    """

    outputs: int
    inputs: int
    rows: int
    positions: int
    density: float
    dtype: str
    threads: int

    @classmethod
    def of(cls, mask: Tensor, rows: int, positions: int, dtype: torch.dtype) -> "Case":
        """The case of a layer with this `mask`, [outputs, inputs] or a kernel of that."""
        matrix = mask.flatten(1)
        kept = max(1, int(matrix.sum())) / matrix.numel()
        outputs, inputs = matrix.shape
        return cls(
            outputs=outputs,
            inputs=inputs,
            rows=_power_of_two(rows),
            positions=_power_of_two(positions) if positions else 0,
            density=round(2.0 ** (round(2 * log2(kept)) / 2), 6),
            dtype=str(dtype).removeprefix("torch."),
            threads=torch.get_num_threads(),
        )


def _power_of_two(count: int) -> int:
    return 1 << round(log2(max(1, count)))


class Crossover:
    """Speed-ups measured on this machine, kept in a file where one can be written."""

    def __init__(self, path: Path | None = None):
        """Read `path`, a JSON file; None: one in the user's cache (XDG_CACHE_HOME, or ~/.cache)."""
        self._path = path or _default()
        self._known = _read(self._path)
        self._warned = False

    def speedups(self, case: Case) -> dict[str, float]:
        """Seconds of the dense form under its mask / seconds of each sparse one; measured if they are not known yet.

        "sparse" is the one whose products are bags, "csr" that of MKL's product, where there is one.
        """
        key = f"{processor()}, torch {torch.__version__}, products {PRODUCTS}; {case}"
        if key not in self._known:
            self._known[key] = measured(case)
            self._remember()
        return self._known[key]

    def _remember(self) -> None:
        """Write all speed-ups to the file, with what other processes have measured meanwhile; warn once if it fails."""
        temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}.tmp")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(_read(self._path) | self._known, indent=1, sort_keys=True))
            temporary.replace(self._path)
        except OSError as error:
            if not self._warned:
                log.warning("%s: cannot be written, so the next process will measure again: %s", self._path, error)
            self._warned = True
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def of_this_machine() -> Crossover:
    """Measurements in the user's cache, read once a process."""
    return _read_once(_default())


@cache
def _read_once(path: Path) -> Crossover:
    return Crossover(path)


def fastest(speedups: Mapping[str, float]) -> str:
    """Name of the form to take, of those that are given from the simplest on with their speed-ups over "dense".

    Each is to be `GAIN` times as fast as what is taken without it.
    """
    found, best = "dense", 1.0
    for name, speedup in speedups.items():
        if speedup >= GAIN * best:
            found, best = name, speedup
    return found


def measured(case: Case, rounds: int = ROUNDS) -> dict[str, float]:
    """Dense seconds / seconds of each sparse form, the medians of turns in which all run one after the other.

    The mask is random: how long a product takes depends on how many values there are, hardly on where they lie.
    """
    generator = torch.Generator().manual_seed(0)
    dtype = getattr(torch, case.dtype)
    mask = torch.rand(case.outputs, case.inputs, generator=generator) < case.density
    mask[0, 0] = True
    dense = _layer(case, dtype)
    shape = (case.rows, case.inputs, 1, case.positions) if case.positions else (case.rows, case.inputs)
    inputs = torch.randn(shape, generator=generator, dtype=dtype)
    gradient = torch.randn(dense(inputs).shape, generator=generator, dtype=dtype)
    values = dense.get_parameter("weight").detach().flatten(1)[mask]
    layers = {"dense": dense, "sparse": _layer(case, dtype)} | ({"csr": _layer(case, dtype)} if has_csr() else {})
    for name, few in {"sparse": 0, "csr": block_columns(case.rows, case.positions)}.items():
        if name in layers:
            sparsify_(layers[name], nn.Parameter(values.clone()), Pattern.of(mask, few), row_major=False)
    held = mask.view_as(dense.get_parameter("weight")).to(dtype)
    optimizers = {name: torch.optim.Adam(layer.parameters(), fused=True) for name, layer in layers.items()}

    def call(name: str) -> None:
        _step(layers[name], held if name == "dense" else None, optimizers[name], inputs, gradient)

    with torch.enable_grad():
        seconds = in_turn({name: partial(call, name) for name in layers}, rounds)
    first = seconds.pop("dense")
    return {name: median(a / b for a, b in zip(first, found, strict=True)) for name, found in seconds.items()}


def _layer(case: Case, dtype: torch.dtype) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        if case.positions:
            return nn.Conv2d(case.inputs, case.outputs, 1, dtype=dtype)
        return nn.Linear(case.inputs, case.outputs, dtype=dtype)


def _step(
    layer: nn.Module, held: Tensor | None, optimizer: torch.optim.Optimizer, inputs: Tensor, gradient: Tensor
) -> None:
    optimizer.zero_grad()
    layer(inputs.detach().requires_grad_()).backward(gradient)
    if held is not None:
        weight = layer.get_parameter("weight")
        assert weight.grad is not None
        weight.grad.mul_(held)
    optimizer.step()


def processor() -> str:
    """The name of this machine's processor."""
    found = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*: (.+)$", found.read_text(), re.MULTILINE) if found.exists() else []
    return names[0] if names else platform.processor() or platform.machine()


def _default() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "sparse-subnetworks" / "crossover.json"


def _read(path: Path) -> dict[str, dict[str, float]]:
    """Speed-ups in the file, by case; damaged ones are left out, and so measured again."""
    try:
        found = json.loads(path.read_text())
        known = found if isinstance(found, dict) else {}
        return {
            key: {name: float(value) for name, value in speedups.items()}
            for key, speedups in known.items()
            if isinstance(speedups, dict) and all(isinstance(value, int | float) for value in speedups.values())
        }
    except (OSError, ValueError, OverflowError, RecursionError):
        return {}
