"""The MONK's problems and XOR: data by their rules, training by autograd, and what a deletion leaves."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from experiments.replications import monks, xor
from experiments.replications.sigmoid import (
    METHODS,
    Sigmoids,
    half_squared_error,
    smallest,
    train,
    value_and_slope,
    without_one,
)
from pruning import Evidence, Masks, prunable, prune, scorers


@pytest.mark.parametrize(
    ("problem", "rows", "wrong", "positive"), [(1, 124, 0, 216), (2, 169, 0, 142), (3, 122, 6, 228)]
)
def test_data_are_the_published_ones(problem, rows, wrong, positive):
    training, test = monks.training_and_test(problem)
    assert training.inputs.shape == (rows, 17)
    assert test.inputs.shape == (432, 17)
    assert len(test.inputs.unique(dim=0)) == 432
    assert bool((test.inputs.sum(1) == 6).all())
    assert int(test.targets.sum()) == positive  # Thrun et al. 1991
    by_rule = {tuple(x.tolist()): float(y) for x, y in zip(test.inputs, test.targets, strict=True)}
    found = [by_rule[tuple(x.tolist())] != float(y) for x, y in zip(training.inputs, training.targets, strict=True)]
    assert sum(found) == wrong
    network = Sigmoids(17, monks.PROBLEMS[problem].hidden, 0)
    assert sum(p.numel() for p in network.parameters()) == monks.PROBLEMS[problem].dense


def objective(network, problem):
    decay = sum(p.square().sum() for p in network.parameters()) * problem.decay / 2
    return 2 * half_squared_error(network, (problem.inputs, problem.targets)) + decay


def test_the_gradient_by_hand_is_autograds():
    problem, _ = monks.training_and_test(1)
    network = Sigmoids(17, problem.hidden, 1)
    loss = objective(network, problem)
    loss.backward()
    wanted = parameters_to_vector([p.grad for p in network.parameters()]).numpy()
    x = torch.cat([problem.inputs, torch.ones(len(problem.inputs), 1)], 1).numpy()
    flat = parameters_to_vector(network.parameters()).detach().numpy()
    value, slope = value_and_slope(flat, x, problem.targets.numpy(), problem.hidden, problem.decay)
    assert value == pytest.approx(loss.item(), rel=1e-12)
    np.testing.assert_allclose(slope, wanted, rtol=1e-9, atol=1e-12)


def test_training_ends_at_a_minimum_under_its_masks():
    problem, _ = monks.training_and_test(3)
    network = Sigmoids(17, problem.hidden, 0)
    masks = prune(scorers.magnitude(Evidence(network, prunable(network))), 0.5)
    masks.apply_(network)
    before = objective(network, problem).item()
    train(network, problem, masks)
    loss = objective(network, problem)
    assert loss.item() < before
    loss.backward()
    assert masks.agree(network)
    for name, parameter in network.named_parameters():
        assert float(parameter.grad[masks[name]].abs().max()) < 1e-3


def test_a_deletion_takes_one_weight_and_only_obs_moves_the_others():
    network = Sigmoids(2, 2, 0)
    train(network, xor.XOR)
    was = {name: p.detach().clone() for name, p in network.named_parameters()}
    for method in METHODS:
        vector_to_parameters(torch.cat([p.reshape(-1) for p in was.values()]), network.parameters())
        masks = without_one(network, xor.XOR, method, Masks.dense(prunable(network)))
        assert (masks.kept, masks.total) == (8, 9)
        assert masks.agree(network)
        stayed = all(torch.equal(p[masks[n]], was[n][masks[n]]) for n, p in network.named_parameters())
        assert stayed == (method != "OBS")
        if method == "magnitude":
            flat = torch.cat([p.reshape(-1) for p in was.values()]).abs()
            assert not torch.cat([m.reshape(-1) for m in masks.values()])[flat.argmin()]


def test_xor_survives_obs_alone():
    rows = xor.deletions(range(12))
    solved = xor.solved(rows)
    total = rows["seed"].nunique()
    assert total >= 6
    assert solved["OBS"] == total
    assert max(solved["OBD"], solved["magnitude"]) < total / 2
    figure = xor.draw(rows)
    assert [bar.get_height() for bar in figure.axes[0].patches] == [100 * solved[m] / total for m in METHODS]


def test_weights_go_until_an_example_is_lost():
    problem, _ = monks.training_and_test(3)
    network = Sigmoids(17, problem.hidden, 0)
    train(network, problem)
    enough = monks.PROBLEMS[3].enough
    small, masks = smallest(network, problem, "OBS", enough, retrain=False)
    assert problem.right(small) >= enough
    assert masks.agree(small)
    assert masks.kept == sum(int((p != 0).sum()) for p in small.parameters())
    assert masks.kept <= 8
    assert problem.right(network) >= enough  # the dense network is as it was
    assert all(bool(p.all()) for p in network.parameters())
    fewer = without_one(small, problem, "OBS", masks)
    assert fewer.kept == masks.kept - 1
    assert problem.right(small) < enough


def test_claims_are_medians_over_initialisations():
    rows = pd.DataFrame(
        {"problem": p, "seed": s, "method": m, "retrained": r, "weights": 10 * p + s + (20 if m != "OBS" else 0),
         "test_accuracy": 90.0 + s}
        for p in monks.PROBLEMS for s in range(3) for m in METHODS for r in (False, True)
    )  # fmt: skip
    found = {claim.text: claim for claim in monks.claims(rows)}
    assert found["MONK-1, OBS and retraining: weights of 58"].ours == 11
    assert found["MONK-1, OBS and retraining: weights of 58"].verdict == "outside"
    assert found["MONK-2, OBS: weights of 39"].ours == 21
    assert found["MONK-1, OBD / OBS, neither retrained"].ours == pytest.approx(31 / 11)
    assert found["MONK-3, OBS and retraining: test accuracy, %"].ours == 91.0
    assert len(monks.draw(rows).axes) == 3


def test_an_initialisation_that_does_not_train_is_left_out():
    training, _ = monks.training_and_test(2)
    for seed in range(4):
        network = Sigmoids(17, training.hidden, seed)
        train(network, training)
        if training.right(network) < monks.PROBLEMS[2].enough:
            assert monks.pruned(2, seed) == []
            return
    pytest.fail("all of these train: choose other seeds for this test")
