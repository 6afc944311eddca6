"""python -m experiments.benchmarks.sweep: a sweep whose jobs run two at once, beside the same one after another.

Each turn runs three commands in new folders, whole: importing, training, pruning, rows. Every job has a seed of its
own, so none waits for another's dense network. Jobs one after another get all cores by default; small networks may be
faster on one thread, so that is timed too, and the speed-up is over the faster of the two.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from functools import partial

from experiments.benchmarks.measuring import in_turn, median_ratio, show

_COMMAND = (sys.executable, "-m", "experiments.run", "-m", "scorer=magnitude", "data=mnist5k", "density=[0.1,0.02]")
_CONTENDERS = {
    "one after another": (),
    "one after another, 1 thread": ("threads=1",),
    "two at once": ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2"),
}


def main() -> None:
    """Run it; see the module's docstring."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=6)
    parser.add_argument("--epochs", type=int, default=25, help="of each dense network")
    arguments = parser.parse_args()
    work = (f"seed={','.join(map(str, range(arguments.jobs)))}", f"training.epochs={arguments.epochs}")
    calls = {name: partial(_sweep, *work, *launcher) for name, launcher in _CONTENDERS.items()}
    seconds = in_turn(calls, arguments.rounds, warmup=0)
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    *alone, together = _CONTENDERS
    faster = min(alone, key=medians.__getitem__)
    speedups = {name: median_ratio(seconds[faster], found) for name, found in seconds.items()}
    show(
        f"{arguments.jobs} jobs of {arguments.epochs} epochs, {os.cpu_count()} cores, whole commands",
        ("jobs", "seconds", "seconds a job", "speed-up"),
        [
            (name, f"{found:.1f}", f"{found / arguments.jobs:.2f}", f"{speedups[name]:.2f}")
            for name, found in medians.items()
        ],
        {"speedup": round(speedups[together], 2), "over": faster},
    )


def _sweep(*overrides: str) -> None:
    """The sweep in a new folder, with the threads that the launcher gives and none that the shell has set."""
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    with tempfile.TemporaryDirectory() as folder:
        places = (f"folder={folder}/runs", f"store={folder}/store")
        command = [*_COMMAND, *places, *overrides]
        done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)


if __name__ == "__main__":
    main()
