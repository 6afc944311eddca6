"""Budgets of one field for all, supports of exactly that size, and deltas of several trainings in one."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pruning import Evidence, Masks, prunable, prune, scorers
from pruning.adaptation import Budget, Change, Delta, Tuning, choose_support, combined, conflicts, largest, parse_budget
from pruning.adaptation.budget import lora_count, sparse_bytes
from pruning.allocation import PerRow, Uniform
from pruning.errors import AdaptationError
from pruning.granularity import Blocks, Vectors


def parameters() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return dict(prunable(nn.Sequential(nn.Linear(100, 60), nn.Linear(60, 30), nn.Conv1d(30, 4, 3))))


@pytest.mark.parametrize(
    ("field", "count", "size"),
    [
        (1234, 1234, None),
        ("1234", 1234, None),
        (0.25, 2040, None),
        ("25%", 2040, None),
        ("0.5 %".replace(" ", ""), 41, None),
        (1.0, 8160, None),
        ("2.5kB", None, 2500),
        ("1MB", None, 1_000_000),
        ("lora:3", 3 * (160 + 90), None),
    ],
)
def test_a_budget_is_a_number_a_share_bytes_or_a_rank(field: float | str, count: int | None, size: int | None) -> None:
    assert parse_budget(field, parameters()) == Budget(count, size)


@pytest.mark.parametrize(
    "field",
    ["lora", "lora:0", "-3", "0", 0.0, "1.5", "120%", 8161, "many", "3 MB", "nan", "inf", "5%%", "lora:900", True],
)
def test_other_budgets_are_refused(field: float | str) -> None:
    with pytest.raises(AdaptationError, match="budget"):
        parse_budget(field, parameters())


def test_the_weights_of_a_lora_are_those_of_peft() -> None:
    peft = pytest.importorskip("peft")
    model = nn.Sequential(nn.Linear(100, 60), nn.Linear(60, 30))
    counted = lora_count(prunable(model), 3)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=3, target_modules=["0", "1"]))
    assert counted == sum(p.numel() for p in wrapped.parameters() if p.requires_grad)


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 60), st.integers(1, 40), st.integers(0, 10**4))
def test_the_largest_allowed_is_found(step: int, most: int, room: int) -> None:
    def size_of(number: int) -> tuple[int, float | None]:
        return number * step, None

    allowed = [number for number in range(1, most + 1) if number * step <= room]
    if not allowed:
        with pytest.raises(AdaptationError, match=r"budget: .* than it takes, "):
            largest(Budget(max(1, room)), "it", lambda n: (n * step + (room == 0), None), most)
        return
    assert largest(Budget(room), "it", size_of, most) == max(allowed)


@pytest.mark.parametrize("size", [1, 7, 81, 4080, 8160])
def test_a_support_has_exactly_its_count(size: int) -> None:
    scores = {name: p.abs() for name, p in parameters().items()}
    assert choose_support(scores, Budget(size)).kept == size


def test_a_support_of_bytes_is_the_largest_whose_file_fits() -> None:
    scores = {name: p.abs() for name, p in parameters().items()}
    for allowed in (500, 2_000, 20_000):
        kept = choose_support(scores, Budget(bytes=allowed)).kept
        assert sparse_bytes(kept, 8160) <= allowed < sparse_bytes(kept + 1, 8160)


def test_policies_keep_to_survivors_or_to_what_was_removed() -> None:
    scores = {name: p.abs() for name, p in parameters().items()}
    pruned = prune(scores, 0.3)
    inside = choose_support(scores, 0.1, pruned=pruned, policy="survivors")
    outside = choose_support(scores, 0.1, pruned=pruned, policy="regrow")
    assert (inside & pruned) == inside
    assert (outside & pruned).kept == 0
    assert choose_support(scores, 0.1, pruned=pruned) == prune(scores, 0.1)
    assert inside == prune(scores, 0.1)  # the largest survive a pruning by size
    assert choose_support(scores, 0.3, pruned=pruned, policy="survivors") == pruned
    for size, policy in ((0.31, "survivors"), (Budget(2449), "survivors"), (0.8, "regrow")):
        with pytest.raises(AdaptationError, match=f"policy={policy}: leaves"):
            choose_support(scores, size, pruned=pruned, policy=policy)
    with pytest.raises(AdaptationError, match="is about a pruned network"):
        choose_support(scores, 0.1, policy="survivors")
    with pytest.raises(AdaptationError, match="choose free"):
        choose_support(scores, 0.1, policy="dead")


def test_scores_with_a_sign_are_taken_by_size() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(4, 3)
    evidence = Evidence(layer, prunable(layer), [torch.randn(5, 4)], lambda m, x: m(x).square().mean())
    signed = scorers.movement(evidence)["weight"]
    assert bool((signed < 0).any())
    assert torch.equal(scorers.absolute(evidence, scorers.movement)["weight"], signed.abs())


def delta(values: dict[int, float], base: str = "b") -> Delta:
    places = torch.tensor(sorted(values))
    change = Change(torch.Size((4, 5)), torch.float32, base, places, torch.tensor([values[p] for p in places.tolist()]))
    return Delta({"weight": change})


COMBINED: dict[str, Callable[[list[float]], float]] = {
    "sum": sum,
    "mean": lambda v: sum(v) / 3,
    "ties": lambda v: _mean([x for x in v if x * sum(v) > 0]),
}


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


VALUES = st.dictionaries(st.integers(0, 19), st.sampled_from([-2.0, -1.0, 0.0, 0.5, 1.0, 3.0]), min_size=1)


@settings(max_examples=80, deadline=None)
@given(st.lists(VALUES, min_size=3, max_size=3), st.sampled_from(sorted(COMBINED)))
def test_combining_is_by_its_definition_at_every_place(parts: list[dict[int, float]], how: str) -> None:
    found = combined([delta(part) for part in parts], how).changes["weight"]
    places = sorted(set().union(*parts))
    assert found.places.tolist() == places
    wanted = [COMBINED[how]([part.get(place, 0.0) for part in parts]) for place in places]
    torch.testing.assert_close(found.values, torch.tensor(wanted))


@settings(max_examples=60, deadline=None)
@given(VALUES, VALUES)
def test_conflicts_are_counted(one: dict[int, float], other: dict[int, float]) -> None:
    (found,) = conflicts(delta(one), delta(other))
    both = one.keys() & other.keys()
    assert (found.name, found.overlap, found.expected) == ("weight", len(both), len(one) * len(other) / 20)
    opposite = [one[place] * other[place] < 0 for place in both]
    assert found.opposite == (pytest.approx(sum(opposite) / len(both)) if both else None)


def test_deltas_that_do_not_go_together_are_refused() -> None:
    for call in (combined, lambda deltas: conflicts(*deltas)):
        with pytest.raises(AdaptationError, match="weight: the deltas are of different bases"):
            call([delta({1: 1.0}), delta({1: 1.0}, "other")])
    heads = [Delta({}, {"head": torch.full((2,), float(n))}) for n in (0, 1)]
    with pytest.raises(AdaptationError, match="head: is replaced as a whole"):
        combined(heads)
    assert combined([heads[0], heads[0]]).dense["head"].tolist() == [0, 0]
    with pytest.raises(AdaptationError, match="no deltas"):
        combined([])
    with pytest.raises(AdaptationError, match="choose sum, mean or ties"):
        combined(heads, "median")


def test_a_combined_delta_is_applied_as_any() -> None:
    torch.manual_seed(0)
    model = nn.Linear(10, 10)
    base = model.weight.detach().clone()
    found = []
    for seed in (0, 1):
        mask = torch.rand(10, 10, generator=torch.Generator().manual_seed(seed)) < 0.3
        tuning = Tuning(model, Masks({"weight": mask}))
        tuning.values["weight"].data.normal_()
        tuning.write_()
        found.append(tuning.delta())
        tuning.revert()
    with combined(found).apply_(model):
        whole = model.weight.detach() - base
    parts = torch.zeros(10, 10)
    for each in found:
        with each.apply_(model):
            parts += model.weight.detach() - base
    torch.testing.assert_close(whole, parts, atol=1e-6, rtol=1e-5)
    assert torch.equal(model.weight, base)


@pytest.mark.parametrize(
    ("granularity", "allocation", "unit"),
    [(Vectors(0), None, 20), (Blocks((2, 2)), None, 4), (None, PerRow(), 20), (None, Uniform(), 1)],
)
@settings(max_examples=25, deadline=None)
@given(st.integers(1, 700))
def test_units_do_not_exceed_a_budget(granularity: Any, allocation: Any, unit: int, count: int) -> None:
    """One matrix has 30 rows of 20, and the other as many as one unit at the least."""
    scores = {"a": torch.rand(30, 20), "b": torch.rand(6, 20)}
    try:
        support = choose_support(scores, Budget(count=count), granularity, allocation)
    except AdaptationError:  # less than one unit
        assert count < 2 * max(unit, 36)
        return
    found = sum(int(mask.sum()) for mask in support.values())
    assert 0 < found <= count
    assert found > count - 2 * max(unit, 36)


@pytest.mark.parametrize(
    ("scores", "options", "message"),
    [
        ({}, {}, "there are none"),
        ({"a": torch.rand(4)}, {"pruned": {"b": torch.ones(4).bool()}, "policy": "survivors"}, "a: has no mask"),
        (
            {"a": torch.rand(4)},
            {"pruned": {"a": torch.ones(4).int()}, "policy": "regrow"},
            "a: has a mask of torch.int32",
        ),
    ],
)
def test_supports_that_cannot_be_are_refused(scores: Any, options: Any, message: str) -> None:
    with pytest.raises(AdaptationError, match=message):
        choose_support(scores, Budget(count=2), **options)
