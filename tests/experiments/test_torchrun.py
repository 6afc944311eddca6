"""Two processes that train one network: the same masks in both, and what one process alone would make of it."""

import json
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
from tests.experiments.running import ROOT, SMALL, run

OPTIONS = {
    "taylor": ("scorer=taylor", "density=[0.5,0.1]"),  # device=auto, as users have it
    "classes of different weights": ("task.weights=[1,2,3,4,5,1,1,1,1,0.5]", "density=0.3", "training.batch_size=50"),
    "distilled": ("distillation=logits", "density=0.3", "training.batch_size=50"),
    "a sparse update alone": (
        *("adaptation=sparse", "adaptation.budget=200", "adaptation.learning_rate=0.01", "density=0.3", "device=cpu"),
        *("training.batch_size=50", "adaptation.scorer._target_=pruning.scorers.magnitude"),
    ),
    "rigl clipped in parts": (
        "dynamic=rigl",
        "device=cpu",
        "dynamic.every=5",
        "density=0.2",
        "training.clip=1",
        "training.accumulate=3",
    ),
}
MISTAKE = ("allocation.minimum=100000", "density=0.5")

WATCHED = """
import json, sys
from pathlib import Path
from experiments.runtime import processes
from experiments import run
from experiments.running.stages import masks as stage

made = stage.selected
def watched(*arguments, **options):  # the masks that each process finds by itself
    masks = made(*arguments, **options)
    masks.save(place / f"{masks.kept}-of-{processes.rank()}.safetensors")
    return masks

stage.selected = watched
folder, commands = Path(sys.argv[1]), json.loads(sys.argv[2])
for name, words in commands.items():
    place = folder / name
    place.mkdir(exist_ok=True)
    sys.argv = ["run", *words, f"folder={place}/runs", f"store={place}/store"]
    code = run.main()
    print(f"{name} ends with {code}\\n", end="")  # one write: the other process prints into the same stream
    if code:
        sys.exit(code)
"""


@pytest.fixture(scope="module")
def together(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    """All options and in the end the mistake, each in a folder of its name, in two processes that torchrun starts
    once; and how it ended.
    """
    folder = tmp_path_factory.mktemp("together")
    script = folder / "watched.py"
    script.write_text(WATCHED)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    commands = {name: [*SMALL, *options] for name, options in (OPTIONS | {"mistake": MISTAKE}).items()}
    done = subprocess.run(
        [sys.executable, *launch, str(script), str(folder), json.dumps(commands)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )
    return folder, done


@pytest.mark.parametrize("options", OPTIONS)
def test_two_processes_are_as_one(together, tmp_path, options):
    folder, done = together[0] / options, together[1]
    assert done.stdout.count(f"{options} ends with 0\n") == 2, done.stderr
    run(tmp_path, *OPTIONS[options])
    one, two = records.read(tmp_path / "run"), records.read(folder / "runs")
    assert one["processes"].tolist() == [1] * len(one)
    assert two["processes"].tolist() == [2] * len(two)
    assert two["kept"].tolist() == one["kept"].tolist()
    assert two["test_accuracy"].tolist() == pytest.approx(one["test_accuracy"].tolist(), abs=0.003)  # one of 360
    assert two["test_loss"].tolist() == pytest.approx(one["test_loss"].tolist(), rel=1e-4)
    for ours, theirs in zip(one["losses"], two["losses"], strict=True):  # means over the examples of both processes
        assert [end for end, _ in theirs] == [end for end, _ in ours]
        assert [loss for _, loss in theirs] == pytest.approx([loss for _, loss in ours], rel=1e-4)
    if options == "taylor":
        found = sorted(folder.glob("*-of-*.safetensors"))
        assert len(found) == 4  # two densities, two processes
        for first, second in zip(found[::2], found[1::2], strict=True):
            a, b = Masks.load(first), Masks.load(second)
            assert all(torch.equal(a[name], b[name]) for name in a)
        stored = sorted((folder / "store" / "masks").glob(f"*/{MASKS}"))
        assert len(stored) == 2


def test_a_mistake_ends_all_processes(together):
    _, done = together
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
