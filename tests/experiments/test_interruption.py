"""Interrupted = uninterrupted: a run that is killed again and again ends with the same bits as one that is not."""

import math
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from experiments import run as app
from experiments.running.setting import Setting
from experiments.store import Store
from experiments.store.networks import MASKS, WEIGHTS
from tests.experiments.running import configured, timeless

KILLS = int(os.environ.get("KILLS", "20"))  # `make kills` asks for more
CONTEXT = multiprocessing.get_context("fork")
OFTEN = ("checkpoint.steps=3", "checkpoint.seconds=null")
RUNS = {
    "lottery ticket": (
        *("allocation=rates", "schedule=repeat", "schedule.rounds=2", "density=null", "controls=[reinit,shuffle]"),
        *("recovery=rewind", "recovery.to=7it", "model.batch_norm=true"),
    ),
    "rigl": ("dynamic=rigl", "dynamic.every=5", "density=[0.3,0.1]", "training.epochs=6"),
    "fine-tuning": ("schedule=exponential", "schedule.rounds=4", "density=0.1", "recovery.epochs=2", "scorer=taylor"),
    "sparse execution": ("execution=sparse", "density=[0.3,0.1]", "recovery.epochs=2"),
    "rigl in sparse execution": ("execution=sparse", "dynamic=rigl", "dynamic.every=5", "density=0.2"),
    "distilled": (
        *("distillation=combined", "distillation.terms.hidden.layers=[fc1]", "density=[0.3,0.1]", "recovery.epochs=2"),
        *("model.batch_norm=true", "training.best_on_validation=true"),
    ),
    "sparse update": ("adaptation=sparse", "adaptation.budget=0.2", "density=[0.5]", "training.trainable=[*.bias]"),
    "best epoch of an adaptation": (
        *("adaptation=lora", "adaptation.budget=lora:1", "density=1.0", "recovery.epochs=3", "adaptation.widen=0"),
        "training.best_on_validation=true",
    ),
    "gradual": ("dynamic=gradual", "dynamic.every=5", "density=[0.3,0.1]", "recovery.epochs=4"),
    "codes": ("dynamic=auto_pruner", "granularity=channels", "latency=null", "density=0.5", "recovery.epochs=6"),
}


def run(folder: Path, config: dict) -> list[dict]:
    torch.set_num_threads(1)
    return app.run(Setting(config, Store(folder / "store")), folder / "run", "name")


def contents(folder: Path) -> dict[str, bytes]:
    """Weights and masks of all artefacts, and nothing of time."""
    found = {}
    for path in sorted((folder / "store").rglob("*.safetensors")):
        if path.name in (WEIGHTS, MASKS):
            found[str(path.relative_to(folder))] = path.read_bytes()
    return found


@pytest.mark.parametrize("name", RUNS)
def test_killed_at_random_instants_it_ends_in_the_same_bits(tmp_path, name):
    threads = torch.get_num_threads()
    config = configured(*RUNS[name], *OFTEN)
    began = time.monotonic()
    want = run(tmp_path / "whole", config)
    length = time.monotonic() - began
    noise, cut = random.Random(name), tmp_path / "cut"
    killed = 0
    while killed < math.ceil(KILLS / len(RUNS)):
        victim = CONTEXT.Process(target=run, args=(cut, config))
        victim.start()
        victim.join(noise.random() * 2 * length * len(RUNS) / KILLS)
        if victim.is_alive():
            os.kill(victim.pid, signal.SIGKILL)
            killed += 1
        victim.join()
        if victim.exitcode == 0:  # it came to its end: the next one begins anew
            check(cut, tmp_path / "whole", config, want)
            cut = tmp_path / f"cut{killed}"
    check(cut, tmp_path / "whole", config, want)
    torch.set_num_threads(threads)


def check(cut: Path, whole: Path, config: dict, want: list[dict]) -> None:
    assert timeless(run(cut, config)) == timeless(want)
    assert contents(cut) == contents(whole)
    assert list((cut / "store" / "unfinished").iterdir()) == []


@pytest.mark.parametrize("kept", ["half", "all"])
def test_killed_while_a_checkpoint_is_written(tmp_path, monkeypatch, kept):
    """Between the bytes of the file, and between the file and its new name: the one before it counts."""
    config = configured(*RUNS["fine-tuning"], *OFTEN)
    want = run(tmp_path / "whole", config)
    replace, calls = Path.replace, []

    def dying(self: Path, target: Path) -> Path:
        nonlocal calls
        calls += [target] if target.suffix == ".safetensors" else []
        if len(calls) == 5:
            if kept == "half":
                self.write_bytes(self.read_bytes()[:1000])
            os.kill(os.getpid(), signal.SIGKILL)
        return replace(self, target)

    def victim() -> None:
        monkeypatch.setattr(Path, "replace", dying)
        run(tmp_path / "cut", config)

    process = CONTEXT.Process(target=victim)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert list((tmp_path / "cut" / "store" / "unfinished").glob("*.scratch/*"))
    check(tmp_path / "cut", tmp_path / "whole", config, want)
