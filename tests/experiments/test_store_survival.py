"""What a store must survive: many processes, death at any instant, damage of any byte, a full disk."""

import json
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.store import Store
from pruning.errors import ArtefactError

ROOT = Path(__file__).parents[2]
CONTEXT = multiprocessing.get_context("fork")
CONTENT = {f"file{number}": bytes([number]) * (number * 1000 + 1) for number in range(12)}


def make(folder: Path) -> None:
    for name, content in CONTENT.items():
        (folder / name).write_bytes(content)


def counted(root: Path, seconds: float):
    def counting(folder: Path) -> None:
        with (root / "made.log").open("a") as log:
            log.write(f"{os.getpid()}\n")
        time.sleep(seconds)
        make(folder)

    return counting


def obtain(root: Path, seconds: float = 0.0) -> None:
    Store(root / "store").obtain("kind", {"a": 1}, counted(root, seconds))


def whole(root: Path) -> bool:
    def never(folder: Path) -> None:
        raise AssertionError("not there")

    artefact = Store(root / "store").obtain("kind", {"a": 1}, never)
    return all(artefact.file(name).read_bytes() == content for name, content in CONTENT.items())


def test_eight_processes_make_it_once(tmp_path):
    workers = [CONTEXT.Process(target=obtain, args=(tmp_path, 0.3)) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert [worker.exitcode for worker in workers] == [0] * 8
    assert len((tmp_path / "made.log").read_text().split()) == 1
    assert whole(tmp_path)


def test_one_that_dies_while_making_does_not_block_the_rest(tmp_path):
    first = CONTEXT.Process(target=obtain, args=(tmp_path, 60.0))
    first.start()
    while not (tmp_path / "made.log").exists():
        time.sleep(0.01)
    others = [CONTEXT.Process(target=obtain, args=(tmp_path, 0.1)) for _ in range(7)]
    for other in others:
        other.start()
    time.sleep(0.2)
    os.kill(first.pid, signal.SIGKILL)
    for other in others:
        other.join(30)
    assert [other.exitcode for other in others] == [0] * 7
    assert len((tmp_path / "made.log").read_text().split()) == 2
    assert whole(tmp_path)
    assert list((tmp_path / "store" / "unfinished").iterdir()) == []


def test_who_waits_says_so_once(tmp_path, caplog):
    caplog.set_level("INFO", logger="experiments")
    other = CONTEXT.Process(target=obtain, args=(tmp_path, 1.8))
    other.start()
    while not (tmp_path / "made.log").exists():
        time.sleep(0.01)
    obtain(tmp_path)
    other.join()
    assert caplog.text.count("waiting for another process, which is making kind ") == 1


def test_killed_at_any_instant_and_repeated_it_is_whole(tmp_path):
    """Also while files are written and while the folder takes its place."""
    noise = random.Random(0)
    for number in range(25):
        root = tmp_path / str(number)
        root.mkdir()
        victim = CONTEXT.Process(target=obtain, args=(root,))
        victim.start()
        time.sleep(noise.random() * 0.03)
        os.kill(victim.pid, signal.SIGKILL)
        victim.join()
        obtain(root)
        assert whole(root)


def test_any_flipped_bit_is_noticed(tmp_path):
    """In any file and in the manifest: an error that names the path, or nothing that anybody reads has changed."""
    noise = random.Random(0)
    obtain(tmp_path)
    (folder,) = (tmp_path / "store" / "kind").iterdir()
    for path in sorted(folder.iterdir()):
        good = path.read_bytes()
        places = range(len(good)) if path.name == "manifest.json" else [0, len(good) // 2, len(good) - 1]
        for place in places:
            bad = bytearray(good)
            bad[place] ^= 1 << noise.randrange(8)
            path.write_bytes(bad)
            said = ""
            try:
                assert whole(tmp_path), (path, place)
            except ArtefactError as error:
                said = str(error)
            if said or path.name != "manifest.json":  # of which white space does not matter
                assert str(folder) in said
                assert "rm -r" in said
        path.write_bytes(good)
    assert whole(tmp_path)


def test_any_cut_or_foreign_file_is_noticed(tmp_path):
    obtain(tmp_path)
    (folder,) = (tmp_path / "store" / "kind").iterdir()
    for path in sorted(folder.iterdir()):
        good = path.read_bytes()
        for bad in (good[:-1], good[: len(good) // 2], b"", good + b"x", b"\x00" * len(good), b"[]", b"null", b"\xff{"):
            if bad == good:
                continue
            path.write_bytes(bad)
            with pytest.raises(ArtefactError, match="rm -r"):
                whole(tmp_path)
        path.unlink()
        with pytest.raises(ArtefactError, match="rm -r"):
            whole(tmp_path)
        path.write_bytes(good)


def test_a_manifest_of_another_format_or_configuration_is_refused(tmp_path):
    obtain(tmp_path)
    (folder,) = (tmp_path / "store" / "kind").iterdir()
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    for change in ({"format": "experiments.artefact/1"}, {"identity": {"a": 2}}, {"kind": "other"}, {"files": []}):
        path.write_text(json.dumps(manifest | change))
        with pytest.raises(ArtefactError, match="rm -r"):
            whole(tmp_path)


def test_scratch_space_survives_a_kill_and_goes_in_the_end(tmp_path):
    store = Store(tmp_path)
    identity = {"a": 1}

    def die(folder: Path) -> None:
        (store.scratch("kind", identity) / "checkpoint").write_text("half")
        os._exit(9)

    victim = CONTEXT.Process(target=store.obtain, args=("kind", identity, die))
    victim.start()
    victim.join()

    def go_on(folder: Path) -> None:
        half = (store.scratch("kind", identity) / "checkpoint").read_text()
        (folder / "content").write_text(half + " whole")

    assert store.obtain("kind", identity, go_on).file("content").read_text() == "half whole"
    assert list((tmp_path / "unfinished").iterdir()) == []


FULL = """
import sys
from pathlib import Path
from experiments.store import Store
def make(folder):
    for number in range(40):
        (folder / str(number)).write_bytes(bytes(16384))
try:
    artefact = Store(Path(sys.argv[1])).obtain("kind", {"a": 1}, make)
except OSError as error:
    sys.exit(f"OSError: {error}")
for number in range(40):
    assert artefact.file(str(number)).read_bytes() == bytes(16384)
"""


def store_in(folder: Path, limit: int | None = None) -> subprocess.CompletedProcess:
    def limited() -> None:
        if limit is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.run(
        [sys.executable, "-c", FULL, str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=limited,  # the child is another program at once
    )


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path):
    done = store_in(tmp_path, limit=10_000)
    assert done.returncode == 1
    assert "File too large" in done.stderr
    assert list((tmp_path / "unfinished").iterdir()) == []
    assert not (tmp_path / "kind").exists()
    assert store_in(tmp_path).returncode == 0


def test_a_full_disk_leaves_nothing_and_is_no_loss(tmp_path):
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no small file system can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        done = store_in(place)
        assert done.returncode == 1
        assert "No space left" in done.stderr
        assert list((place / "unfinished").iterdir()) == []
        assert not list(place.glob("kind/*"))
        subprocess.run(["mount", "-o", "remount,size=4m", str(place)], check=True)
        assert store_in(place).returncode == 0
    finally:
        subprocess.run(["umount", str(place)], check=True)
