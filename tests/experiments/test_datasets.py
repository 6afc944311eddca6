"""A Dataset through a DataLoader: the same examples in the same order as in memory, whatever the workers."""

import os
import random
import signal
import sys
from functools import partial
from itertools import chain

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, IterableDataset

from experiments.data import DatasetExamples, Examples, split
from experiments.data.content import content_of_data
from experiments.tasks import Classification, evaluate
from experiments.training.batches import batches, steps_per_epoch
from experiments.training.learning_rate import constant
from experiments.training.loop import accelerator, train
from experiments.training.recipe import Recipe
from pruning.errors import DataError
from tests.experiments.test_training import interrupted

TASK = Classification(classes=3)
COUNT = 23


def column(seed=0):
    noise = torch.Generator().manual_seed(seed)
    return torch.randn(COUNT, 6, generator=noise), torch.randint(3, (COUNT,), generator=noise)


class Pairs(Dataset):
    """(inputs, target) of each example."""

    def __init__(self, seed=0):
        self.inputs, self.targets = column(seed)

    def __len__(self):
        return COUNT

    def __getitem__(self, place):
        return self.inputs[place], int(self.targets[place])


class Noisy(Pairs):
    """Draws from all three generators, as augmentations do."""

    def __getitem__(self, place):
        inputs, target = super().__getitem__(place)
        return {"inputs": inputs + torch.rand(6) + random.random() + np.random.rand(), "targets": target}


def recipe(**changes):
    steps = range(3 * steps_per_epoch(COUNT, 5))
    plain = {"batch_size": 5, "optimizer": partial(torch.optim.SGD, lr=0.1, momentum=0.9), "total": len(steps)}
    return Recipe(**({"steps": steps, "factor": constant, "seed": 4} | plain | changes))


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))


def weights(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def same(left, right):
    return all(left[name].equal(right[name]) for name in left.keys() | right.keys())


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_memory(workers):
    inputs, targets = column()
    held, read = Examples(inputs=inputs, targets=targets), DatasetExamples(Pairs(), workers=workers)
    assert len(read) == len(held)
    for epoch in (0, 1):
        for left, right in zip(batches(held, 5, 4, epoch), batches(read, 5, 4, epoch), strict=True):
            assert same(left, right)
    assert same(*(next(iter(data.batches([slice(2, 7)]))) for data in (held, read)))


def test_what_an_example_draws_depends_on_epoch_and_position_alone():
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    whole = list(batches(DatasetExamples(Noisy()), 5, 4, 1))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]
    assert all(map(same, whole, batches(DatasetExamples(Noisy(), workers=2), 5, 4, 1)))
    late = list(batches(DatasetExamples(Noisy()), 5, 4, 1, slice(2, None)))
    assert all(map(same, whole[2:], late))
    assert not same(whole[0], next(batches(DatasetExamples(Noisy()), 5, 4, 2)))
    noise = whole[0]["inputs"] - torch.stack([Pairs()[int(n)][0] for n in order(1)[:5]])
    assert len(noise.unique()) == noise.numel()  # every number is drawn for itself


def order(epoch):
    from experiments.runtime.seeding import generator  # noqa: PLC0415

    return torch.randperm(COUNT, generator=generator(4, "order", epoch))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("at", [1, 5, 8])
def test_killed_after_any_step_it_ends_in_the_same_bits(tmp_path, at, workers):
    data = DatasetExamples(Noisy(), workers=workers)
    model, made = network(), recipe(optimizer=torch.optim.AdamW)
    whole = network()
    train(whole, data, data, made, TASK, accelerator("cpu"))
    found, _ = interrupted(tmp_path / "c", at, model, data, made)
    assert torch.equal(found, weights(whole))


def test_it_trains_and_is_evaluated_as_in_memory():
    inputs, targets = column()
    held, read = Examples(inputs=inputs, targets=targets), DatasetExamples(Pairs())
    one, other = network(), network()
    train(one, held, held, recipe(best_on_validation=True), TASK, accelerator("cpu"))
    train(other, read, read, recipe(best_on_validation=True), TASK, accelerator("cpu"))
    assert torch.equal(weights(one), weights(other))
    assert evaluate(TASK, one, held) == evaluate(TASK, other, read)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(3))


class Broken(Pairs):
    def __getitem__(self, place):
        if place == 17:
            raise ValueError("no such file:\nx.png")
        return super().__getitem__(place)


class Leaving(Pairs):
    def __getitem__(self, place):
        sys.exit() if place == 17 else None
        return super().__getitem__(place)


class Dying(Pairs):
    """As the system ends a process that is out of memory."""

    def __getitem__(self, place):
        os.kill(os.getpid(), signal.SIGKILL)


def triples(examples):
    return torch.zeros(len(examples)), torch.zeros(len(examples)), torch.zeros(len(examples))


BROKEN = (
    r"^Broken: example 17: ValueError: no such file: x.png \(test_datasets.py, line \d+\): correct it, or leave this "
    "example out$"
)
LEAVING = r"^Leaving: example 17: SystemExit \(test_datasets.py"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: DatasetExamples(Stream()), "Stream: can only be iterated.*map-style"),
        (lambda: DatasetExamples([]), "list: there are no examples"),
        *((lambda workers=workers: DatasetExamples(Broken(), workers=workers), BROKEN) for workers in (0, 2)),
        *((lambda workers=workers: DatasetExamples(Leaving(), workers=workers), LEAVING) for workers in (0, 2)),
        (lambda: split(Dying(), workers=1).train, r"^Dying: a worker .* died .*unexpectedly.*: set fewer"),
        (lambda: DatasetExamples(Pairs(), collate=lambda found: found[40]), "batch: IndexError.* joins them$"),
        (lambda: DatasetExamples(Pairs(), collate=triples), "as a batch: is tuple: give mappings, or pairs"),
        (lambda: DatasetExamples(Pairs(), collate=lambda found: {"inputs": [str(found)]}), "else than tensors"),
        (lambda: DatasetExamples(Pairs(), collate=lambda found: {"inputs": torch.zeros(3)}), "inputs has 3 rows"),
    ],
)  # fmt: skip
def test_data_that_cannot_be_read_are_one_line(make, words):
    with pytest.raises(DataError, match=words) as caught:
        list(batches(make(), 5, 4, 0))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("columns", [True, False])
def test_parts_are_disjoint_and_whole_and_the_test_part_never_changes(columns):
    data = {"inputs": torch.arange(97.0), "targets": torch.arange(97) % 3} if columns else list(enumerate([0] * 97))
    parts = {seed: split(data, validation=0.1, test=0.2, seed=seed) for seed in (0, 1)}

    def seen(part):
        found = [batch["inputs"].tolist() for batch in part.batches([slice(0, len(part))])]
        return [int(value) for value in found[0]]

    for of in parts.values():
        everything = seen(of.train) + seen(of.validation) + seen(of.test)
        assert sorted(everything) == list(range(97))
        assert (len(of.validation), len(of.test)) == (8, 20)
    assert seen(parts[0].test) == seen(parts[1].test)
    assert seen(parts[0].validation) != seen(parts[1].validation)


def test_classes_are_as_frequent_in_every_part():
    targets = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
    parts = split({"inputs": torch.randn(100, 2), "targets": targets}, 0.25, 0.2, stratify=targets)
    counts = [part["targets"].bincount().tolist() for part in (parts.train, parts.validation, parts.test)]
    assert counts == [[36, 18, 6], [12, 6, 2], [12, 6, 2]]


@pytest.mark.parametrize(("validation", "test"), [(0.0, 0.2), (1.0, 0.2), (0.5, 1.0), (0.5, 0.9)])
def test_shares_that_leave_a_part_empty_are_refused(validation, test):
    with pytest.raises(DataError, match="share"):
        split({"inputs": torch.zeros(2)}, validation, test)


class Printed(Pairs):
    fingerprint = "abc"


def test_the_content_of_a_dataset_is_its_fingerprint_and_what_was_chosen(caplog):
    whole, again, other = (content_of_data(split(Printed(), seed=seed)) for seed in (0, 0, 1))
    assert all(part.startswith("abc ") for part in whole)
    assert whole == again
    assert whole[0] != other[0]
    assert len(set(whole)) == 3
    assert not caplog.text
    assert content_of_data(split(Pairs(0))) != content_of_data(split(Pairs(1)))
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 2  # one for each of these data, not for each part
    assert "Pairs: 16 examples of each part are compared, of " in warnings[0]


def test_workers_that_cannot_be_started_are_one_line(monkeypatch):
    def start(self):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr("multiprocessing.process.BaseProcess.start", start)
    with pytest.raises(DataError, match=r"Pairs: a worker .* did not start \(.*Cannot allocate memory\).* workers=0"):
        list(batches(DatasetExamples(Pairs(), workers=2), 5, 4, 0))


def test_an_error_names_the_example_in_the_whole_data():
    data = split(Broken(), validation=0.5, test=0.5)
    whole = chain.from_iterable(
        part.batches([slice(0, len(part))]) for part in (data.train, data.validation, data.test)
    )
    with pytest.raises(DataError, match="Broken: example 17: ValueError"):
        list(whole)


def test_columns_of_a_batch_have_as_many_rows_as_it_has_examples():
    def collate(found):
        return {"inputs": torch.zeros(len(found)), "targets": torch.zeros(2 * len(found))}

    with pytest.raises(DataError, match="column targets has 10 rows for 5 examples"):
        list(batches(DatasetExamples(Pairs(), collate=collate), 5, 4, 0))


def test_a_column_may_have_any_name():
    assert list(Examples(self=torch.zeros(2), columns=torch.ones(2))) == ["self", "columns"]


def test_batches_are_copies_of_the_examples():
    data = Examples(inputs=torch.zeros(4, 2), nested={"a": [torch.zeros(4)]})
    for chosen in (slice(0, 3), torch.tensor([0, 2])):
        (batch,) = data.batches([chosen])
        batch["inputs"] += 1
        batch["nested"]["a"][0] += 1
    assert not data["inputs"].any()
    assert not data["nested"]["a"][0].any()
