"""Two processes that train one network: the same masks in both, and what one process alone would make of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from experiments import records
from experiments.store.networks import MASKS
from experiments.training import loop as training
from experiments.training.loop import _share
from pruning import Masks
from pruning.errors import ConfigurationError
from tests.experiments.running import ROOT, SMALL

WATCHED = """
import sys
from pathlib import Path
from experiments.running import jobs
from experiments.runtime import processes
from experiments import run
from experiments.running.stages import masks as stage

place, made = sys.argv[1], stage.selected
def watched(*arguments, **options):  # the masks that each process finds by itself
    masks = made(*arguments, **options)
    masks.save(Path(place) / f"{masks.kept}-of-{processes.rank()}.safetensors")
    return masks

stage.selected = watched
sys.argv = ["run", *sys.argv[2:], f"folder={place}/runs", f"store={place}/store"]
sys.exit(run.main())
"""


def together(folder: Path, count: int, *overrides: str) -> subprocess.CompletedProcess:
    script = folder / "watched.py"
    folder.mkdir(exist_ok=True)
    script.write_text(WATCHED)
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    return subprocess.run(
        [sys.executable, *launch, str(script), str(folder), *SMALL, *overrides],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )


OPTIONS = {
    "taylor": ("scorer=taylor", "density=[0.5,0.1]"),  # device=auto, as users have it
    "classes of different weights": ("task.weights=[1,2,3,4,5,1,1,1,1,0.5]", "density=0.3", "training.batch_size=50"),
    "rigl, clipped, in parts": (
        "dynamic=rigl",
        "device=cpu",
        "dynamic.every=5",
        "density=0.2",
        "training.clip=1",
        "training.accumulate=3",
    ),
}


@pytest.mark.parametrize("options", OPTIONS)
def test_two_processes_are_as_one(tmp_path, options):
    for name, count in (("one", 1), ("two", 2)):
        done = together(tmp_path / name, count, *OPTIONS[options])
        assert done.returncode == 0, done.stderr
    one, two = (records.read(tmp_path / name / "runs") for name in ("one", "two"))
    assert one["processes"].tolist() == [1] * len(one)
    assert two["processes"].tolist() == [2] * len(two)
    assert two["kept"].tolist() == one["kept"].tolist()
    assert two["test_accuracy"].tolist() == pytest.approx(one["test_accuracy"].tolist(), abs=0.003)  # one of 360
    assert two["test_loss"].tolist() == pytest.approx(one["test_loss"].tolist(), rel=1e-4)
    if options == "taylor":
        found = sorted((tmp_path / "two").glob("*-of-*.safetensors"))
        assert len(found) == 4  # two densities, two processes
        for first, second in zip(found[::2], found[1::2], strict=True):
            a, b = Masks.load(first), Masks.load(second)
            assert all(torch.equal(a[name], b[name]) for name in a)
        stored = sorted((tmp_path / "two" / "store" / "masks").glob(f"*/{MASKS}"))
        assert len(stored) == 2


def test_a_mistake_ends_all_processes(tmp_path):
    done = together(tmp_path, 2, "allocation.minimum=100000", "density=0.5")
    assert done.returncode != 0
    assert "minimum=100000" in done.stderr


def test_processes_that_would_train_apart_are_refused(monkeypatch):
    monkeypatch.setattr(training, "world_size", lambda: 2)
    with pytest.raises(ConfigurationError, match="sees 1 of 2 processes"):
        training.accelerator()


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [1, 2, 4, 7, 60])
def test_processes_share_a_batch_without_rest(monkeypatch, world, count):
    monkeypatch.setattr(training, "world_size", lambda: world)
    found = []
    for rank in range(world):
        monkeypatch.setattr(training, "rank", lambda rank=rank: rank)
        own, weight = _share(count)
        taken = list(range(count))[own]
        assert len(taken) >= min(2, count)  # a forward pass needs an example, batch norm two
        found += taken if weight else []
    assert sorted(found) == list(range(count))
