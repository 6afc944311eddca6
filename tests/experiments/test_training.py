"""The training loop against a loop written out, and evaluation against counting."""

import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from experiments.data import Examples
from experiments.evaluation import evaluate
from experiments.learning_rate import constant, cosine, step
from experiments.seeding import derived_seed, generator
from experiments.training import Recipe, accelerator, batches, steps_per_epoch, train
from pruning import Evidence, prunable, prune, scorers


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def examples(count: int = 23, seed: int = 1) -> Examples:
    noise = generator(seed, "test")
    return Examples(torch.randn(count, 6, generator=noise), torch.randint(3, (count,), generator=noise))


def recipe(epochs: int = 3, count: int = 23, **changes) -> Recipe:
    steps = range(epochs * steps_per_epoch(count, 5))
    defaults = {"batch_size": 5, "optimizer": partial(torch.optim.SGD, lr=0.1, momentum=0.9), "total": len(steps)}
    return Recipe(**({"steps": steps, "factor": constant, "seed": 4} | defaults | changes))


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def test_the_loop_is_the_loop_written_out():
    data, model, twin = examples(), network(), network()
    train(model, data, data, recipe(factor=cosine, clip=0.5, label_smoothing=0.1), accelerator("cpu"))
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9)
    total, done = 3 * 5, 0
    for epoch in range(3):
        order = torch.randperm(23, generator=generator(4, "order", epoch))
        for chosen in order.split(5):
            optimizer.param_groups[0]["lr"] = 0.1 * cosine(done / total)
            optimizer.zero_grad()
            F.cross_entropy(twin(data.inputs[chosen]), data.targets[chosen], label_smoothing=0.1).backward()
            nn.utils.clip_grad_norm_(twin.parameters(), 0.5)
            optimizer.step()
            done += 1
    assert done == total
    torch.testing.assert_close(weights(model), weights(twin), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("parts", [2, 3, 5])
def test_accumulation_does_not_change_the_step(parts):
    data, whole, cut = examples(), network(), network()
    train(whole, data, data, recipe(), accelerator("cpu"))
    train(cut, data, data, recipe(accumulate=parts), accelerator("cpu"))
    torch.testing.assert_close(weights(cut), weights(whole), rtol=1e-5, atol=1e-6)


def test_training_is_a_function_of_its_seed_and_leaves_the_random_state():
    data, one, two, other = examples(), network(), network(), network()
    before = torch.random.get_rng_state()
    train(one, data, data, recipe(), accelerator("cpu"))
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(7)
    train(two, data, data, recipe(), accelerator("cpu"))
    train(other, data, data, recipe(seed=5), accelerator("cpu"))
    assert torch.equal(weights(one), weights(two))
    assert not torch.equal(weights(one), weights(other))


def test_every_epoch_sees_every_example_once_in_an_order_of_its_own():
    data = examples(23)
    orders = [torch.cat([inputs for inputs, _ in batches(data, 5, 4, epoch)]) for epoch in range(3)]
    for order in orders:
        assert len(order) == 23
        assert torch.equal(order.sort(0).values, data.inputs.sort(0).values)
    assert not torch.equal(orders[0], orders[1])
    assert torch.equal(orders[2], torch.cat([inputs for inputs, _ in batches(data, 5, 4, 2)]))


def test_masks_hold_through_training():
    data, model = examples(), network()
    masks = prune(scorers.magnitude(Evidence(model, prunable(model))), 0.3)
    train(model, data, data, recipe(epochs=4), accelerator("cpu"), masks)
    assert masks.agree(model)
    assert all(bool(model[i].weight[masks[f"{i}.weight"]].ne(0).all()) for i in (0, 2))


def test_zero_epochs_leave_the_network_but_mask_it():
    data, model = examples(), network()
    before = weights(model)
    assert train(model, data, data, recipe(epochs=0), accelerator("cpu")).epochs == []
    assert torch.equal(weights(model), before)


def test_best_on_validation_ends_with_the_best_epoch_of_this_training():
    data, other, model = examples(30), examples(30, seed=11), network()
    wild = recipe(epochs=6, count=30, optimizer=partial(torch.optim.SGD, lr=1.0), best_on_validation=True)
    history = train(model, data, other, wild, accelerator("cpu")).epochs
    accuracies = [epoch.validation_accuracy for epoch in history]
    assert accuracies[-1] < max(accuracies)  # otherwise this test could not tell
    assert evaluate(model, other).accuracy == max(accuracies)


def test_accuracy_is_correct_over_seen_whatever_the_batches(monkeypatch):
    data, model = examples(23), network()
    outputs = model(data.inputs)
    correct = sum(int(o.argmax()) == int(t) for o, t in zip(outputs, data.targets, strict=True))
    loss = float(F.cross_entropy(outputs, data.targets).detach())
    for size in (1, 7, 10, 1000):
        monkeypatch.setattr("experiments.evaluation._BATCH", size)
        found = evaluate(model, data)
        assert found.accuracy == correct / 23
        assert found.loss == pytest.approx(loss, rel=1e-6)


def test_evaluation_leaves_modes_and_statistics():
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    model.train()
    model[1].eval()
    before = model[1].running_mean.clone()
    evaluate(model, examples())
    assert model.training
    assert model[0].training
    assert not model[1].training
    assert torch.equal(model[1].running_mean, before)


def test_bfloat16_autocast_trains():
    data, model = examples(), network()
    history = train(model, data, data, recipe(epochs=5), accelerator("cpu", "bf16")).epochs
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
    examples = Examples(torch.arange(count).float(), torch.zeros(count, dtype=torch.int64))
    found = [inputs for inputs, _ in batches(examples, size, 0, 0)]
    assert [len(part) for part in found] == sizes
    assert sorted(torch.cat(found).tolist()) == list(range(count))
