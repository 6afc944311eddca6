"""python -m experiments.benchmarks.sweep: a sweep whose jobs run two at once, beside the same one after another.

Each turn runs three commands in new folders. Every job has a seed of its own, so none waits for another's network.
Two figures a command: the throughput of its jobs (from the first job's begin to the last one's end), which long sweeps
approach, and the whole command, importing and all, which every process repeats. Jobs one after another get all cores
by default, and small networks gain little from a second thread: so that is timed with one thread a job as well, as the
jobs two at once have.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

from experiments.benchmarks.measuring import median_ratio, rounded, show
from experiments.records.runs import states

_COMMAND = (sys.executable, "-m", "experiments.run", "-m", "scorer=magnitude", "density=[0.1,0.02]")
_CONTENDERS = {
    "single": ("one after another, 1 thread", ("threads=1",)),
    "default": ("one after another", ()),
    "together": ("two at once", ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run it; see the module's docstring."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=6)
    parser.add_argument("--epochs", type=int, default=75, help="of each dense network")
    parser.add_argument("--data", default="mnist5k", help="digits is smaller")
    parser.add_argument("--contenders", nargs="+", choices=tuple(_CONTENDERS), default=[*_CONTENDERS])
    options = parser.parse_args(argv)
    seeds = ",".join(map(str, range(options.jobs)))
    work = (f"seed={seeds}", f"data={options.data}", f"training.epochs={options.epochs}")
    jobs: dict[str, list[float]] = {name: [] for name in options.contenders}
    commands: dict[str, list[float]] = {name: [] for name in options.contenders}
    for _ in range(options.rounds):
        for name in options.contenders:
            span, whole = _sweep(*work, *_CONTENDERS[name][1])
            jobs[name].append(span)
            commands[name].append(whole)
    first = options.contenders[0]
    throughput = {name: rounded(median_ratio(jobs[first], spans)) for name, spans in jobs.items()}
    speedup = {name: rounded(median_ratio(commands[first], wholes)) for name, wholes in commands.items()}
    rows = [
        (
            _CONTENDERS[name][0],
            f"{statistics.median(jobs[name]) / options.jobs:.2f}",
            f"{throughput[name]:.2f}",
            f"{statistics.median(commands[name]):.1f}",
            f"{speedup[name]:.2f}",
        )
        for name in options.contenders
    ]
    show(
        f"{options.jobs} jobs of {options.epochs} epochs, {os.cpu_count()} cores",
        ("jobs", "seconds a job", "throughput", "whole command", "speed-up"),
        rows,
        {"throughput": throughput, "whole_command": speedup},
    )


def _sweep(*overrides: str) -> tuple[float, float]:
    """Seconds of the jobs and of the whole command, in a new folder; threads as the launcher gives, not the shell."""
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    with tempfile.TemporaryDirectory() as folder:
        places = (f"folder={folder}/runs", f"store={folder}/store")
        command = [*_COMMAND, *places, *overrides]
        begun = perf_counter()
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        whole = perf_counter() - begun
        if done.returncode:
            raise SystemExit(done.stderr)
        found = states(Path(folder))
        return max(state.ended or 0.0 for state in found) - min(state.began for state in found), whole


if __name__ == "__main__":
    main()
