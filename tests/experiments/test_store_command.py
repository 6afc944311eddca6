"""python -m experiments.store: what it lists, removes, and finds damaged."""

import errno
import fcntl
import math
import os
import shutil
from pathlib import Path

import pytest

from experiments.store import Store
from experiments.store.__main__ import main
from experiments.store.inventory import inventory, unfinished
from experiments.store.networks import MASKS, WEIGHTS
from pruning import Masks
from tests.experiments.running import run, timeless


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A run of two levels, and one that is not among the rows."""
    folder = tmp_path_factory.mktemp("made")
    run(folder, "density=[0.5,0.1]")
    run(folder, "density=[0.5,0.1]", "scorer=random")
    shutil.rmtree(folder / "run")
    run(folder, "density=[0.5,0.1]")
    return folder


@pytest.fixture
def folder(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "copy"))


def command(folder: Path, *words: str) -> int:
    return main([*words, "--store", str(folder / "store"), "--runs", str(folder / "run")])


def keys(folder: Path, kind: str, needed: bool | None = None) -> list[str]:
    entries = inventory(Store(folder / "store"), folder / "run")
    return [e.artefact.key for e in entries if e.artefact.kind == kind and needed in (None, e.needed)]


def test_it_lists_what_is_there_in_words_and_who_needs_it(folder, capsys):
    assert command(folder, "ls") == 0
    out = capsys.readouterr().out
    for words in ("mlp, seed 0: magnitude, density 0.5", "mlp, seed 0: random, density 0.1", "mlp, seed 0: steps 0 to"):
        assert words in out
    kinds = {"initial": 1, "dense": 1, "masks": 4, "recovered": 4, "rows": 5}
    assert {kind: len(keys(folder, kind)) for kind in kinds} == kinds
    idle = {"initial": 0, "dense": 0, "masks": 2, "recovered": 2, "rows": 2}
    assert {kind: len(keys(folder, kind, needed=False)) for kind in kinds} == idle
    assert "15 artefacts" in out
    assert "6 of them" in out


def test_what_nobody_needs_goes_and_the_run_stays_whole(folder, capsys, monkeypatch):
    assert command(folder, "rm", "--unreferenced") == 0
    assert "removed 6 artefacts" in capsys.readouterr().out
    assert keys(folder, "masks", needed=False) == []
    assert len(keys(folder, "masks")) == 2
    assert list((folder / "store" / "unfinished").iterdir()) == []
    monkeypatch.setattr("experiments.running.stages.trained.train", None)
    run(folder, "density=[0.5,0.1]")  # nothing has to be made again
    assert command(folder, "verify") == 0


def test_what_others_come_from_is_refused_unless_forced(folder, capsys):
    (dense,) = keys(folder, "dense")
    assert command(folder, "rm", dense) == 1
    assert f"error: dense {dense}: " in capsys.readouterr().err
    assert keys(folder, "dense") == [dense]
    assert command(folder, "rm", f"dense/{dense[:9]}", "--force") == 0
    assert keys(folder, "dense") == []
    run(folder, "density=[0.5,0.1]")
    assert keys(folder, "dense") == [dense]


def test_verify_names_what_is_damaged(folder, capsys):
    (dense,) = keys(folder, "dense")
    path = folder / "store" / "dense" / dense / WEIGHTS
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    mask = folder / "store" / "masks" / keys(folder, "masks")[0]
    (mask / "manifest.json").write_text("{")
    assert command(folder, "verify") == 1
    out = capsys.readouterr().out
    assert str(path) in out
    assert str(mask) in out
    assert "15 artefacts, 2 damaged" in out
    assert command(folder, "ls") == 0
    assert "damaged: " in capsys.readouterr().out


def test_a_run_makes_what_is_damaged_again_and_ends_the_same(folder, capsys, caplog):
    """One bit of the dense network, on which everything stands, and a mask that was cut."""
    want = run(folder, "density=[0.5,0.1]")
    store = folder / "store"
    (dense,) = keys(folder, "dense")
    path = store / "dense" / dense / WEIGHTS
    path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]))
    mask = store / "masks" / keys(folder, "masks", needed=True)[0] / MASKS
    mask.write_bytes(mask.read_bytes()[:-1])
    for kind in ("recovered", "rows"):
        shutil.rmtree(store / kind)
    assert timeless(run(folder, "density=[0.5,0.1]")) == timeless(want)
    assert caplog.text.count(": made again, the damaged one goes to ") == 2
    assert command(folder, "verify") == 0
    assert command(folder, "ls") == 0
    assert capsys.readouterr().out.count("was damaged, and has been made again") == 2
    assert command(folder, "rm", "--damaged") == 0
    assert "2 damaged" in capsys.readouterr().out
    assert list((store / "damaged").iterdir()) == []


def test_an_artefact_under_another_key_is_damage(folder, capsys):
    (dense,) = keys(folder, "dense")
    (folder / "store" / "dense" / dense).rename(folder / "store" / "dense" / ("0" * 16))
    assert command(folder, "verify") == 1
    assert "another configuration" in capsys.readouterr().out


def test_leftovers_are_told_from_work_and_removed(folder, capsys):
    store = Store(folder / "store")
    left = store.root / "unfinished" / "dense-0123456789abcdef-xyz"
    scratch = store.root / "unfinished" / "dense-fedcba9876543210.scratch"
    busy = store.root / "unfinished" / "masks-aaaaaaaaaaaaaaaa.scratch"
    for place in (left, scratch, busy):
        place.mkdir(parents=True)
        (place / "checkpoint").write_text("x")
    with store.lock("masks", "a" * 16):
        assert dict(unfinished(store)) == {left: False, scratch: False, busy: True}
        assert command(folder, "ls") == 0
        assert capsys.readouterr().out.count("left by a process") == 2
        assert command(folder, "rm", "--unfinished") == 0
    assert [path for path, _ in unfinished(store)] == [busy]


def test_where_there_are_no_locks_nothing_is_refused(folder, capsys, monkeypatch):
    def refuse(*_) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    (folder / "store" / "unfinished" / "dense-fedcba9876543210.scratch").mkdir(parents=True)
    assert command(folder, "ls") == 0
    assert command(folder, "rm", "--unreferenced", "--unfinished") == 0
    assert "removed 6 artefacts" in capsys.readouterr().out
    assert unfinished(Store(folder / "store")) == []


def test_scratch_space_of_a_complete_artefact_is_nobodys(folder, capsys):
    """As of a process that was killed after the last rename."""
    (dense,) = keys(folder, "dense")
    places = [folder / "store" / "unfinished" / f"dense-{key}.scratch" for key in (dense, "0" * 16)]
    for place in places:
        place.mkdir(parents=True)
    assert command(folder, "ls") == 0
    said = capsys.readouterr().out
    assert f"{places[0]}: left by a process that ended\n" in said
    assert f"{places[1]}: left by a process that ended; a repetition goes on with it\n" in said


def test_what_a_process_holds_stays(folder, capsys):
    key = keys(folder, "masks", needed=False)[0]
    store = Store(folder / "store")
    entries = [e for e in inventory(store, folder / "run") if key in e.parents]
    with store.lock("masks", key):
        assert command(folder, "rm", key, *(e.artefact.key for e in entries), "--force") == 0
    assert "a process holds it" in capsys.readouterr().out
    assert key in keys(folder, "masks")


@pytest.mark.parametrize(
    ("words", "said"), [(["rm"], "nothing to remove"), (["rm", "zzz"], "no artefact"), (["rm", "dense/"], None)]
)
def test_a_users_mistake_is_one_line(folder, capsys, words, said):
    assert command(folder, *words) == 1
    assert (said or "error: ") in capsys.readouterr().err
    assert main(["ls", "--store", str(folder / "none")]) == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("density", [0.1, 0.05, 0.02])
def test_a_level_on_disk_is_near_its_information(tmp_path, density):
    """Entropy of the mask, four bytes for every value that is kept, and at most 15 % besides."""
    options = ("model.hidden=[300,100]", "training.epochs=0", "recovery.epochs=1", f"density={density}")
    rows = run(tmp_path, *options)
    folder = tmp_path / "store" / "recovered"
    (level,) = folder.iterdir()
    size = sum((level / name).stat().st_size for name in (WEIGHTS, MASKS))
    masks = Masks.load(level / MASKS)
    share = masks.density
    entropy = -masks.total * (share * math.log2(share) + (1 - share) * math.log2(1 - share)) / 8
    values = 4 * rows[-1]["nonzero"]
    assert size <= 1.15 * (entropy + values)
