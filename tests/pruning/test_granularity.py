"""Units: pooling against a plain Python loop over weights, and expansion as its exact inverse."""

import math
from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pruning.errors import GranularityError, ScoreError
from pruning.granularity import Blocks, Vectors, Weights
from pruning.pipeline import prune

POOLINGS = ("sum", "mean", "max", "l2")
SHAPES = ((4, 6), (5, 7), (1, 1), (3, 2, 3, 3), (2, 5, 1, 3), (7, 1), (4, 3, 2))
ALL_DIMS = [dims for count in range(1, 5) for dims in combinations(range(4), count)]


def block_of(shape, block):
    """Weight index -> unit index, by the definition: the matrix [out, in·h·w] cut into blocks."""
    strides = torch.empty(shape).stride()

    def unit(index):
        column = sum(i * s for i, s in zip(index[1:], strides[1:], strict=True))
        return index[0] // block[0], column // block[1]

    return unit


def vector_of(dims):
    return lambda index: tuple(index[d] for d in dims)


def indices(shape):
    return torch.ones(shape).nonzero().tolist()


def pooled_by_loop(scores, alive, unit_of, pooling):
    """Unit -> (score, is it alive), over the weights one at a time."""
    members = {}
    for index in indices(scores.shape):
        live = alive is None or bool(alive[tuple(index)])
        members.setdefault(unit_of(index), []).append((float(scores[tuple(index)]), live))
    formula = {
        "sum": math.fsum,
        "mean": lambda v: math.fsum(v) / len(v),
        "max": max,
        "l2": lambda v: math.sqrt(math.fsum(x * x for x in v)),
    }[pooling]
    result = {}
    for unit, pairs in members.items():
        values = [value for value, live in pairs if live]
        result[unit] = (formula(values) if values else 0.0, bool(values))
    return result


def assert_pooled(granularity, scores, alive, unit_of):
    if granularity.pooling == "l2":
        scores = scores.abs()
    units = granularity.pool("w", scores, alive)
    expected = pooled_by_loop(scores, alive, unit_of, granularity.pooling)
    assert units.shape == scores.shape
    assert units.scores.numel() == len(expected)
    assert units.live == sum(live for _, live in expected.values())
    assert (units.alive is None) == (alive is None)
    for unit, (score, live) in expected.items():
        assert alive is None or bool(units.alive[unit]) == live
        if live:  # what a dead unit scores is of no account
            assert float(units.scores[unit]) == pytest.approx(score, rel=1e-5, abs=1e-6)


def assert_partition(granularity, shape, unit_of):
    """Every weight belongs to exactly one unit, the right one, and expansion undoes pooling."""
    scores = torch.zeros(shape)
    units = granularity.pool("w", scores, None).scores
    covered = torch.zeros(shape, dtype=torch.int64)
    for position in range(units.numel()):
        one = torch.zeros(units.numel(), dtype=torch.bool)
        one[position] = True
        one = one.view(units.shape)
        mask = granularity.expand(one, torch.Size(shape))
        assert mask.dtype == torch.bool
        assert mask.shape == torch.Size(shape)
        unit = tuple(one.nonzero()[0].tolist())
        assert all(unit_of(index) == unit for index in mask.nonzero().tolist())
        back = granularity.pool("w", mask.float(), mask)
        assert torch.equal(back.alive, one)
        assert torch.equal(back.scores > 0, one)
        covered += mask
    assert torch.equal(covered, torch.ones_like(covered))


@st.composite
def inputs(draw, shape=None):
    shape = draw(st.sampled_from(SHAPES)) if shape is None else shape
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    scores = torch.randn(shape, generator=generator).to(draw(st.sampled_from([torch.float32, torch.float64])))
    scores = draw(st.sampled_from([scores, scores.abs(), (scores * 2).round().long(), scores.half()]))
    alive = torch.rand(shape, generator=generator) < draw(st.sampled_from([0.1, 0.5, 0.9]))
    return scores, draw(st.sampled_from([None, alive, torch.zeros_like(alive)]))


@given(inputs(), st.tuples(st.integers(1, 4), st.integers(1, 5)), st.sampled_from(POOLINGS))
def test_blocks_pool_as_the_loop_does(case, block, pooling):
    scores, alive = case
    assert_pooled(Blocks(block, pooling), scores, alive, block_of(scores.shape, block))


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("dims", ALL_DIMS)
@pytest.mark.parametrize("dead", [False, True])
def test_vectors_pool_as_the_loop_does(dims, pooling, dead):
    generator = torch.Generator().manual_seed(3)
    scores = torch.randn(3, 2, 2, 4, generator=generator)
    alive = torch.rand(3, 2, 2, 4, generator=generator) < 0.3 if dead else None
    assert_pooled(Vectors(dims, pooling), scores, alive, vector_of(dims))


@given(inputs(), st.sampled_from(POOLINGS), st.data())
def test_vectors_pool_every_shape_and_dtype(case, pooling, data):
    scores, alive = case
    dims = data.draw(st.sampled_from([d for d in ALL_DIMS if d[-1] < scores.dim()]))
    assert_pooled(Vectors(dims, pooling), scores, alive, vector_of(dims))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("block", [(1, 1), (2, 2), (3, 4), (4, 1), (1, 32), (100, 100)])
def test_blocks_divide_every_tensor(shape, block):
    assert_partition(Blocks(block), shape, block_of(shape, block))


@pytest.mark.parametrize("dims", ALL_DIMS)
def test_vectors_divide_every_tensor(dims):
    assert_partition(Vectors(dims), (3, 2, 1, 2), vector_of(dims))


def test_weights_are_their_own_units():
    scores, alive = torch.randn(3, 4), torch.rand(3, 4) < 0.5
    units = Weights().pool("w", scores, alive)
    assert torch.equal(units.scores, scores)
    assert units.live == int(alive.sum())
    assert torch.equal(Weights().expand(alive, scores.shape), alive)


def test_the_order_of_dims_and_a_list_from_a_configuration_do_not_matter():
    assert Vectors((1, 0)) == Vectors((0, 1)) == Vectors([0, 1])
    assert Vectors(1) == Vectors((1,))
    assert Blocks([2, 3]) == Blocks((2, 3))


@pytest.mark.parametrize("granularity", [Blocks((1, 4)), Vectors(0)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_accumulated_in_float32(granularity, dtype):
    """4 · 40,000 overflows float16; 256 + 1 + 1 + 1 is 256 in bfloat16, had it been added up there."""
    large = torch.tensor([[40_000.0] * 4, [256.0, 1.0, 1.0, 1.0]]).to(dtype)
    units = granularity.pool("w", large, None).scores.view(-1)
    assert units.dtype == torch.float32
    assert units.tolist() == [4 * float(large[0, 0]), 259.0]


@pytest.mark.parametrize("granularity", [Blocks((1, 2), "l2"), Vectors(0, "l2")])
@pytest.mark.parametrize("scale", [1e-30, 1e-25, 1.0, 1e25, 1e37])
def test_l2_neither_vanishes_nor_overflows(granularity, scale):
    """Squares leave float32 long before the scores do; all units would tie, silently."""
    scores = torch.tensor([[1.0, 1.0], [3.0, 4.0], [2.0, 2.0]]) * scale
    masks = prune({"w": scores}, 1 / 3, granularity)
    assert masks["w"].tolist() == [[False, False], [True, True], [False, False]]
    assert granularity.pool("w", scores, None).scores.view(-1)[1] == pytest.approx(5.0 * scale, rel=1e-5)


@pytest.mark.parametrize("granularity", [Blocks((1, 2), "l2"), Vectors(0, "l2"), Vectors((0, 1), "l2")])
def test_l2_of_scores_below_zero_is_refused(granularity):
    """It would rank -3 above 1: an inverted scorer would keep what the scorer keeps."""
    with pytest.raises(GranularityError, match=r"head\.weight: .*sum, mean or max") as caught:
        prune({"head.weight": torch.tensor([[-3.0, 1.0], [2.0, 1.0]])}, 0.5, granularity)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("granularity", [Blocks((1, 2)), Vectors(0)])
def test_a_pooled_score_that_overflows_is_an_error(granularity):
    scores = torch.tensor([[1.0, 1.0], [3e38, 3e38], [2e38, 3e38]])
    with pytest.raises(ScoreError, match=r"head\.weight") as caught:
        prune({"head.weight": scores}, 1 / 3, granularity)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_unit_of_one_weight_pools_alike_in_every_granularity(pooling):
    scores = torch.tensor([[-3.0, 1.0], [2.0, -1.0]])
    scores = scores.abs() if pooling == "l2" else scores
    blocks = Blocks((1, 1), pooling).pool("w", scores, None).scores
    assert torch.equal(Vectors((0, 1), pooling).pool("w", scores, None).scores, blocks)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Blocks((0, 4)), "at least 1"),
        (lambda: Blocks((4,)), "two sides"),
        (lambda: Blocks((4, -1)), "at least 1"),
        (lambda: Blocks((2, 2), "median"), "median"),
        (lambda: Vectors(-1), "-1"),
        (lambda: Vectors(()), "distinct"),
        (lambda: Vectors((1, 1)), "distinct"),
        (lambda: Vectors(0, "average"), "choose one of sum, mean, max, l2"),
    ],
)
def test_impossible_granularities_are_refused(make, reason):
    with pytest.raises(GranularityError, match=reason) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("granularity", "shape"), [(Blocks((2, 2)), (5,)), (Blocks((2, 2)), ()), (Vectors(2), (3, 4)), (Vectors(0), ())]
)
def test_a_tensor_without_such_units_is_named(granularity, shape):
    with pytest.raises(GranularityError, match=r"layer\.bias.*exclude") as caught:
        prune({"layer.bias": torch.ones(shape)}, 0.5, granularity)
    assert "\n" not in str(caught.value)
