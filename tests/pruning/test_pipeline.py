"""`prune` as a function: pure, refusing what does not fit, indifferent to the order of tensors but for ties."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pruning import Masks, prune
from pruning.allocation import ERK, Densities, Global, NofM, PerRow, Uniform
from pruning.errors import AllocationError, MaskError, PruningError, ScoreError
from pruning.granularity import Blocks, Vectors, Weights

CHOICES = [
    (granularity, allocation)
    for granularity in (Weights(), Blocks((2, 2)), Vectors((0, 1), "l2"))
    for allocation in (Global(), Global(1), Uniform(), ERK(), PerRow(), NofM(1, 2), Densities({"a": 0.5}))
]


def draw_scores(seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a": (4, 6), "b": (6, 4, 2, 2), "c": (2, 8)}
    return {name: torch.rand(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def assert_refused(error, call, *parts):
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert all(part in message for part in parts), message


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(("granularity", "allocation"), CHOICES)
def test_prune_is_pure(granularity, allocation, dtype):
    scores = draw_scores(dtype=dtype)
    for score in scores.values():
        score.requires_grad_()
    within = Masks.dense(scores)
    originals = {name: (score.detach().clone(), score._version) for name, score in scores.items()}
    state = torch.random.get_rng_state()
    masks = prune(scores, 0.5, granularity, allocation, within)
    again = prune(scores, 0.5, granularity, allocation, within)
    full = prune(scores, 1.0, granularity, Global(), within)
    for result in (masks, full):
        for mask in result.values():
            mask.logical_not_()  # a result that shared memory with anything would show below
    assert prune(scores, 0.5, granularity, allocation, within) == again
    assert isinstance(masks, Masks)
    assert list(masks) == list(scores)
    for name, (original, version) in originals.items():
        assert torch.equal(scores[name].detach(), original)
        assert scores[name]._version == version
        assert scores[name].grad is None
        assert masks[name].dtype == torch.bool
        assert masks[name].shape == scores[name].shape
        assert bool(within[name].all())
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("granularity", "allocation"), CHOICES)
def test_half_precision_chooses_as_float32_does(granularity, allocation, dtype):
    halves = draw_scores(3, dtype)
    wide = {name: score.float() for name, score in halves.items()}
    assert prune(halves, 0.5, granularity, allocation) == prune(wide, 0.5, granularity, allocation)


@given(st.permutations(["a", "b", "c"]), st.floats(0.01, 1.0))
def test_the_order_of_tensors_changes_only_ties(order, density):
    scores = draw_scores()  # no two are equal
    assert prune({name: scores[name] for name in order}, density) == prune(scores, density)
    tied = {name: torch.ones_like(score) for name, score in scores.items()}
    masks = prune({name: tied[name] for name in order}, density)
    assert torch.cat([masks[name].view(-1) for name in order]).nonzero().view(-1).tolist() == list(range(masks.kept))


def test_the_order_of_within_does_not_matter():
    scores = draw_scores()
    within = prune(draw_scores(1), 0.5)
    backwards = {name: within[name] for name in reversed(list(within))}
    assert prune(scores, 0.2, within=backwards) == prune(scores, 0.2, within=within)


@pytest.mark.parametrize("dim", [0, 1])
def test_views_and_strided_scores(dim):
    scores = draw_scores()
    spread = {name: torch.stack([score, score.neg()], -1)[..., 0] for name, score in scores.items()}
    turned = {name: score.transpose(0, dim).contiguous().transpose(0, dim) for name, score in spread.items()}
    for granularity, allocation in CHOICES:
        assert prune(turned, 0.5, granularity, allocation) == prune(scores, 0.5, granularity, allocation)


def test_integers_and_booleans_are_scores():
    assert prune({"a": torch.tensor([3, 1, 2])}, 2 / 3)["a"].tolist() == [True, False, True]
    assert prune({"a": torch.tensor([False, True, True])}, 1 / 3)["a"].tolist() == [False, True, False]


def test_a_tensor_may_be_emptied_and_is_named():
    scores = {"weak": torch.zeros(5), "strong": torch.ones(5)}
    assert prune(scores, 0.5).emptied == ("weak",)
    assert prune(scores, 0.5, allocation=Global(minimum=1)).emptied == ()


@pytest.mark.parametrize("density", [0, 0.0, -0.1, 1.5, float("nan"), float("inf"), True, False, "0.1", [0.1]])
@pytest.mark.parametrize("allocation", [Global(), NofM(2, 4)])
def test_what_is_no_density_is_refused(density, allocation):
    assert_refused(
        AllocationError, lambda: prune(draw_scores(), density, allocation=allocation), repr(density), "above 0"
    )


def test_whole_and_tiny_densities_are_densities():
    assert prune(draw_scores(), 1).density == 1.0
    assert prune(draw_scores(), 1e-9).kept == 0


@pytest.mark.parametrize("density", [0.5, None])
def test_no_scores_are_refused(density):
    assert_refused(AllocationError, lambda: prune({}, density), "no scores")


@pytest.mark.parametrize("shape", [(0,), (0, 4), (3, 0, 2)])
@pytest.mark.parametrize(("granularity", "allocation"), CHOICES)
def test_a_tensor_without_elements_is_refused_by_name(shape, granularity, allocation):
    scores = {"a": torch.ones(4, 4), "hollow.weight": torch.zeros(shape)}
    assert_refused(AllocationError, lambda: prune(scores, 0.5, granularity, allocation), "hollow.weight", "exclude")


@pytest.mark.parametrize(("granularity", "allocation"), CHOICES)
def test_scores_that_are_not_finite_are_refused_by_name(granularity, allocation):
    for value in (float("nan"), float("inf"), -float("inf")):
        scores = draw_scores()
        scores["b"][1, 1, 1, 1] = value
        assert_refused(ScoreError, lambda s=scores: prune(s, 0.5, granularity, allocation), "b: 1 of 96", "check")


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda within: within.pop("b"), "b"),
        (lambda within: within.update(b=within["b"][:1]), "b"),
        (lambda within: within.update(b=within["b"].view(-1)), "b"),
        (lambda within: within.update(b=within["b"].float()), "b"),
        (lambda within: within.update(b=within["b"].to(torch.uint8)), "b"),
    ],
)
def test_masks_that_do_not_fit_are_refused_by_name(change, name):
    within = {key: torch.ones_like(score, dtype=torch.bool) for key, score in draw_scores().items()}
    change(within)
    assert_refused(MaskError, lambda: prune(draw_scores(), 0.5, within=within), f"{name}:", "within=")


def test_masks_of_what_is_not_scored_stay():
    within = {key: torch.ones_like(score, dtype=torch.bool) for key, score in draw_scores().items()}
    bias = torch.tensor([True, False])
    masks = prune(draw_scores(), 0.5, within=within | {"bias": bias})
    assert torch.equal(masks["bias"], bias)
    alone = prune(draw_scores(), 0.5)
    assert all(torch.equal(masks[name], alone[name]) for name in alone)


def test_every_refusal_is_a_pruning_error():
    assert all(issubclass(error, PruningError) for error in (AllocationError, MaskError, ScoreError))


@pytest.mark.parametrize(("granularity", "allocation"), CHOICES)
def test_partly_dead_units_stay_within(granularity, allocation):
    """A unit that an unstructured mask has thinned competes with its live weights, and none of the dead return."""
    within = prune(draw_scores(1), 0.7)
    try:
        masks = prune(
            draw_scores(2),
            0.1,
            granularity,
            Densities({"a": 0.1}) if isinstance(allocation, NofM) else allocation,
            within,
        )
    except AllocationError as error:
        assert "alive" in str(error) or "minimum" in str(error)  # noqa: PT017  # either outcome is right, and each is checked
        return
    for name, mask in masks.items():
        assert not bool((mask & ~within[name]).any())
        whole = granularity.pool(name, mask.float(), mask).alive
        assert torch.equal(granularity.expand(whole, mask.shape) & within[name], mask)


@pytest.mark.parametrize("granularity", [Weights(), Blocks((2, 3)), Vectors(0)])
@pytest.mark.parametrize("allocation", [Global(), Uniform(), PerRow()])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_dead_may_have_any_score(granularity, allocation, bad):
    """As curvature has of removed weights, 0/0."""
    if isinstance(granularity, Vectors) and isinstance(allocation, PerRow):
        return
    scores = draw_scores()
    within = prune(scores, 0.6, granularity, allocation)
    clean = prune(scores, 0.3, granularity, allocation, within=within)
    dirty = {name: score.masked_fill(~within[name], bad) for name, score in scores.items()}
    assert prune(dirty, 0.3, granularity, allocation, within=within) == clean


@pytest.mark.parametrize(
    ("score", "said"),
    [
        (torch.ones(3, dtype=torch.complex64), "complex64"),
        (torch.tensor([2**60, 2**60 + 1, 0]), "2^53"),
        (torch.ones(3, device="meta"), "meta"),
        (torch.ones(3).to_sparse(), "sparse"),
        ([1.0, 2.0], "list"),
        (None, "NoneType"),
    ],
)
def test_scores_without_an_order_are_refused_by_name(score, said):
    assert_refused(ScoreError, lambda: prune({"fc": torch.ones(2), "odd": score}, 0.5), "odd", said)


def test_blocks_larger_than_the_tensor_cost_no_more_than_it():
    """A block of 10^12 weights would not fit into memory."""
    masks = prune(draw_scores(), 1.0, Blocks((10**6, 10**6)))
    assert masks.kept == masks.total


@pytest.mark.parametrize("density", [np.float32(0.5), np.float64(0.5), np.int64(1), Fraction(1, 2)])
def test_numbers_of_all_kinds_are_densities(density):
    assert prune(draw_scores(), density) == prune(draw_scores(), float(density))
