"""Allocations: the exact count in every competing group, against brute force; minima, rounds, impossible requests."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pruning.allocation import ERK, Densities, Global, NofM, PerRow, Rates, Uniform, erk_densities
from pruning.competition import Unlike
from pruning.errors import AllocationError
from pruning.granularity import Blocks, Units, Vectors, Weights
from pruning.pipeline import prune

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "selection.json").read_text())
SHAPES = {"conv": (4, 3, 3, 3), "fc1": (7, 9), "fc2": (5, 7), "head": (2, 5)}
GRANULARITIES = (
    Weights(),
    Blocks((2, 3)),
    Blocks((1, 4), "l2"),
    Vectors(0),
    Vectors(1, "max"),
    Vectors((0, 1), "mean"),
)
DENSITIES = st.floats(0.001, 1.0) | st.sampled_from([0.1, 0.25, 0.5, 0.75, 1.0])


def draw_scores(seed, shapes=SHAPES, ties=True):
    generator = torch.Generator().manual_seed(seed)
    if ties:
        return {name: torch.randint(0, 4, shape, generator=generator).float() for name, shape in shapes.items()}
    return {name: torch.rand(shape, generator=generator) for name, shape in shapes.items()}


def kept_units(granularity, masks):
    """Kept and total units of each tensor; every unit must be wholly kept or wholly removed."""
    counts = {}
    for name, mask in masks.items():
        low = granularity.pool(name, mask.float(), mask)
        dead = granularity.pool(name, (~mask).float(), ~mask)
        assert not bool((low.alive & dead.alive).any())
        counts[name] = (int(low.alive.sum()), low.alive.numel())
    return counts


def by_sorting(scores, keep, minimum=0, alive=None):
    """Brute force of the global choice: each tensor's best `minimum` first, then the best of the rest."""
    every = [(-float(s.reshape(-1)[i]), t, i) for t, s in enumerate(scores.values()) for i in range(s.numel())]
    if alive is not None:
        flat = [a.reshape(-1) for a in alive.values()]
        every = [entry for entry in every if bool(flat[entry[1]][entry[2]])]
    every.sort()
    chosen = []
    for position in range(len(scores)):
        chosen += [entry for entry in every if entry[1] == position][:minimum]
    chosen += [entry for entry in every if entry not in chosen][: keep - len(chosen)]
    masks = {name: torch.zeros(s.numel(), dtype=torch.bool) for name, s in scores.items()}
    names = list(scores)
    for _, tensor, index in chosen:
        masks[names[tensor]][index] = True
    return {name: masks[name].view(s.shape) for name, s in scores.items()}


def assert_equal(masks, expected):
    assert list(masks) == list(expected)
    for name, mask in expected.items():
        assert torch.equal(masks[name], mask), name


def assert_one_line(caught, *parts):
    message = str(caught.value)
    assert "\n" not in message
    assert all(part in message for part in parts), message


@given(st.integers(0, 99), DENSITIES, st.sampled_from(GRANULARITIES), st.booleans())
def test_global_keeps_the_exact_count_of_all(seed, density, granularity, ties):
    counts = kept_units(granularity, prune(draw_scores(seed, ties=ties), density, granularity, Global()))
    kept, total = map(sum, zip(*counts.values(), strict=True))
    assert kept == round(density * total)


@given(st.integers(0, 99), DENSITIES, st.sampled_from(GRANULARITIES), st.booleans())
def test_uniform_keeps_the_exact_count_of_each(seed, density, granularity, ties):
    for kept, total in kept_units(
        granularity, prune(draw_scores(seed, ties=ties), density, granularity, Uniform())
    ).values():
        assert kept == round(density * total)


@given(st.integers(0, 99), DENSITIES, st.sampled_from(GRANULARITIES))
def test_erk_keeps_the_exact_count_of_each(seed, density, granularity):
    shares = erk_densities(SHAPES, density)
    for name, (kept, total) in kept_units(granularity, prune(draw_scores(seed), density, granularity, ERK())).items():
        assert kept == round(shares[name] * total)


@given(st.integers(0, 99), DENSITIES, DENSITIES, st.sampled_from(GRANULARITIES))
def test_densities_keep_the_exact_count_of_each(seed, density, other, granularity):
    masks = prune(draw_scores(seed), density, granularity, Densities({"fc*": other}))
    for name, (kept, total) in kept_units(granularity, masks).items():
        assert kept == round((other if name.startswith("fc") else density) * total)


@given(st.integers(0, 99), DENSITIES, st.sampled_from([Weights(), Blocks((2, 3)), Blocks((1, 4)), Vectors((0, 1))]))
def test_per_row_keeps_the_exact_count_of_each_row(seed, density, granularity):
    scores = draw_scores(seed)
    masks = prune(scores, density, granularity, PerRow())
    for name, mask in masks.items():
        units = granularity.pool(name, mask.float(), mask).alive.flatten(1)
        assert units.sum(1).tolist() == [round(density * units.shape[1])] * units.shape[0]
    if granularity == Weights():
        for name, mask in masks.items():
            for row, kept in zip(scores[name].flatten(1), mask.flatten(1), strict=True):
                assert_equal({"row": kept}, by_sorting({"row": row}, int(kept.sum())))


@pytest.mark.parametrize("dim", [0, 1, 2])
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 2), (3, 4), (4, 8), (1, 3), (4, 4), (1, 32)])
@pytest.mark.parametrize("shape", [(4, 6, 3, 3), (5, 7, 2, 1), (3, 8, 3)])
def test_n_of_m_of_convolutions_where_m_need_not_divide(n, m, shape, dim):
    """Consecutive along `dim`, for each of the other indices; a shorter last group keeps round_half_even(r · n / m)."""
    scores = draw_scores(1, {"conv": shape})
    if shape[dim] < m and round(shape[dim] * n / m) == 0:
        with pytest.raises(AllocationError, match=r"conv: .* would empty it: exclude it"):
            prune(scores, None, allocation=NofM(n, m, dim))
        return
    mask = prune(scores, None, allocation=NofM(n, m, dim))["conv"]
    lines = zip(
        scores["conv"].movedim(dim, -1).reshape(-1, shape[dim]),
        mask.movedim(dim, -1).reshape(-1, shape[dim]),
        strict=True,
    )
    for line, kept in lines:
        for part, chosen in zip(line.split(m), kept.split(m), strict=True):
            keep = n if len(part) == m else round(len(part) * n / m)
            assert_equal({"group": chosen}, by_sorting({"group": part}, keep))


def test_n_of_m_over_blocks_and_within():
    scores = draw_scores(2, {"fc": (4, 16)}, ties=False)
    counts = kept_units(Blocks((2, 2)), prune(scores, 0.5, Blocks((2, 2)), NofM(2, 4)))
    assert counts == {"fc": (8, 16)}
    within = prune(scores, 0.2)
    masks = prune({"fc": -scores["fc"]}, None, allocation=NofM(2, 4), within=within)
    groups, live = masks["fc"].view(-1, 4).sum(1), within["fc"].view(-1, 4).sum(1)
    assert torch.equal(groups, live.clamp(max=2))
    assert not bool((masks["fc"] & ~within["fc"]).any())


@given(st.integers(0, 40), st.floats(0.36, 0.78), st.integers(0, 8), st.booleans())
def test_a_global_minimum_holds_and_the_total_stays_exact(seed, density, minimum, with_masks):
    shapes = {"a": (6, 6), "b": (5, 4), "c": (3, 2)}
    scores = draw_scores(seed, shapes)
    scores["c"] -= 9  # would be emptied; and has fewer units than the larger minima ask for
    within = prune(draw_scores(seed + 1, shapes), 0.8) if with_masks else None
    masks = prune(scores, density, allocation=Global(minimum), within=within)
    keep = round(density * 62)
    assert masks.kept == keep
    for name, mask in masks.items():
        live = mask.numel() if within is None else int(within[name].sum())
        assert int(mask.sum()) >= min(minimum, live)
    assert_equal(masks, by_sorting(scores, keep, minimum, within))


@pytest.mark.parametrize("allocation", [Uniform(3), ERK(3), Densities({"head": 0.01}, 3)])
def test_minimum_per_tensor(allocation):
    masks = prune(draw_scores(0), 0.02, allocation=allocation)
    without = prune(draw_scores(0), 0.02, allocation=type(allocation)(*(
        [allocation.densities] if isinstance(allocation, Densities) else [])))  # fmt: skip
    for name, mask in masks.items():
        assert int(mask.sum()) == max(3, int(without[name].sum()))


@pytest.mark.parametrize("allocation", [Global(), Global(2), Uniform(), ERK(), Densities({"fc1": 0.05}), PerRow()])
@pytest.mark.parametrize("granularity", [Weights(), Blocks((2, 2))])
def test_rounds_within_earlier_masks_only_ever_remove(allocation, granularity):
    masks = None
    for step, density in enumerate((0.8, 0.5, 0.5, 0.2, 0.15)):
        earlier = masks
        masks = prune(draw_scores(step), density, granularity, allocation, earlier)
        if earlier is not None:
            assert not any(bool((mask & ~earlier[name]).any()) for name, mask in masks.items())
        kept, total = map(sum, zip(*kept_units(granularity, masks).values(), strict=True))
        if isinstance(allocation, Global):
            assert kept == round(density * total)  # cumulative: of all units, not of those still alive
        if isinstance(allocation, Uniform):
            assert all(k == round(density * n) for k, n in kept_units(granularity, masks).values())


def test_within_equals_the_brute_force_over_live_weights():
    within = prune(draw_scores(0), 0.5)
    scores = draw_scores(1)
    total = sum(s.numel() for s in scores.values())
    assert_equal(prune(scores, 0.2, within=within), by_sorting(scores, round(0.2 * total), 0, within))


@pytest.mark.parametrize("case", VECTORS["ERK densities"], ids=lambda case: f"{len(case['shapes'])}-{case['density']}")
def test_erk_reference_densities_and_budget(case):
    shapes = {str(i): shape for i, shape in enumerate(case["shapes"])}
    shares = erk_densities(shapes, case["density"])
    assert list(shares.values()) == pytest.approx(case["per tensor"], abs=1e-6)
    sizes = [torch.Size(shape).numel() for shape in case["shapes"]]
    budget = sum(share * size for share, size in zip(shares.values(), sizes, strict=True))
    assert budget == pytest.approx(case["density"] * sum(sizes), rel=1e-9)
    masks = prune({name: torch.rand(shape) for name, shape in shapes.items()}, case["density"], allocation=ERK())
    kept = [int(mask.sum()) for mask in masks.values()]
    assert kept == [round(share * size) for share, size in zip(shares.values(), sizes, strict=True)]
    assert abs(sum(kept) - budget) <= len(shapes) / 2


@given(st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=4), min_size=1, max_size=6), DENSITIES)
def test_erk_sums_to_the_budget_for_every_network(shapes, density):
    shares = erk_densities({str(i): shape for i, shape in enumerate(shapes)}, density)
    sizes = [torch.Size(shape).numel() for shape in shapes]
    assert all(0.0 <= share <= 1.0 for share in shares.values())
    assert sum(s * n for s, n in zip(shares.values(), sizes, strict=True)) == pytest.approx(
        density * sum(sizes), rel=1e-9
    )
    raw = [sum(shape) / size for shape, size in zip(shapes, sizes, strict=True)]
    ratios = [share / r for share, r in zip(shares.values(), raw, strict=True) if share < 1.0]
    assert ratios == pytest.approx([ratios[0]] * len(ratios)) if ratios else True  # one ε for all that are sparse


def test_the_lottery_ladder():
    """Densities given as kept / total give exactly these counts, round upon round."""
    (key,) = [key for key in VECTORS if key.startswith("lottery")]
    shapes = {"fc1": (300, 784), "fc2": (100, 300), "fc3": (10, 100)}
    generator = torch.Generator().manual_seed(0)
    scores = {name: torch.randn(shape, generator=generator).abs() for name, shape in shapes.items()}
    totals = [s.numel() for s in scores.values()]
    masks, kept = None, list(totals)
    for line in VECTORS[key]:
        if line["round"]:
            kept = [k - round(rate * k) for k, rate in zip(kept, (0.2, 0.2, 0.1), strict=True)]
        shares = {name: k / n for name, k, n in zip(shapes, kept, totals, strict=True)}
        masks = prune(scores, None, allocation=Densities(shares), within=masks)
        assert [int(mask.sum()) for mask in masks.values()] == line["kept"] == kept
        assert round(100 * masks.density, 2) == line["percent"]


def test_the_lottery_ladder_by_rates():
    """The same ladder by the rates of the paper alone."""
    (key,) = [key for key in VECTORS if key.startswith("lottery")]
    shapes = {"fc1.weight": (300, 784), "fc2.weight": (100, 300), "fc3.weight": (10, 100)}
    scores = draw_scores(0, shapes)
    masks, allocation = None, Rates(0.2, {"fc3.*": 0.1})
    for line in VECTORS[key][1:]:
        masks = prune(scores, None, allocation=allocation, within=masks)
        assert [int(mask.sum()) for mask in masks.values()] == line["kept"]


@pytest.mark.parametrize("rate", [-0.1, 1.0, True, "much", None])
def test_rates_that_are_none_are_refused(rate):
    with pytest.raises(AllocationError, match="no share that a round removes"):
        Rates(rate)
    with pytest.raises(AllocationError, match="no share that a round removes"):
        Rates(0.2, {"fc*": rate})


def test_rates_have_a_density_of_their_own_and_globs_that_match():
    scores = draw_scores(0, {"fc1.weight": (10, 10)})
    with pytest.raises(AllocationError, match="ask for None"):
        prune(scores, 0.5, allocation=Rates())
    with pytest.raises(AllocationError, match="matches none"):
        prune(scores, None, allocation=Rates(0.2, {"fc9*": 0.1}))
    with pytest.raises(AllocationError, match="give a rate for each glob"):
        Rates(0.2, 0.1)


def test_rates_count_units():
    masks = prune({"w": torch.rand(10, 6)}, None, Vectors(0), Rates(0.25))
    assert masks.kept == 6 * 8  # round_half_even(2.5) = 2 of ten rows go


def test_the_first_matching_glob_decides():
    scores = draw_scores(0, {"fc1.weight": (10, 10), "fc2.weight": (10, 10), "out": (10, 10)})
    masks = prune(scores, 0.5, allocation=Densities({"fc1*": 0.1, "fc*": 0.2, "*.weight": 0.9}))
    assert [int(mask.sum()) for mask in masks.values()] == [10, 20, 50]
    masks = prune(scores, 0.5, allocation=Densities({"fc*": 0.2, "fc1*": 0.1}))
    assert [int(mask.sum()) for mask in masks.values()] == [20, 20, 50]
    assert masks == prune(scores, None, allocation=Densities({"fc*": 0.2, "*": 0.5}))


@pytest.mark.parametrize(
    ("allocation", "density", "parts"),
    [
        (Densities({"fcc*": 0.1}), 0.5, ("fcc*", "conv")),
        (Densities({"FC1": 0.1}), 0.5, ("FC1",)),
        (Densities({"fc1": 0.0}), 0.5, ("fc1", "0.0")),
        (Densities({"fc*": 1.5}), 0.5, ("fc1", "1.5")),
        (Densities({"fc1": float("nan")}), 0.5, ("fc1", "nan")),
        (Densities({"fc1": 0.5}), None, ("density is missing",)),
        (Global(), None, ("density is missing",)),
        (PerRow(), None, ("density is missing",)),
        (NofM(2, 4), 0.4, ("NofM(2, 4)", "0.5", "0.4")),
        (NofM(2, 4, dim=2), 0.5, ("fc1", "NofM")),
        (NofM(2, 4, dim=-1), 0.5, ("conv", "NofM")),
        (Global(50), 0.5, ("minimum=50",)),
        (Global(-1), 0.5, ("minimum=-1",)),
        (Global(0.5), 0.5, ("minimum=0.5",)),
        (Uniform(-1), 0.5, ("minimum=-1",)),
        (ERK(-2), 0.5, ("minimum=-2",)),
        (Densities({}, -2), 0.5, ("minimum=-2",)),
    ],
)
def test_impossible_allocations_are_refused(allocation, density, parts):
    with pytest.raises(AllocationError) as caught:
        prune(draw_scores(0), density, allocation=allocation)
    assert_one_line(caught, *parts)


@pytest.mark.parametrize(("n", "m"), [(0, 4), (5, 4), (-1, 2), (1, 0)])
def test_impossible_patterns_are_refused(n, m):
    with pytest.raises(AllocationError) as caught:
        NofM(n, m)
    assert_one_line(caught, f"NofM({n}, {m})")


@pytest.mark.parametrize("allocation", [Uniform(), ERK(), PerRow(), Densities({"*": 0.5}), Global()])
def test_a_density_above_what_lives_is_refused_by_name(allocation):
    scores = draw_scores(0, {"body.weight": (6, 6)})
    within = {"body.weight": torch.zeros(6, 6, dtype=torch.bool)}
    within["body.weight"][:, 0] = True
    with pytest.raises(AllocationError) as caught:
        prune(scores, 0.5, allocation=allocation, within=within)
    assert_one_line(caught, "body.weight", "alive", "lower density")


def test_one_dead_row_is_enough_to_refuse_per_row():
    within = {"w": torch.ones(3, 4, dtype=torch.bool)}
    within["w"][1, 1:] = False
    with pytest.raises(AllocationError) as caught:
        prune({"w": torch.rand(3, 4)}, 0.5, allocation=PerRow(), within=within)
    assert_one_line(caught, "w:", "2 units of every row", "only 1 alive")


@pytest.mark.parametrize("allocation", [PerRow(), NofM(2, 4)])
@pytest.mark.parametrize(("granularity", "shape"), [(Vectors(0), (4, 4)), (Weights(), (8,)), (Weights(), ())])
def test_rows_need_two_dimensions(allocation, granularity, shape):
    with pytest.raises(AllocationError) as caught:
        prune({"norm.weight": torch.ones(shape)}, 0.5, granularity, allocation)
    assert_one_line(caught, "norm.weight", type(allocation).__name__, "exclude")


def standing_for(sizes, alive):
    """Units that stand for so many each."""
    members = torch.tensor([[n if i < size else -1 for i in range(max(sizes))] for n, size in enumerate(sizes)])
    return Units(torch.rand(len(sizes)), torch.tensor(alive), torch.Size((len(sizes), 1)), members=members)


@pytest.mark.parametrize(("density", "kept"), [(0.9, 7), (0.67, 6), (0.23, 2)])
def test_units_of_different_sizes_come_closest_to_the_density(density, kept):
    """Of nine units two are dead, as a bundle: 0.9 are eight, which half a bundle makes of the seven that live."""
    torch.manual_seed(0)
    units = {"pairs": standing_for((2, 2, 2), (True, True, False)), "single": standing_for((1, 1, 1), (True,) * 3)}
    units["pairs"].scores.add_(1)
    competition = Unlike(tuple(units), density)
    found = competition.select(units)
    assert sum(units[name].stand_for(mask) for name, mask in found.items()) == kept
    assert not bool(found["pairs"][2])
