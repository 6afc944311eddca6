"""The store: made once, whole or not at all, and never a wrong byte taken for a right one."""

import errno
import json
import multiprocessing
import os
import shutil
from pathlib import Path

import pytest

from experiments.store import Store, identity_key
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
    with pytest.raises(OSError, match="No space left"):
        store.obtain("kind", {"a": 1}, fail)
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


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "harm",
    [
        flipped,
        lambda path: path.write_text(""),
        lambda path: path.write_text("content and more"),
        lambda path: path.unlink(),
        lambda path: (path.parent / "manifest.json").unlink(),
        lambda path: (path.parent / "manifest.json").write_text('{"format": "exp'),
        lambda path: (path.parent / "manifest.json").write_text("[]"),
        lambda path: (path.parent / "manifest.json").write_text(json.dumps({"format": "experiments.artefact/99"})),
    ],
    ids=["flipped", "emptied", "longer", "missing", "no manifest", "cut manifest", "other JSON", "other format"],
)
def test_damage_is_a_named_error_with_the_mend(tmp_path, harm):
    store = Store(tmp_path)
    folder = store.obtain("kind", {"a": 1}, write("content")).folder
    harm(folder / "content.txt")
    with pytest.raises(ArtefactError) as error:
        store.obtain("kind", {"a": 1}, never).file("content.txt")
    assert str(folder) in str(error.value)
    assert "rm -r" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_of_another_configuration_is_refused(tmp_path):
    store = Store(tmp_path)
    other = store.obtain("kind", {"a": 1}, write("x"))
    asked = store.obtain("kind", {"a": 2}, write("y")).folder
    shutil.rmtree(asked)
    other.folder.rename(asked)
    with pytest.raises(ArtefactError, match="another configuration"):
        store.obtain("kind", {"a": 2}, never)


def test_a_file_that_was_never_written_is_a_named_error(tmp_path):
    with pytest.raises(ArtefactError, match=r"holds no other\.txt"):
        Store(tmp_path).obtain("kind", {"a": 1}, write("x")).file("other.txt")
