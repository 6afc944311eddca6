"""Movement against reference values, and against autograd through an explicit straight-through mask."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pruning import Evidence, Masks, prune, schedules, scorers
from pruning.allocation import Uniform
from pruning.errors import ScoreError
from pruning.granularity import Blocks, Granularity, Weights
from pruning.scorers import Movement
from tests.pruning.cases import assert_scores, loss, reference, reference_case


def test_scores_equal_the_reference() -> None:
    case = reference_case(6)
    for name, parameter in case.model.named_parameters():
        parameter.requires_grad_("weight" in name)  # the reference trains the weights alone
    assert_scores(scorers.movement(case, steps=3, learning_rate=0.1), reference("movement"))
    assert_scores(scorers.movement(case, steps=3, rate=5.0), {n: 5 * s for n, s in reference("movement").items()})


def by_autograd(
    case: Evidence,
    steps: int,
    *,
    density: float | None = None,
    threshold: float | None = None,
    penalty: float = 0.0,
    granularity: Granularity,
    rate: float,
    learning_rate: float,
    alive: Masks | None = None,
) -> dict[str, Tensor]:
    """Units' scores as parameters: W·(M + S - S.detach()) in the forward pass, everything else left to torch."""
    every = {name: p.detach().clone().requires_grad_() for name, p in case.model.named_parameters()}
    units = {
        name: granularity.pool(name, torch.zeros_like(p), None).scores.requires_grad_()
        for name, p in case.parameters.items()
    }
    batches = list(case.batches)
    for step in range(steps):
        spread = {name: granularity.expand(s, every[name].shape) for name, s in units.items()}
        if threshold is not None:
            masks = {name: s.sigmoid() > threshold for name, s in spread.items()}
        elif density is not None and step:
            start = 1.0 if alive is None else alive.density
            # one score a unit: units of several weights are chosen by a pooled score of the same order
            masks = dict(
                prune(spread, schedules.cubic(density, steps - 1, start)[step], mean_of(granularity), within=alive)
            )
        else:
            masks = {name: torch.ones_like(s, dtype=torch.bool) for name, s in spread.items()}
        if alive is not None:
            masks = {name: mask & alive[name] for name, mask in masks.items()}
        masked = {name: every[name] * (masks[name] + s - s.detach()) for name, s in spread.items()}
        total = loss(
            lambda x, w=every | masked: torch.func.functional_call(case.model, w, (x,)), batches[step % len(batches)]
        )
        if penalty:
            total = total + penalty * sum(s.sigmoid().sum() for s in units.values())
        total.backward()
        with torch.no_grad():
            for name, s in units.items():
                s -= rate * s.grad
                every[name].grad *= masks[name]
                s.grad = None
            for p in every.values():
                p -= learning_rate * p.grad
                p.grad = None
    return {name: s.detach() for name, s in units.items()}


def mean_of(granularity: Granularity) -> Granularity:
    return Blocks(granularity.shape, "mean") if isinstance(granularity, Blocks) else granularity


@pytest.mark.parametrize("granularity", [Weights(), Blocks((2, 2)), Blocks((3, 2))], ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"density": 0.3},
        {"threshold": 0.45, "penalty": 0.3},
        {"threshold": 0.5, "penalty": 0.02},
        {"threshold": 0.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("removed", [False, True])
def test_scores_equal_autograd_through_the_mask(
    granularity: Granularity, options: dict[str, Any], removed: bool
) -> None:
    case = reference_case(3, 3)
    alive = None
    if removed:
        alive = prune(scorers.magnitude(case), 0.7, granularity)
        alive.apply_(case.model)
        case = Evidence(case.model, case.parameters, case.batches, case.loss, masks=alive)
    steps = {"steps": 6, "learning_rate": 0.5, "rate": 2.0}
    found = scorers.movement(case, granularity=granularity, **steps, **options)
    wanted = by_autograd(case, granularity=granularity, alive=alive, **steps, **options)
    for name, score in found.items():
        torch.testing.assert_close(granularity.pool(name, score, None).scores, wanted[name], rtol=1e-9, atol=1e-12)


def test_scores_of_removed_weights_go_on_moving_and_bring_them_back() -> None:
    """A removed weight whose gradient pulls it away from 0 outscores a kept one that shrinks."""
    weights = {"w": torch.tensor([1.0, 1.0])}
    learned = Movement(weights)
    learned.observe({"w": torch.tensor([-1.0, 0.5])}, weights)
    assert learned.hard(0.5)["w"].tolist() == [True, False]
    learned.observe({"w": torch.tensor([2.0, -1.0])}, weights)  # the second is removed, its W is still there
    assert learned()["w"].tolist() == [-1.0, 0.5]
    assert learned.hard(0.5)["w"].tolist() == [False, True]


def test_soft_threshold_and_its_penalty() -> None:
    weights = {"w": torch.ones(2, 2)}
    learned = Movement(weights, rate=1.0, penalty=4.0, granularity=Blocks((1, 2)))
    assert learned.soft(0.49)["w"].all()
    learned.observe({"w": torch.tensor([[-3.0, 0.0], [0.0, 0.0]])}, weights)
    torch.testing.assert_close(learned()["w"].sum(1), torch.tensor([3.0 - 1.0, -1.0]))  # λσ'(0) = 1 for each unit
    assert learned.soft(0.49)["w"].tolist() == [[True, True], [False, False]]
    assert learned.soft(0.2)["w"].all()


def test_allocation_shares_out_what_trains() -> None:
    case = reference_case(6)
    for allocation in (None, Uniform()):
        found = scorers.movement(case, steps=4, density=0.25, allocation=allocation)
        assert {n: s.shape for n, s in found.items()} == {n: p.shape for n, p in case.parameters.items()}
    one, two = (scorers.movement(case, steps=9, density=0.25, allocation=a) for a in (None, Uniform()))
    assert any(not torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    "options",
    [
        {"density": 0.5, "threshold": 0.5},
        {"density": 7.0},
        {"threshold": 1.5},
        {"steps": 0},
        {"granularity": Blocks((2, 2), "max")},
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ScoreError, match=r"give|set") as caught:
        scorers.movement(reference_case(6), **options)
    assert "\n" not in str(caught.value)


def test_an_interrupted_training_leaves_the_network_as_it_was() -> None:
    case = reference_case(3, 3)
    before = {name: value.clone() for name, value in case.model.state_dict().items()}
    calls = []

    def breaks(model: nn.Module, batch: Any) -> Tensor:
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("broken")
        return loss(model, batch)

    with pytest.raises(RuntimeError, match="broken"):
        scorers.movement(Evidence(case.model, case.parameters, case.batches, breaks), steps=5)
    assert all(torch.equal(value, before[name]) for name, value in case.model.state_dict().items())
