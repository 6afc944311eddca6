"""python -m experiments.benchmarks.startup: how long commands take before they do anything, beside `import torch`.

Every turn runs `python -c "import torch"` and then each command in a process of its own, on one thread. A command's
ratio is the median over turns of its seconds by torch's in the same turn.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

from experiments.benchmarks.measuring import Row, median_ratio, show
from experiments.records.runs import record_state

COMMANDS = {
    "run": ("-m", "experiments.run", "--help"),
    "configuration": ("-m", "experiments.run", "--cfg", "job"),
    "status": ("-m", "experiments.status", "runs"),
    "store": ("-m", "experiments.store", "ls"),
    "report": ("-m", "experiments.report", "--help"),
    "compare": ("-m", "experiments.compare", "--help"),
}
_TORCH = ("-c", "import torch")


def main(argv: Sequence[str] | None = None) -> None:
    """Run it; see the module's docstring."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--commands", nargs="+", choices=tuple(COMMANDS), default=[*COMMANDS])
    options = parser.parse_args(argv)
    summary: dict[str, Any] = {"torch_seconds": 0.0, "ratio": {}}
    show(
        f"{options.rounds} turns, one thread, {os.cpu_count()} cores",
        ("command", "seconds", "by torch"),
        _rows(options.rounds, options.commands, summary),
        summary,
    )


def _rows(rounds: int, names: Sequence[str], summary: dict[str, Any]) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "runs" / "one").mkdir(parents=True)
        (folder / "runs" / "store").mkdir()
        with record_state(folder / "runs" / "one", "python -m experiments.run"):
            pass
        _seconds(folder, _TORCH)  # reads what the disk has: nobody's first command is measured
        alone: list[float] = []
        for name in names:
            torch, command = [], []
            for _ in range(rounds):
                torch.append(_seconds(folder, _TORCH))
                command.append(_seconds(folder, COMMANDS[name]))
            alone += torch
            summary["ratio"][name] = round(median_ratio(command, torch), 2)
            words = " ".join(("python", *COMMANDS[name]))
            yield words, f"{statistics.median(command):.2f}", f"{summary['ratio'][name]:.2f}"
        summary["torch_seconds"] = round(statistics.median(alone), 2)
        yield 'python -c "import torch"', f"{summary['torch_seconds']:.2f}", "1.00"


def _seconds(folder: Path, command: Sequence[str]) -> float:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    begun = perf_counter()
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    spent = perf_counter() - begun
    if done.returncode:
        raise SystemExit(done.stderr)
    return spent


if __name__ == "__main__":
    main()
