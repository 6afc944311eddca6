"""The store: made once, whole or not at all, and never a wrong byte taken for a right one."""

import errno
import json
import multiprocessing
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.store import FORMAT, Store, identity_key
from pruning.errors import ArtefactError


def write(text: str):
    return lambda folder: (folder / "content.txt").write_text(text)


def never(folder: Path) -> None:
    raise AssertionError("made although it was there")


def leftovers(root: Path) -> list[Path]:
    return list((root / "unfinished").iterdir())


def test_an_artefact_is_made_once_and_found_again(tmp_path):
    store = Store(tmp_path)
    made = store.obtain("kind", {"a": 1}, write("x"))
    again = store.obtain("kind", {"a": 1}, never)
    assert made == again
    assert again.file("content.txt").read_text() == "x"
    assert again.size("content.txt") == 1
    assert leftovers(tmp_path) == []


def test_the_key_is_the_content_of_the_identity_not_its_order(tmp_path):
    assert identity_key({"a": 1, "b": [1.5, None]}) == identity_key({"b": [1.5, None], "a": 1})
    identities = [{"a": 1}, {"a": 2}, {"a": "1"}, {"a": 1.0}, {"a": True}, {"a": None}, {"b": 1}, {"a": [1]}]
    assert len({identity_key(identity) for identity in identities}) == len(identities)


def test_a_failure_while_making_leaves_nothing(tmp_path):
    def fail(folder: Path) -> None:
        (folder / "half.txt").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    store = Store(tmp_path)
    with pytest.raises(ArtefactError, match=r"is not in this store and cannot be made \(No space left") as error:
        store.obtain("kind", {"a": 1}, fail)
    assert str(tmp_path) in str(error.value)
    assert leftovers(tmp_path) == []
    assert not (tmp_path / "kind").exists()
    assert store.obtain("kind", {"a": 1}, write("x")).file("content.txt").read_text() == "x"


def test_what_a_killed_process_left_is_not_taken_and_is_removed(tmp_path):
    identity = {"a": 1}

    def die(folder: Path) -> None:
        (folder / "content.txt").write_text("half")
        os._exit(9)

    child = multiprocessing.get_context("fork").Process(
        target=lambda: Store(tmp_path).obtain("kind", identity, die), daemon=True
    )
    child.start()
    child.join()
    assert child.exitcode == 9
    assert len(leftovers(tmp_path)) == 1
    assert Store(tmp_path).obtain("kind", identity, write("whole")).file("content.txt").read_text() == "whole"
    assert leftovers(tmp_path) == []


def test_processes_that_need_the_same_artefact_make_it_once(tmp_path):
    tally = tmp_path / "tally"
    tally.touch()

    def make(folder: Path) -> None:
        with tally.open("a") as file:
            file.write("made\n")
        (folder / "content.txt").write_text("x")

    context = multiprocessing.get_context("fork")
    children = [
        context.Process(target=lambda: Store(tmp_path / "store").obtain("kind", {"a": 1}, make)) for _ in range(8)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0] * 8
    assert tally.read_text() == "made\n"


def test_an_error_of_what_makes_it_is_its_own(tmp_path):
    def fail(folder: Path) -> None:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "/elsewhere/data.npz")

    with pytest.raises(FileNotFoundError, match="/elsewhere/data"):
        Store(tmp_path).obtain("kind", {"a": 1}, fail)
    assert leftovers(tmp_path) == []


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)


def replaced(path: Path, content: bytes | None) -> None:
    """`path`, a file or a folder, by a file; None: by a folder."""
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    path.mkdir() if content is None else path.write_bytes(content)


HARM = {
    "flipped": flipped,
    "emptied": lambda path: path.write_text(""),
    "longer": lambda path: path.write_text("content and more"),
    "missing": lambda path: path.unlink(),
    "a folder": lambda path: replaced(path, None),
    "no manifest": lambda path: (path.parent / "manifest.json").unlink(),
    "cut manifest": lambda path: (path.parent / "manifest.json").write_text('{"format": "exp'),
    "other JSON": lambda path: (path.parent / "manifest.json").write_text("[]"),
    "other format": lambda path: (path.parent / "manifest.json").write_text(json.dumps({"format": "other/99"})),
    "manifest a folder": lambda path: replaced(path.parent / "manifest.json", None),
    "all of it a file": lambda path: replaced(path.parent, b"x"),
    "all of it an empty folder": lambda path: replaced(path.parent, None),
}


@pytest.mark.parametrize("harm", HARM.values(), ids=HARM)
def test_what_is_damaged_is_made_again_and_kept_aside(tmp_path, harm, caplog):
    """Before it is read or afterwards; who only reads has an error with the path and what helps."""
    store = Store(tmp_path)
    before = store.obtain("kind", {"a": 1}, write("content"))
    harm(before.folder / "content.txt")
    with pytest.raises(ArtefactError, match="rm -r") as error:
        replace(before, again=None).file("content.txt")
    assert str(before.folder) in str(error.value)
    assert "\n" not in str(error.value)
    found = store.obtain("kind", {"a": 1}, write("content"))
    assert found.file("content.txt").read_text() == "content"
    assert caplog.text.count("made again") == 1
    assert str(before.folder) in caplog.text
    assert leftovers(tmp_path) == []
    assert len(list(tmp_path.glob("damaged/*"))) == (0 if harm is HARM["all of it an empty folder"] else 1)
    assert store.obtain("kind", {"a": 1}, never).file("content.txt").read_text() == "content"


def test_what_comes_out_otherwise_is_not_mixed_with_what_was_read_before(tmp_path):
    """Made again with other versions, say: a run that has read some of it stops, and its repetition goes on."""
    store = Store(tmp_path)
    artefact = store.obtain("kind", {"a": 1}, write("content"))
    flipped(artefact.folder / "content.txt")
    artefact = store.obtain("kind", {"a": 1}, write("CONTENT"))
    with pytest.raises(ArtefactError, match="another content now that it is made again: repeat the command"):
        artefact.file("content.txt")
    assert store.obtain("kind", {"a": 1}, never).file("content.txt").read_text() == "CONTENT"


def test_what_cannot_be_made_again_stays_where_it_is(tmp_path):
    def fail(folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    store = Store(tmp_path)
    artefact = store.obtain("kind", {"a": 1}, write("content"))
    (artefact.folder / "content.txt").write_text("cut")
    with pytest.raises(ArtefactError, match=r"is damaged and cannot be made \(No space"):
        store.obtain("kind", {"a": 1}, fail)
    assert (artefact.folder / "content.txt").read_text() == "cut"
    assert not (tmp_path / "damaged").exists()


def test_a_folder_of_another_configuration_is_not_taken(tmp_path):
    store = Store(tmp_path)
    other = store.obtain("kind", {"a": 1}, write("x"))
    asked = store.obtain("kind", {"a": 2}, write("y")).folder
    shutil.rmtree(asked)
    other.folder.rename(asked)
    assert store.obtain("kind", {"a": 2}, write("y")).file("content.txt").read_text() == "y"
    (aside,) = (tmp_path / "damaged").iterdir()
    assert (aside / "content.txt").read_text() == "x"


@pytest.mark.parametrize("place", ["", "locks", "unfinished", "kind", "locks/kind-{key}.lock"])
def test_what_is_in_the_way_is_named_before_anything_is_made(tmp_path, place):
    root = tmp_path / "store"
    path = root / place.format(key=identity_key({"format": FORMAT, "identity": {"a": 1}}))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir() if path.suffix else path.write_text("a file")
    with pytest.raises(ArtefactError, match=r"kind [0-9a-f]{16} is not in this store and cannot be made") as error:
        Store(root).obtain("kind", {"a": 1}, never)
    assert f"{path}: " in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_was_never_written_is_a_named_error(tmp_path):
    with pytest.raises(ArtefactError, match=r"holds no other\.txt"):
        Store(tmp_path).obtain("kind", {"a": 1}, write("x")).file("other.txt")
