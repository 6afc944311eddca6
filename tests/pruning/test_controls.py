"""Controls that wrap a scorer, and the small scorers of gradients and of change."""

from functools import partial
from typing import Any

import pytest
import torch

from pruning import Evidence, prune, scorers
from pruning.errors import ScoreError
from tests.pruning.cases import assert_scores, reference, reference_case


@pytest.mark.parametrize("sizes", [(6,), (2, 4)])
def test_gradient_is_that_of_the_mean_loss(sizes: tuple[int, ...]) -> None:
    assert_scores(scorers.gradient(reference_case(*sizes)), {n: g.abs() for n, g in reference("gradient").items()})


def test_change_is_the_distance_to_the_initial_weights() -> None:
    case = reference_case(6)
    initial = {name: p.detach() + (-1.0) ** i for i, (name, p) in enumerate(case.parameters.items())}
    found = scorers.change(Evidence(case.model, case.parameters, initial=initial))
    assert_scores(found, {name: torch.ones_like(p).detach() for name, p in case.parameters.items()})
    with pytest.raises(ScoreError, match="initial="):
        scorers.change(case)
    for wrong in ({}, {name: torch.zeros(1) for name in case.parameters}):
        with pytest.raises(ScoreError, match=r"0\.weight: change: initial= has no tensor of shape"):
            scorers.change(Evidence(case.model, case.parameters, initial=wrong))
    with pytest.raises(ScoreError, match=r"no weight has moved.*give"):
        scorers.change(Evidence(case.model, case.parameters, initial=case.parameters))


def test_shuffled_scores_are_the_same_ones_elsewhere_in_the_same_layer() -> None:
    case = reference_case(6)
    plain = scorers.taylor(case)
    shuffled = scorers.layer_shuffled(case, scorers.taylor, seed=3)
    for name, score in shuffled.items():
        assert not torch.equal(score, plain[name])
        assert torch.equal(score.flatten().sort().values, plain[name].flatten().sort().values)
    again = scorers.layer_shuffled(case, scorers.taylor, seed=3)
    assert all(torch.equal(again[name], shuffled[name]) for name in again)
    other = scorers.layer_shuffled(case, scorers.taylor, seed=4)
    assert any(not torch.equal(other[name], shuffled[name]) for name in other)
    for density in (0.1, 0.5, 0.9):
        one, two = prune(plain, density), prune(shuffled, density)
        assert [line.kept for line in one.table()] == [line.kept for line in two.table()]


def test_live_scores_are_shuffled_among_live_weights() -> None:
    case = reference_case(6)
    alive = prune(scorers.random(case), 0.5)
    case = Evidence(case.model, case.parameters, case.batches, case.loss, masks=alive)
    plain, shuffled = scorers.magnitude(case), scorers.layer_shuffled(case, scorers.magnitude)
    for name, mask in alive.items():
        assert torch.equal(shuffled[name][~mask], plain[name][~mask])
        assert torch.equal(shuffled[name][mask].sort().values, plain[name][mask].sort().values)
        assert not torch.equal(shuffled[name][mask], plain[name][mask])


def test_shuffling_is_uniform() -> None:
    """Every score comes to every place equally often: chi-squared over 12 × 12 cells, 121 degrees of freedom."""
    case = reference_case(6)
    places = {"2.weight": torch.arange(12.0).view(3, 4), "0.weight": torch.zeros(4, 5)}
    counts = torch.zeros(12, 12)
    for seed in range(2400):
        shuffled = scorers.layer_shuffled(case, lambda evidence: places, seed)["2.weight"].flatten().long()
        counts[torch.arange(12), shuffled] += 1
    assert float(((counts - 200) ** 2 / 200).sum()) < 121 + 5 * (2 * 121) ** 0.5


def test_inverted_keeps_what_would_have_gone() -> None:
    case = reference_case(6)
    kept = prune(scorers.snip(case), 0.25)
    inverted = prune(scorers.inverted(case, scorers.snip), 0.75)
    assert all(torch.equal(inverted[name], ~kept[name]) for name in kept)
    nested = scorers.inverted(case, partial(scorers.inverted, scorer=scorers.snip))
    assert_scores(nested, scorers.snip(case), 0)


@pytest.mark.parametrize("control", [scorers.layer_shuffled, scorers.inverted])
def test_a_control_of_what_is_no_scorer_is_refused(control: Any) -> None:
    with pytest.raises(ScoreError, match="'snip' is no scorer: give"):
        control(reference_case(6), scorer="snip")
