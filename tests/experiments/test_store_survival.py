"""What a store must survive: many processes, death at any instant, damage of any byte, a full disk."""

import errno
import fcntl
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from experiments.store import FORMAT, Artefact, Store, identity_key
from pruning.errors import ArtefactError
from tests.commands import command

CONTEXT = multiprocessing.get_context("fork")
CONTENT = {f"file{number}": bytes([number]) * (number * 1000 + 1) for number in range(12)}


def make(folder: Path) -> None:
    for name, content in CONTENT.items():
        (folder / name).write_bytes(content)
    (folder / "file0").chmod(0o600)  # as safetensors does


def counted(root: Path, seconds: float):
    def counting(folder: Path) -> None:
        with (root / "made.log").open("a") as log:
            log.write(f"{os.getpid()}\n")
        time.sleep(seconds)
        make(folder)

    return counting


def obtain(root: Path, seconds: float = 0.0) -> None:
    read(Store(root / "store").obtain("kind", {"a": 1}, counted(root, seconds)))


def never(folder: Path) -> None:
    raise AssertionError("not there")


def read(artefact: Artefact) -> None:
    assert {name: artefact.file(name).read_bytes() for name in CONTENT} == CONTENT


def whole(root: Path) -> bool:
    """Whether it is there; raises what a reader is told that cannot make it again."""
    (folder,) = (root / "store" / "kind").iterdir()
    read(Artefact("kind", folder.name, folder))
    Store(root / "store").obtain("kind", {"a": 1}, never)
    return True


def made(root: Path) -> int:
    return len((root / "made.log").read_text().split())


def test_eight_processes_make_it_once(tmp_path):
    workers = [CONTEXT.Process(target=obtain, args=(tmp_path, 0.3)) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert [worker.exitcode for worker in workers] == [0] * 8
    assert made(tmp_path) == 1
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
    assert made(tmp_path) == 2
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


def test_any_flipped_bit_is_repaired(tmp_path):
    """In any file and in the manifest: the same bytes again, and what was damaged kept."""
    noise = random.Random(0)
    obtain(tmp_path)
    (folder,) = (tmp_path / "store" / "kind").iterdir()
    paths = sorted(folder.iterdir())
    for path in paths:
        bad = bytearray(path.read_bytes())
        bad[len(bad) // 2] ^= 1 << noise.randrange(8)
        path.write_bytes(bad)
        obtain(tmp_path)
        assert whole(tmp_path)
    assert made(tmp_path) == 1 + len(paths)
    assert len(list((tmp_path / "store" / "damaged").iterdir())) == len(paths)


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


def test_a_manifest_of_another_format_or_configuration_is_not_taken(tmp_path):
    obtain(tmp_path)
    (folder,) = (tmp_path / "store" / "kind").iterdir()
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    for change in ({"format": "experiments.artefact/1"}, {"identity": {"a": 2}}, {"kind": "other"}, {"files": []}):
        path.write_text(json.dumps(manifest | change))
        with pytest.raises(ArtefactError, match="rm -r"):
            whole(tmp_path)
        obtain(tmp_path)
        assert whole(tmp_path)
    assert made(tmp_path) == 5


def unlocked(exception: type[Exception] = OSError) -> None:
    """This process has no locks, as on some network disks."""

    def refuse(*_) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    fcntl.flock = refuse


def elsewhere(root: Path, name: str, barrier, harm: bool = False) -> None:
    """A process on a machine `name`, which shares the disk and no locks, and begins when all do."""
    unlocked()
    socket.gethostname = lambda: name
    artefact = Store(root / "store").obtain("kind", {"a": 1}, never) if harm else None
    barrier.wait()
    if artefact is not None:
        read(artefact)
    else:
        obtain(root, 0.1)


@pytest.mark.parametrize("names", [("a", "b"), ("a", "a")], ids=["two machines", "one machine"])
def test_makers_without_shared_locks_take_what_the_faster_made(tmp_path, names):
    for number in range(5):
        root = tmp_path / str(number)
        root.mkdir()
        together(names, lambda name, barrier, root=root: elsewhere(root, name, barrier))
        assert made(root) == 2
        assert whole(root)
        assert list((root / "store" / "unfinished").iterdir()) == []


@pytest.mark.parametrize("locks", [True, False], ids=["locks", "no locks"])
@pytest.mark.parametrize("noticed", ["by its size", "when it is read"])
def test_processes_that_repair_the_same_artefact_end_with_a_whole_one(tmp_path, locks, noticed):
    """With locks one of them makes it; without, none dies."""
    obtain(tmp_path)
    (path,) = (tmp_path / "store").glob("kind/*/file7")
    before = path.stat()
    path.write_bytes(path.read_bytes()[:-1] + (b"x" if noticed == "when it is read" else b""))
    assert (path.stat().st_size == before.st_size) == (noticed == "when it is read")

    def repair(name: str, barrier) -> None:
        if not locks:
            unlocked()
        barrier.wait()
        obtain(tmp_path, 0.05)

    together("abcd", repair)
    assert whole(tmp_path)
    assert made(tmp_path) == 2 if locks else made(tmp_path) >= 2
    kept = [folder / "file7" for folder in (tmp_path / "store" / "damaged").iterdir()]
    assert sum(file.read_bytes() != CONTENT["file7"] for file in kept) == 1
    if locks:
        assert len(kept) == 1


def together(names, target) -> None:
    barrier = CONTEXT.Barrier(len(names))
    workers = [CONTEXT.Process(target=target, args=(name, barrier)) for name in names]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * len(names)


def test_what_another_process_has_moved_aside_first_is_no_obstacle(tmp_path, monkeypatch):
    """Two that repair without a shared lock, at the same instant."""
    obtain(tmp_path)
    (folder,) = (tmp_path / "store" / "kind").iterdir()
    (folder / "file7").unlink()
    rename = Path.rename

    def slower(self: Path, target: Path) -> Path:
        if self == folder:
            rename(self, tmp_path / "moved")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", slower)
    obtain(tmp_path)
    assert whole(tmp_path)
    assert (tmp_path / "moved").is_dir()


def test_a_disk_without_locks_is_said_in_the_log(tmp_path, caplog, monkeypatch):
    def refuse(*_) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)
    obtain(tmp_path)
    assert (
        caplog.text.count("no locks here (Function not implemented), so another process may also be making kind") == 1
    )
    assert whole(tmp_path)


def test_another_machines_unfinished_folder_is_left_alone(tmp_path, monkeypatch):
    """Where locks are not shared it may be at work; what this machine's dead processes left goes."""
    store = Store(tmp_path / "store")
    key = identity_key({"format": FORMAT, "identity": {"a": 1}})
    (tmp_path / "store").mkdir()
    mine = store.temporary("kind", key)
    with monkeypatch.context() as patch:
        patch.setattr(socket, "gethostname", lambda: "other")
        others = store.temporary("kind", key)
    obtain(tmp_path)
    assert not mine.exists()
    assert others.exists()


def as_nobody(target, *arguments) -> int:
    """The exit code of `target` in a process that may not do everything, as this one may if it is root's."""

    def run() -> None:
        if os.getuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        target(*arguments)

    worker = CONTEXT.Process(target=run)
    worker.start()
    worker.join()
    return worker.exitcode


@pytest.fixture
def public():
    """A folder that every user may enter."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("name", ["file3", "manifest.json", ""])
def test_what_may_not_be_read_is_refused_and_not_made_again(public, name):
    obtain(public)
    (folder,) = (public / "store" / "kind").iterdir()

    def refused() -> None:
        with pytest.raises(ArtefactError, match=r"cannot be read \(Permission denied\): give access") as error:
            read(Store(public / "store").obtain("kind", {"a": 1}, never))
        assert str(folder / (name or "manifest.json")) in str(error.value)

    (folder / name).chmod(0)
    assert as_nobody(refused) == 0
    (folder / name).chmod(0o755)
    assert whole(public)


def test_a_store_that_may_only_be_read_gives_what_it_has_and_names_what_it_lacks(public):
    obtain(public)

    def refused() -> None:
        store = Store(public / "store")
        read(store.obtain("kind", {"a": 1}, never))
        with pytest.raises(ArtefactError) as error:
            store.obtain("kind", {"a": 2}, never)
        for said in (
            f"{store.root}: kind ",
            "is not in this store and cannot be made (",
            "Permission denied",
            "set store=",
        ):
            assert said in str(error.value)
        assert "\n" not in str(error.value)

    assert as_nobody(refused) == 0
    for place in ("locks", "unfinished"):  # nobody may write here, but not where artefacts of this kind lie
        (public / "store" / place).chmod(0o777)
    assert as_nobody(refused) == 0


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
    (store.scratch("kind", identity) / "checkpoint").write_text("of a maker that died before its last deed")
    store.obtain("kind", identity, pytest.fail)
    assert list((tmp_path / "unfinished").iterdir()) == []


FULL = """
import resource, signal, sys
from pathlib import Path
from experiments.store import Store
from pruning.errors import ArtefactError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
def make(folder):
    for number in range(40):
        (folder / str(number)).write_bytes(bytes(16384))
try:
    artefact = Store(Path(sys.argv[1])).obtain("kind", {"a": 1}, make)
except ArtefactError as error:
    sys.exit(f"refused: {error}")
for number in range(40):
    assert artefact.file(str(number)).read_bytes() == bytes(16384)
"""


def store_in(folder: Path, limit: int = resource.RLIM_INFINITY) -> subprocess.CompletedProcess[str]:
    return command(folder, "-c", FULL, str(folder), str(limit))


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path):
    done = store_in(tmp_path, limit=10_000)
    assert done.returncode == 1
    assert done.stderr.startswith(f"refused: {tmp_path}: kind ")
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
        assert done.stderr.startswith(f"refused: {place}: kind ")
        assert "No space left" in done.stderr
        assert list((place / "unfinished").iterdir()) == []
        assert not list(place.glob("kind/*"))
        subprocess.run(["mount", "-o", "remount,size=4m", str(place)], check=True)
        assert store_in(place).returncode == 0
    finally:
        subprocess.run(["umount", str(place)], check=True)
