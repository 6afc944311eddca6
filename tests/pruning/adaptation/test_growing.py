"""Supports that move while they train: against a dense bookkeeping of every place."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pruning import Evidence, Masks, prunable, prune, scorers
from pruning.adaptation import Regrown, Tuning
from pruning.adaptation.kept import KeptLinear
from pruning.allocation import Uniform
from pruning.errors import AdaptationError, ScheduleError

STEPS = 20


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 24), nn.Tanh(), nn.Linear(24, 3)).double()


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(16, 20, generator=generator, dtype=torch.float64)
    return x, x[:, :3].argmax(1)


def begin(model: nn.Module, within: Masks | None = None) -> Tuning:
    scores = scorers.random(Evidence(model, prunable(model)))
    return Tuning(model, prune(scores, 0.08, allocation=Uniform(), within=within))


def optimizer_of(tuning: Tuning) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW(tuning.parameters(), lr=0.02, weight_decay=0.1)
    tuning.follow(optimizer)
    return optimizer


def train(model: nn.Module, optimizer: torch.optim.Optimizer, growing: Regrown, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        F.cross_entropy(model(batch(step)[0]), batch(step)[1]).backward()
        growing.before_step()
        optimizer.step()
        growing.after_step()


def test_places_move_to_the_largest_gradients_as_in_a_dense_bookkeeping() -> None:
    """The oracle keeps d, and Adam's state, dense and masked, and follows the definition of RigL at each exchange."""
    model, plain = network(), network()
    tuning = begin(model)
    masks = dict(tuning.support)
    assert isinstance(model[0], KeptLinear)
    optimizer = optimizer_of(tuning)
    train(model, optimizer, Regrown(tuning, optimizer, STEPS, every=4, fraction=0.4, end=0.9), range(STEPS))

    base = {n: p.detach().clone() for n, p in plain.named_parameters() if n in masks}
    d = {n: torch.zeros_like(b) for n, b in base.items()}
    m, v = copy.deepcopy(d), copy.deepcopy(d)
    last, count, moved = round(0.9 * STEPS), 0, 0
    for step in range(STEPS):
        weights = {n: (base[n] + d[n] * masks[n]).requires_grad_() for n in base}
        loss = F.cross_entropy(torch.func.functional_call(plain, weights, (batch(step)[0],)), batch(step)[1])
        gradients = dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))
        if step and step < last and step % 4 == 0:
            share = 0.2 * (1 + math.cos(math.pi * step / last))
            for n, mask in masks.items():
                live = mask.flatten().nonzero()[:, 0]
                number = int(share * len(live))
                order = d[n].flatten()[live].abs().argsort(descending=True, stable=True)
                kept = torch.zeros_like(mask).flatten().index_fill(0, live[order[: len(live) - number]], True)
                free = (~kept).nonzero()[:, 0]
                best = gradients[n].flatten()[free].abs().argsort(descending=True, stable=True)
                new = kept.index_fill(0, free[best[:number]], True).view(mask.shape)
                moved += int((new & ~mask).sum())
                for state in (d, m, v):
                    state[n] = state[n] * (new & mask)
                masks[n] = new
            continue
        count += 1
        for n, mask in masks.items():
            g = gradients[n] * mask
            d[n] = d[n] * (1 - 0.02 * 0.1)
            m[n], v[n] = 0.9 * m[n] + 0.1 * g, 0.999 * v[n] + 0.001 * g * g
            corrected = (v[n] / (1 - 0.999**count)).sqrt() + 1e-8
            d[n] = d[n] - 0.02 * m[n] / (1 - 0.9**count) / corrected * mask
    assert moved > 10
    assert tuning.support == Masks(masks)
    delta = tuning.finish()
    for n, change in delta.changes.items():
        torch.testing.assert_close(change.values, d[n].flatten()[change.places], rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(model.get_parameter(n).detach(), base[n] + d[n], rtol=1e-9, atol=1e-11)
        free = ~masks[n]
        assert torch.equal(model.get_parameter(n)[free], base[n][free])  # what was left is its base again, to the bit


@pytest.mark.parametrize("growth", ["gradient", "random"])
def test_growth_stays_within_the_survivors_and_a_cut_training_ends_in_the_same_bits(growth: str) -> None:
    first = network()
    pruned = prune(scorers.magnitude(Evidence(first, prunable(first))), 0.4, allocation=Uniform())
    ends = []
    for cut in (None, 8, 11):
        model = network()
        pruned.apply_(model)
        tuning = begin(model, pruned)
        before = tuning.support
        optimizer = optimizer_of(tuning)
        options = {"every": 4, "growth": growth, "within": pruned}
        growing = Regrown(tuning, optimizer, STEPS, **options)
        train(model, optimizer, growing, range(cut or STEPS))
        if cut is not None:
            states = copy.deepcopy(
                (model.state_dict(), tuning.state_dict(), optimizer.state_dict(), growing.state_dict())
            )
            model = network()
            pruned.apply_(model)
            tuning = begin(model, pruned)
            model.load_state_dict(states[0])
            tuning.load_state_dict(states[1])
            optimizer = optimizer_of(tuning)
            optimizer.load_state_dict(states[2])
            growing = Regrown(tuning, optimizer, STEPS, **options)
            growing.load_state_dict(states[3])
            train(model, optimizer, growing, range(cut, STEPS))
        assert pruned.agree(model)
        assert tuning.support != before
        assert (tuning.support & pruned) == tuning.support
        ends.append({name: p.detach().clone() for name, p in model.named_parameters()})
    for end in ends[1:]:
        assert all(torch.equal(ends[0][name], value) for name, value in end.items())


def test_mistakes_are_named() -> None:
    model = network()
    tuning = begin(model)
    optimizer = optimizer_of(tuning)
    with pytest.raises(AdaptationError, match="growth='fast': choose"):
        Regrown(tuning, optimizer, 5, growth="fast")
    with pytest.raises(ScheduleError, match="every=0"):
        Regrown(tuning, optimizer, 5, every=0)
    with pytest.raises(AdaptationError, match="within= does not have all"):
        Regrown(tuning, optimizer, 5, within={n: ~mask for n, mask in tuning.support.items()})
    with pytest.raises(AdaptationError, match=r"0\.weight: has another number"):
        tuning.replace({n: torch.ones_like(mask) for n, mask in tuning.support.items()})
    with pytest.raises(AdaptationError, match=r"2\.weight: is in only one"):
        tuning.replace({"0.weight": tuning.support["0.weight"]})
