"""The training loop against a loop written out, and evaluation against counting."""

import copy
import math
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from experiments.data import Examples
from experiments.runtime.seeding import derived_seed, generator
from experiments.tasks import Classification, evaluate
from experiments.training.batches import batches, steps_per_epoch
from experiments.training.checkpoints import Checkpoints
from experiments.training.learning_rate import constant, cosine, step
from experiments.training.loop import accelerator, train
from experiments.training.recipe import Recipe
from experiments.training.state import TrainingState
from pruning import Evidence, prunable, prune, scorers
from pruning.dynamic import RigL
from pruning.errors import DataError

TASK = Classification(classes=3)


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def examples(count: int = 23, seed: int = 1) -> Examples:
    noise = generator(seed, "test")
    return Examples(inputs=torch.randn(count, 6, generator=noise), targets=torch.randint(3, (count,), generator=noise))


def recipe(epochs: int = 3, count: int = 23, **changes) -> Recipe:
    steps = range(epochs * steps_per_epoch(count, 5))
    defaults = {"batch_size": 5, "optimizer": partial(torch.optim.SGD, lr=0.1, momentum=0.9), "total": len(steps)}
    return Recipe(**({"steps": steps, "factor": constant, "seed": 4} | defaults | changes))


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def test_the_loop_is_the_loop_written_out():
    data, model, twin = examples(), network(), network()
    train(model, data, data, recipe(factor=cosine, clip=0.5), replace(TASK, label_smoothing=0.1), accelerator("cpu"))
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9)
    total, done = 3 * 5, 0
    for epoch in range(3):
        order = torch.randperm(23, generator=generator(4, "order", epoch))
        for chosen in order.split(5):
            optimizer.param_groups[0]["lr"] = 0.1 * cosine(done / total)
            optimizer.zero_grad()
            F.cross_entropy(twin(data["inputs"][chosen]), data["targets"][chosen], label_smoothing=0.1).backward()
            nn.utils.clip_grad_norm_(twin.parameters(), 0.5)
            optimizer.step()
            done += 1
    assert done == total
    torch.testing.assert_close(weights(model), weights(twin), rtol=1e-6, atol=1e-7)


def test_an_augmentation_of_data_without_inputs_is_refused():
    inputs, targets = (examples()[name] for name in ("inputs", "targets"))
    data = Examples(pixels=inputs, targets=targets)
    with pytest.raises(DataError, match=r"the data have pixels, targets: set data\.augment=null"):
        train(network(), data, data, recipe(augment=lambda images, noise: images), TASK, accelerator("cpu"))


@pytest.mark.parametrize("parts", [2, 3, 5])
def test_accumulation_does_not_change_the_step(parts):
    data, whole, cut = examples(), network(), network()
    train(whole, data, data, recipe(), TASK, accelerator("cpu"))
    train(cut, data, data, recipe(accumulate=parts), TASK, accelerator("cpu"))
    torch.testing.assert_close(weights(cut), weights(whole), rtol=1e-5, atol=1e-6)


def test_training_is_a_function_of_its_seed_and_leaves_the_random_state():
    data, one, two, other = examples(), network(), network(), network()
    before = torch.random.get_rng_state()
    train(one, data, data, recipe(), TASK, accelerator("cpu"))
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(7)
    train(two, data, data, recipe(), TASK, accelerator("cpu"))
    train(other, data, data, recipe(seed=5), TASK, accelerator("cpu"))
    assert torch.equal(weights(one), weights(two))
    assert not torch.equal(weights(one), weights(other))


def test_every_epoch_sees_every_example_once_in_an_order_of_its_own():
    data = examples(23)
    orders = [torch.cat([batch["inputs"] for batch in batches(data, 5, 4, epoch)]) for epoch in range(3)]
    for order in orders:
        assert len(order) == 23
        assert torch.equal(order.sort(0).values, data["inputs"].sort(0).values)
    assert not torch.equal(orders[0], orders[1])
    assert torch.equal(orders[2], torch.cat([batch["inputs"] for batch in batches(data, 5, 4, 2)]))


def test_masks_hold_through_training():
    data, model = examples(), network()
    masks = prune(scorers.magnitude(Evidence(model, prunable(model))), 0.3)
    train(model, data, data, recipe(epochs=4), TASK, accelerator("cpu"), masks)
    assert masks.agree(model)
    assert all(bool(model[i].weight[masks[f"{i}.weight"]].ne(0).all()) for i in (0, 2))


def test_zero_epochs_leave_the_network_but_mask_it():
    data, model = examples(), network()
    before = weights(model)
    assert train(model, data, data, recipe(epochs=0), TASK, accelerator("cpu")).epochs == []
    assert torch.equal(weights(model), before)


@pytest.mark.parametrize(("lost", "best"), [(0, True), (2, True), (2, False)])
def test_a_training_diverged_unless_an_epoch_before_is_kept(lost, best):
    """A network whose outputs are NaN has an accuracy too, of the first class: it is no better epoch."""
    data, model = examples(), network()
    blown_up = recipe(factor=lambda progress: 1.0 if progress < lost / 3 else 1e30, best_on_validation=best)
    found = train(model, data, data, blown_up, TASK, accelerator("cpu"))
    assert [math.isfinite(epoch.loss) for epoch in found.epochs] == [epoch < lost for epoch in range(3)]
    kept = best and lost > 0
    assert bool(weights(model).isfinite().all()) == kept
    assert (found.diverged is None) == kept
    assert kept or 5 * lost < found.diverged <= 5 * lost + 5


def test_the_first_loss_is_that_of_the_start_on_the_first_batch():
    data, model = examples(), network()
    chosen = torch.randperm(23, generator=generator(4, "order", 0))[:5]
    expected = F.cross_entropy(model(data["inputs"][chosen]), data["targets"][chosen]).item()
    assert train(model, data, data, recipe(epochs=2), TASK, accelerator("cpu")).first_loss == pytest.approx(expected)
    assert train(model, data, data, recipe(epochs=0), TASK, accelerator("cpu")).first_loss is None


def test_best_on_validation_ends_with_the_best_epoch_of_this_training():
    data, other, model = examples(30), examples(30, seed=11), network()
    wild = recipe(epochs=6, count=30, optimizer=partial(torch.optim.SGD, lr=1.0), best_on_validation=True)
    history = train(model, data, other, wild, TASK, accelerator("cpu")).epochs
    accuracies = [epoch.validation for epoch in history]
    assert accuracies[-1] < max(accuracies)  # otherwise this test could not tell
    assert evaluate(TASK, model, other)["accuracy"] == max(accuracies)


def test_accuracy_is_correct_over_seen_whatever_the_batches():
    data, model = examples(23), network()
    outputs = model(data["inputs"])
    correct = sum(int(o.argmax()) == int(t) for o, t in zip(outputs, data["targets"], strict=True))
    loss = float(F.cross_entropy(outputs, data["targets"]).detach())
    for size in (1, 7, 10, 1000):
        found = evaluate(replace(TASK, evaluation_batch=size), model, data)
        assert found["accuracy"] == correct / 23
        assert found["loss"] == pytest.approx(loss, rel=1e-6)


def test_evaluation_leaves_modes_and_statistics():
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    model.train()
    model[1].eval()
    before = model[1].running_mean.clone()
    evaluate(TASK, model, examples())
    assert model.training
    assert model[0].training
    assert not model[1].training
    assert torch.equal(model[1].running_mean, before)


def test_bfloat16_autocast_trains():
    data, model = examples(), network()
    history = train(model, data, data, recipe(epochs=5), TASK, accelerator("cpu", "bf16")).epochs
    assert history[-1].loss < history[0].loss
    assert all(p.dtype == torch.float32 for p in model.parameters())
    accelerator("cpu")  # another precision in the same process is no error


def test_learning_rate_factors():
    assert [constant(p) for p in (0.0, 0.5, 1.0)] == [1.0] * 3
    assert [step(p, [0.5, 0.75], 0.1) for p in (0.0, 0.49, 0.5, 0.8)] == pytest.approx([1, 1, 0.1, 0.01])
    assert cosine(0.0, 0.1) == 1.0
    assert cosine(1.0, 0.1) == pytest.approx(0.1)
    assert cosine(0.25, 0.0) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)


def test_purposes_have_seeds_of_their_own():
    seeds = {derived_seed(s, *purpose) for s in range(20) for purpose in (("order", 0), ("order", 1), ("scoring",))}
    assert len(seeds) == 60
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize(
    ("count", "size", "sizes"), [(5, 2, [2, 3]), (4, 2, [2, 2]), (1, 4, [1]), (7, 3, [3, 4]), (5, 1, [1] * 5)]
)
def test_a_single_example_left_over_joins_the_batch_before(count, size, sizes):
    """Except where batches of one are asked for."""
    examples = Examples(inputs=torch.arange(count).float(), targets=torch.zeros(count, dtype=torch.int64))
    found = [batch["inputs"] for batch in batches(examples, size, 0, 0)]
    assert [len(part) for part in found] == sizes
    assert sorted(torch.cat(found).tolist()) == list(range(count))


class KilledError(Exception):
    """Stands for a process that dies between two steps."""


def interrupted(path, at: int, model, data, made: Recipe, regime=None, validation=None):
    """The weights and epochs of a training that dies after `at` steps and is begun again by a fresh process."""

    class Dying(Checkpoints):
        def write(self, tree, device):
            super().write(tree, device)
            if tree["point"]["step"] == at:
                raise KilledError

    often = {"seconds": None, "steps": 1}
    first, again = copy.deepcopy(model), copy.deepcopy(model)
    arguments = (data, validation or data, made, TASK, accelerator("cpu"))
    with pytest.raises(KilledError):
        train(first, *arguments, regime=regime, checkpoints=Dying(path, **often))
    torch.rand(3)
    found = train(again, *arguments, regime=regime, checkpoints=Checkpoints(path, seconds=None))
    return weights(again), found


def noisy(seed: int = 0) -> nn.Sequential:
    """With all that has state or draws at random: batch norm, dropout."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))


@pytest.mark.parametrize("at", [1, 3, 5, 7, 10, 13])
@pytest.mark.parametrize("optimizer", [partial(torch.optim.SGD, lr=0.1, momentum=0.9), torch.optim.AdamW])
def test_killed_after_any_step_it_ends_in_the_same_bits(tmp_path, at, optimizer):
    data, model = examples(), noisy()
    made = recipe(optimizer=optimizer, factor=cosine, best_on_validation=True, augment=jitter, clip=0.5)
    whole = copy.deepcopy(model)
    want = train(whole, data, examples(seed=3), made, TASK, accelerator("cpu"))
    found, trained = interrupted(tmp_path / "c", at, model, data, made, validation=examples(seed=3))
    assert torch.equal(found, weights(whole))
    assert [replace(e, seconds=0) for e in trained.epochs] == [replace(e, seconds=0) for e in want.epochs]
    assert min(e.seconds for e in trained.epochs) > 0


def jitter(inputs: torch.Tensor, noise: torch.Generator) -> torch.Tensor:
    return inputs + 0.1 * torch.randn(inputs.shape, generator=noise)


@pytest.mark.parametrize("at", [2, 5, 8, 14])
def test_changing_masks_are_gone_on_with(tmp_path, at):
    data, model = examples(), noisy()
    made = recipe()

    def regime(model, optimizer):
        parameters = prunable(model)
        masks = prune(scorers.random(Evidence(model, parameters)), 0.5)
        return RigL(Evidence(model, parameters, masks=masks), optimizer, steps=len(made.steps), every=3)

    whole = copy.deepcopy(model)
    want = train(whole, data, data, made, TASK, accelerator("cpu"), regime=regime)
    found, trained = interrupted(tmp_path / "c", at, model, data, made, regime)
    assert torch.equal(found, weights(whole))
    assert trained.masks == want.masks


def test_a_checkpoint_that_cannot_be_trusted_is_left_alone_and_told(tmp_path, caplog, monkeypatch):
    caplog.set_level("INFO", logger="experiments")
    data, model, path = examples(), noisy(), tmp_path / "c"
    whole = copy.deepcopy(model)
    train(whole, data, data, recipe(), TASK, accelerator("cpu"))
    saved = Checkpoints(path, seconds=None, steps=4)
    train(copy.deepcopy(model), data, data, recipe(), TASK, accelerator("cpu"), checkpoints=saved)
    good = path.read_bytes()
    for damage, said in (
        (good[: len(good) // 2], "make it again"),
        (good[:-9] + bytes([good[-9] ^ 1]) + good[-8:], "damaged"),
        (b"", "make it again"),
    ):
        path.write_bytes(damage)
        caplog.clear()
        again = copy.deepcopy(model)
        train(again, data, data, recipe(), TASK, accelerator("cpu"), checkpoints=Checkpoints(path, seconds=None))
        assert said in caplog.text
        assert "starts from its beginning" in caplog.text
        assert torch.equal(weights(again), weights(whole))
    path.write_bytes(good)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    caplog.clear()
    assert saved.read(torch.device("cpu")) is None
    assert "number of threads" in caplog.text


def test_a_checkpoint_that_cannot_be_written_costs_no_training(tmp_path, caplog):
    data, model = examples(), noisy()
    whole = copy.deepcopy(model)
    train(whole, data, data, recipe(), TASK, accelerator("cpu"))
    nowhere = Checkpoints(tmp_path / "missing" / "c", seconds=None, steps=1)
    train(model, data, data, recipe(), TASK, accelerator("cpu"), checkpoints=nowhere)
    assert torch.equal(weights(model), weights(whole))
    assert "no checkpoint, the training goes on" in caplog.text


def test_checkpoints_are_due_by_steps_or_by_seconds():
    now = time.monotonic()
    assert [step for step in range(1, 10) if Checkpoints(Path("c"), None, 4).due(step, now)] == [4, 8]
    assert not Checkpoints(Path("c"), 60.0).due(1, now)
    assert Checkpoints(Path("c"), 60.0).due(1, now - 61)
    assert Checkpoints(Path("c"), 0.0).due(1, now)
    assert not Checkpoints(Path("c"), None).due(1, 0.0)


@pytest.mark.parametrize(("first", "last"), [(0, 7), (3, 5), (4, 15), (9, 10), (5, 10)])
def test_a_range_of_steps_sees_the_batches_of_the_whole(first, last):
    """Steps first … last of a training from the same weights see what the whole training sees at these steps."""
    data, seen = examples(), []

    class Watching(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network()

        def forward(self, inputs):
            seen.append(inputs.clone())
            return self.net(inputs)

    train(Watching(), data, data, recipe(), TASK, accelerator("cpu"))
    whole, seen[:] = list(seen), []
    trained = train(Watching(), data, data, recipe(steps=range(first, last)), TASK, accelerator("cpu"))
    assert len(seen) == last - first
    assert all(torch.equal(a, b) for a, b in zip(seen, whole[first:last], strict=True))
    assert [epoch.number for epoch in trained.epochs] == list(range(first // 5, -(-last // 5)))


def test_the_best_epoch_is_never_one_without_a_number():
    state = TrainingState(0, torch.zeros(()))
    model = nn.Linear(1, 1)
    for number, value in enumerate((math.nan, 0.9, math.inf, 0.95, math.nan)):
        with torch.no_grad():
            model.bias.fill_(number)
        state.add(torch.ones(()), 1)
        state.close(number, 0.1, value, True, model)
    assert state.best[0] == 0.95
    assert float(state.best[1]["bias"]) == 3
