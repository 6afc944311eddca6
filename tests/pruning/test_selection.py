"""Exact top-k against a stable sort of everything: dtypes, ties, zeros, pieces, live masks, counts past 2^31."""

import json
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from pruning import allocation as allocation_kinds
from pruning.competition import Group
from pruning.errors import AllocationError, ScoreError
from pruning.granularity import Weights
from pruning.pipeline import prune
from pruning.selection import (
    arrays,
    check_all_finite,
    check_finite,
    count,
    histogram,
    kept_count,
    ordering,
    pieces,
    rows,
    threshold,
    top,
    top_of_rows,
    top_share,
)
from pruning.selection.histogram import Threshold
from pruning.selection.pieces import cut, gather, runs

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "selection.json").read_text())
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (torch.int8, torch.uint8, torch.int32, torch.int64)
# few values, so that ties abound: both zeros, subnormals of every format, neighbours, and both ends of the range
NASTY = (0.0, -0.0, 1.0, -1.0, 1.0 + 2**-23, 1e-45, -1e-45, 6e-8, -6e-8, 5e-324, -5e-324, 3e-39, 6e4, -6e4, 3e38, -3e38)
NASTY64 = (*NASTY, 1e308, -1e308, 1.0 + 2**-52, 1e-310)


# elements of a piece, elements held from pass to pass, and elements ranked without a sample
LIMITS = [(1 << 17, 1 << 22, 1 << 13), (1 << 17, 1 << 22, 0), (1 << 17, 0, 0), (3, 1 << 22, 0), (3, 0, 0), (1, 0, 0)]


@pytest.fixture
def on_tensors(monkeypatch):
    """Pieces are tensors, as on an accelerator."""
    monkeypatch.setattr(arrays, "native", lambda tensor: tensor)
    monkeypatch.setattr(arrays, "empty", lambda size, like: torch.empty(size, dtype=torch.bool))


@contextmanager
def limits(chunk, held, few):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "CHUNK", chunk)
        patch.setattr(pieces, "HELD", held)
        patch.setattr(threshold, "FEW", few)
        yield


def brute_force(scores, keep, alive=None):
    """Stable sort of all values by (-score, tensor order, flat index)."""
    values = [v for s in scores for v in s.reshape(-1).tolist()]
    live = [True] * len(values) if alive is None else [v for a in alive for v in a.reshape(-1).tolist()]
    order = sorted((p for p in range(len(values)) if live[p]), key=lambda p: (-values[p], p))
    chosen = set(order[:keep])
    flat = torch.tensor([p in chosen for p in range(len(values))], dtype=torch.bool)
    parts = flat.split([s.numel() for s in scores])
    return [part.view(s.shape) for part, s in zip(parts, scores, strict=True)]


def assert_same(found, expected):
    for mask, right in zip(found, expected, strict=True):
        assert mask.dtype == torch.bool
        assert mask.shape == right.shape
        assert torch.equal(mask, right)


def to_tensor(values, dtype, shape=(-1,)):
    if dtype.is_floating_point:
        largest = torch.finfo(dtype).max
        values = [max(-largest, min(largest, v)) for v in values]
    tensor = torch.tensor(values, dtype=torch.float64 if dtype.is_floating_point else torch.int64)
    return tensor.to(dtype).reshape(shape)


@st.composite
def tensors(draw, dtype=None):
    dtype = draw(st.sampled_from(FLOATS + INTEGERS)) if dtype is None else dtype
    shape = draw(st.sampled_from([(), (1,), (0,), (7,), (3, 4), (2, 3, 2), (5, 1), (2, 2, 3, 1)]))
    size = torch.Size(shape).numel()
    if dtype.is_floating_point:
        value = st.sampled_from(NASTY64 if dtype == torch.float64 else NASTY)
        value = value | st.floats(-4, 4, width=32)
    else:
        value = st.integers(0, 3) | st.integers(0, 127)
    tensor = to_tensor(draw(st.lists(value, min_size=size, max_size=size)), dtype, shape)
    return tensor.mT if tensor.dim() == 2 and draw(st.booleans()) else tensor  # not contiguous


@st.composite
def problems(draw):
    scores = draw(st.lists(tensors(), min_size=1, max_size=4))
    live = [st.lists(st.booleans(), min_size=s.numel(), max_size=s.numel()) for s in scores]
    alive = draw(st.none() | st.tuples(*live))
    if alive is not None:
        alive = [torch.tensor(a, dtype=torch.bool).view(s.shape) for a, s in zip(alive, scores, strict=True)]
    return scores, alive


@given(problems(), st.sampled_from(LIMITS))
def test_top_equals_a_stable_sort_for_every_count(problem, sizes):
    scores, alive = problem
    before = [s.clone() for s in scores]
    total = sum(s.numel() for s in scores) if alive is None else sum(int(a.sum()) for a in alive)
    with limits(*sizes):
        for keep in {0, 1, 2, total // 3, total // 2, total - 1, total} & set(range(total + 1)):
            assert_same(top(scores, keep, alive), brute_force(scores, keep, alive))
    assert all(torch.equal(s, b) for s, b in zip(scores, before, strict=True))


@pytest.mark.parametrize("sizes", LIMITS)
@pytest.mark.parametrize("dtype", FLOATS + INTEGERS)
def test_top_for_every_count_of_one_tie_ridden_set(dtype, sizes):
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(0, 4, (24,), generator=generator)
    scores = [values[:10].to(dtype).view(2, 5), values[10:].to(dtype)]
    with limits(*sizes):
        for keep in range(25):
            masks = top(scores, keep)
            assert sum(int(m.sum()) for m in masks) == keep
            assert_same(masks, brute_force(scores, keep))


@pytest.mark.parametrize("sizes", LIMITS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_both_zeros_are_one_value(dtype, sizes):
    scores = [torch.tensor([-0.0, 0.0, -1.0, -0.0], dtype=dtype), torch.tensor([0.0, -0.0, 2.0], dtype=dtype)]
    with limits(*sizes):
        for keep in range(8):
            assert_same(top(scores, keep), brute_force(scores, keep))
        assert top(scores, 2)[0].tolist() == [True, False, False, False]


@pytest.mark.parametrize("sizes", LIMITS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_neighbouring_floats_and_subnormals_are_told_apart(dtype, sizes):
    bits = torch.int16 if dtype.itemsize == 2 else torch.int32 if dtype == torch.float32 else torch.int64
    one = torch.tensor(1.0, dtype=dtype).view(bits)
    smallest = torch.arange(6, dtype=bits).view(dtype)  # 0 and the five smallest subnormals
    near_one = (one + torch.arange(-2, 3, dtype=bits)).view(dtype)
    scores = [torch.cat([smallest, near_one, -smallest, -near_one])]
    with limits(*sizes):
        for keep in range(23):
            assert_same(top(scores, keep), brute_force(scores, keep))


@pytest.mark.parametrize("sizes", LIMITS)
def test_mixed_dtypes_are_compared_without_rounding(sizes):
    fine = torch.tensor([1.0 + 2**-40, 1.0], dtype=torch.float64)
    coarse = torch.tensor([1.0, 1.0 + 2**-23], dtype=torch.float32)
    half = torch.tensor([1.0, 2.0], dtype=torch.float16)
    whole = torch.tensor([1, 2])
    with limits(*sizes):
        for keep in range(9):
            assert_same(top([fine, coarse, half, whole], keep), brute_force([fine, coarse, half, whole], keep))
    with limits(*sizes):  # torch would promote these to float32
        assert top([torch.tensor([2**24, 2**24 + 1]), coarse], 1)[0].tolist() == [False, True]
    close = torch.tensor([2**53 - 1, 2**53 - 2, 2**53 - 3])
    assert top([close], 1)[0].tolist() == [True, False, False]


@pytest.mark.parametrize("extra", [-1, 0, 1, 77])
@pytest.mark.parametrize("with_alive", [False, True])
def test_tensors_larger_than_a_piece(extra, with_alive):
    size = 2 * pieces.CHUNK + extra
    generator = torch.Generator().manual_seed(extra + 9)
    scores = [torch.randint(0, 5, (size,), generator=generator).float(), torch.full((3, 5), 2.0)]
    alive = [torch.rand(s.shape, generator=generator) < 0.5 for s in scores] if with_alive else None
    flat = torch.cat([s.view(-1) for s in scores])
    if alive is not None:
        flat = flat.masked_fill(~torch.cat([a.view(-1) for a in alive]), -torch.inf)
    order = flat.sort(descending=True, stable=True).indices
    candidates = int((flat > -torch.inf).sum())
    for keep in (1, pieces.CHUNK // 2, candidates // 2, candidates - 1):
        expected = torch.zeros(size + 15, dtype=torch.bool)
        expected[order[:keep]] = True
        assert torch.equal(torch.cat([m.view(-1) for m in top(scores, keep, alive)]), expected)


def test_more_than_two_to_the_24_elements_are_exact():
    """float32 can count only to 2^24, and torch.quantile refuses here; the ties lie across the very end."""
    size = (1 << 24) + 3
    scores = torch.ones(size)
    scores[::1024] = 2.0
    above = -(-size // 1024)
    for dropped in (1, 2):
        (mask,) = top([scores], size - dropped)
        assert (~mask).nonzero().view(-1).tolist() == list(range(size - dropped, size))
    (mask,) = top([scores], above + 1)
    assert int(mask.sum()) == above + 1
    assert bool(mask[::1024].all())
    assert bool(mask[1])  # the one tie that stays is the first
    assert threshold.kth_largest(runs([scores]), size - 1, size) == Threshold(1.0, size - 1 - above)
    assert histogram.kth_largest(runs([scores]), size - 1) == Threshold(1.0, size - 1 - above)
    assert kept_count(0.9, size) == round(0.9 * size)


def test_counts_beyond_two_to_the_31(monkeypatch):
    """By construction: every histogram is scaled as if 2^22 shards of this kind had been added up."""
    shards = 1 << 22
    scores = runs([torch.arange(3000.0)])
    true_counts = histogram._counts
    monkeypatch.setattr(histogram, "_counts", lambda *args: true_counts(*args) * shards)
    total = 3000 * shards
    assert total > 1 << 33
    for keep in (1, shards, shards + 1, (1 << 31) + 5, (1 << 32) + 7, total - 1, total):
        rank = (keep - 1) // shards  # so many larger values lie wholly above
        ties = keep - rank * shards
        assert histogram.kth_largest(scores, keep) == Threshold(2999.0 - rank, None if ties == shards else ties)


def test_histograms_are_64_bit_and_add_up_over_tensors():
    (run,) = runs([torch.zeros(1000)] * 50)
    counts = histogram._counts(run, torch.float32, -(1 << 31), 32)
    assert counts.dtype == torch.int64
    assert int(counts.sum()) == int(counts.max()) == 50_000
    assert kept_count(0.5, (1 << 33) + 2) == (1 << 32) + 1


@given(
    st.integers(1, 5), st.integers(1, 9), st.integers(0, 10), st.sampled_from(FLOATS + INTEGERS), st.data(),
    st.sampled_from([1, 8, 1 << 17]), st.sampled_from([0, 8]),
)  # fmt: skip
def test_top_of_rows_equals_a_stable_sort_of_each_row(number, length, keep, dtype, data, chunk, short):
    value = st.sampled_from((0.0, -0.0, 1.0, 2.0, -1.0, 6e-8)) if dtype.is_floating_point else st.integers(0, 2)
    size = number * length
    scores = to_tensor(data.draw(st.lists(value, min_size=size, max_size=size)), dtype, (number, length))
    live = data.draw(st.none() | st.lists(st.booleans(), min_size=size, max_size=size))
    alive = None if live is None else torch.tensor(live).view(number, length)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "CHUNK", chunk)
        patch.setattr(rows, "SHORT", short)
        found = top_of_rows(scores, keep, alive)
    for row in range(number):
        expected = brute_force([scores[row]], keep, None if alive is None else [alive[row]])
        assert_same([found[row]], expected)


def test_long_rows_keep_their_ties_in_order():
    """Long enough for the vectorised sorts, which need not be stable."""
    scores = torch.randint(0, 3, (3, 5000), generator=torch.Generator().manual_seed(1)).float()
    scores[scores == 0] = -0.0
    scores[:, ::7] *= -1  # zeros of both signs, and negative values
    found = top_of_rows(scores, 2500)
    for row in range(3):
        assert_same([found[row]], brute_force([scores[row]], 2500))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_scores_that_cannot_be_ranked_are_named(dtype, value):
    bad = torch.zeros(4, 5, dtype=dtype)
    bad[2, 3] = value
    with pytest.raises(ScoreError, match=r"encoder\.weight.*1 of 20") as caught:
        check_finite("encoder.weight", bad)
    assert "\n" not in str(caught.value)
    with pytest.raises(ScoreError, match=r"encoder\.weight"):
        prune({"fine": torch.zeros(3), "encoder.weight": bad}, 0.5)
    check_finite("fine", torch.zeros(0, dtype=dtype))
    check_finite("integers", torch.ones(3, dtype=torch.int64))


@pytest.mark.parametrize("keep", [-1, 7])
def test_impossible_counts_are_refused(keep):
    with pytest.raises(AllocationError, match=str(keep)) as caught:
        top([torch.zeros(6)], keep)
    assert "\n" not in str(caught.value)
    with pytest.raises(AllocationError, match="3 of 2"):
        top([torch.zeros(3)], 3, [torch.tensor([True, False, True])])


def test_a_share_becomes_a_count_by_half_even_rounding():
    assert [kept_count(0.5, n) for n in (1, 3, 5, 7)] == [0, 2, 2, 4]
    assert kept_count(0.25, 22) == 6  # 5.5
    assert kept_count(1 - 0.9, 1000) == 100  # int() gives 99
    assert kept_count(1 - 0.8, 10) == 2  # int() gives 1
    assert kept_count(0.29, 100) == 29  # 0.29 * 100 is 28.999…
    for tenth in (7, 8, 9):
        for total in (10, 100, 1000, 10**6, 10**9):
            assert kept_count(tenth / 10, total) == tenth * total // 10
            assert kept_count(1 - tenth / 10, total) == total - tenth * total // 10
    assert kept_count(1.0, (1 << 40) + 1) == (1 << 40) + 1


@given(st.integers(1, 10**7), st.data())
@example(235200, None)
def test_kept_over_total_gives_kept_back(total, data):
    kept = 120422 if data is None else data.draw(st.integers(0, total))
    assert kept_count(kept / total, total) == kept


CASES = {
    "global 0.1": (0.1, "Global"), "global 0.25": (0.25, "Global"), "global 0.5": (0.5, "Global"),
    "global 0.75": (0.75, "Global"), "global 1.0": (1.0, "Global"),
    "uniform 0.5": (0.5, "Uniform"), "per row 0.5": (0.5, "PerRow"),
    "2 of every 4 along a row; a shorter last group of m keeps round_half_even(m/2)": (None, "NofM"),
    "global 0.25 within global 0.5 of the negated scores": (0.25, "Global"),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: case["case"][:30])
def test_reference_masks(case, dtype):
    scores = {name: torch.tensor(values, dtype=dtype) for name, values in VECTORS["scores"].items()}
    density, kind = CASES[case["case"]]
    allocation = allocation_kinds.NofM(2, 4) if kind == "NofM" else getattr(allocation_kinds, kind)()
    within = prune({n: -s for n, s in scores.items()}, 0.5) if "within" in case["case"] else None
    masks = prune(scores, density, allocation=allocation, within=within)
    assert {name: mask.tolist() for name, mask in masks.items()} == case["masks"]
    assert sum(int(mask.sum()) for mask in masks.values()) == case["kept"]


def test_every_reference_case_is_run():
    assert {case["case"] for case in VECTORS["cases"]} == set(CASES)


@given(problems(), st.sampled_from(LIMITS[1:]), st.data())
def test_any_bracket_at_all_gives_the_same_answer(problem, sizes, data):
    """Whether it holds the k-th largest, between or at its ends, or leads astray."""
    scores, alive = problem
    candidates = sum(s.numel() for s in scores) if alive is None else sum(int(a.sum()) for a in alive)
    keep = data.draw(st.integers(0, candidates))
    values = [float(v) for s in scores for v in s.reshape(-1).tolist()] + [-torch.inf, torch.inf, 0.5]
    ends = sorted(data.draw(st.tuples(st.sampled_from(values), st.sampled_from(values))))
    with limits(*sizes), pytest.MonkeyPatch.context() as patch:
        patch.setattr(threshold, "_bracket", lambda *_: ends)
        found = top(scores, keep, alive)
    assert_same(found, brute_force(scores, keep, alive))


@pytest.mark.parametrize("kind", ["normal", "ties", "sorted", "periodic", "one value", "wide"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
@pytest.mark.parametrize("masked", [False, True])
def test_the_bracket_of_a_real_sample(monkeypatch, kind, dtype, masked):
    monkeypatch.setattr(threshold, "FEW", 0)
    monkeypatch.setattr(threshold, "SAMPLE", 1 << 10)
    monkeypatch.setattr(pieces, "CHUNK", 1 << 12)
    monkeypatch.setattr(pieces, "HELD", 0)
    monkeypatch.setattr(histogram, "kth_largest", None)  # the bracket holds, whatever the values
    generator = torch.Generator().manual_seed(0)
    size = 40_000
    values = {
        "normal": torch.randn(size, generator=generator),
        "ties": torch.randint(5, (size,), generator=generator).float(),
        "sorted": torch.arange(size).float() / size,
        "periodic": (torch.arange(size) % 39 == 0).float() + torch.rand(size, generator=generator) / 9,
        "one value": torch.ones(size),
        "wide": torch.randn(size, generator=generator).mul(4).exp(),
    }[kind].to(dtype)
    scores = [values[:30_000].view(300, 100), values[30_000:]]
    alive = [torch.rand(s.shape, generator=generator) < 0.3 for s in scores] if masked else None
    live = size if alive is None else sum(int(a.sum()) for a in alive)
    for keep in (1, 2, live // 1000, live // 10, live // 2, live - 7, live - 1):
        assert_same(top(scores, keep, alive), brute_force(scores, keep, alive))


@pytest.mark.parametrize("bracket", [(2.0, 5.5), (2.0, 8.0), (3.0, 3.0), (-9.0, 9.5), (4.5, 9.0)])
def test_what_is_dead_neither_counts_above_a_bracket_nor_within(monkeypatch, bracket):
    monkeypatch.setattr(threshold, "FEW", 0)
    monkeypatch.setattr(threshold, "_bracket", lambda *_: bracket)
    scores = [torch.tensor([9.0, 5.0, 4.0, 3.0, 3.0, 2.0, 1.0])]
    alive = [torch.tensor([False, True, True, False, True, True, True])]
    for keep in range(1, 5):
        assert_same(top(scores, keep, alive), brute_force(scores, keep, alive))


@pytest.mark.parametrize("sizes", LIMITS[:5])
@pytest.mark.usefixtures("on_tensors")
def test_tensors_are_selected_from_as_arrays_are(sizes):
    generator = torch.Generator().manual_seed(0)
    scores = [torch.randint(-2, 3, shape, generator=generator) / 2 for shape in ((4, 5), (3,), (2, 2, 2), (7, 8))]
    scores[1] = scores[1].double()
    alive = [torch.rand(s.shape, generator=generator) < 0.6 for s in scores]
    assert check_all_finite(dict(zip("abcd", scores, strict=True))) is None
    with limits(*sizes):
        for live in (None, alive):
            for keep in (1, 7, 20, 33, sum(int(a.sum()) for a in alive)):
                assert_same(top(scores, keep, live), brute_force(scores, keep, live))
    for short in (0, 8):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rows, "SHORT", short)
            for keep in range(9):
                found = top_of_rows(scores[3], keep, alive[3])
                for row in range(7):
                    assert_same([found[row]], brute_force([scores[3][row]], keep, [alive[3][row]]))


@given(problems(), st.sampled_from([1, 3, 5, 12, 1 << 17]))
def test_runs_read_all_elements_in_order(problem, chunk):
    """Small neighbours together, each piece no longer than a piece; and a mask comes back in the tensors' shapes."""
    scores, alive = problem
    with limits(chunk, 0, 0):
        found = runs(scores, alive)
        read = [torch.from_numpy(piece) for run in found for piece in run]
        assert all(0 < len(piece) <= chunk for piece in read)
        for one, other in pairwise(found):
            assert one.size + other.scores[0].numel() > chunk  # or it would have been gathered with them
        assert all(len(run.scores) == 1 or run.size <= chunk for run in found)
        assert (0 if alive is None else count(alive)) == sum(int(a.sum()) for a in alive or ())
    flat = torch.cat([s.reshape(-1).double() for s in scores])
    if alive is not None:
        flat[~torch.cat([a.reshape(-1) for a in alive])] = torch.nan
    together = torch.cat([*read, torch.zeros(0)]).double()
    assert torch.equal(together.nan_to_num(99.0), flat.nan_to_num(99.0))
    masks = cut((gather(scores) > 0).numpy(), scores)
    assert_same(masks, [s > 0 for s in scores])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("dead", [np.nan, -np.inf, 0.0])
def test_what_is_dead_reads_as_something_else(dtype, dead):
    values = np.array([[1.5, -0.0, np.nan], [np.inf, 5e-324, -2.0]], dtype)
    for bits in range(64):
        alive = np.array([bool(bits >> i & 1) for i in range(6)]).reshape(2, 3)
        expected = np.where(alive, values, dtype(dead))
        found = arrays.only(values, alive, dead)
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(np.signbit(found[alive]), np.signbit(expected[alive]))


def test_masks_share_no_more_memory_than_a_piece():
    scores = [torch.rand(3, 5) for _ in range(20)] + [torch.rand(2, 50)] + [torch.rand(()) for _ in range(3)]
    with limits(64, 0, 0):
        masks = top(scores, 60)
    assert all(mask.untyped_storage().nbytes() <= max(64, mask.numel()) for mask in masks)
    before = [mask.clone() for mask in masks]
    for position, mask in enumerate(masks):
        mask.logical_not_()
        assert_same(masks[position + 1 :], before[position + 1 :])


def test_what_is_large_is_neither_gathered_nor_held():
    scores = [torch.rand(40), torch.rand(40).half(), torch.rand(7), torch.rand(7)]
    with limits(64, 93, 0):
        found = runs(scores)
        assert [run.size for run in found] == [40, 54]
        assert all(run.held is None for run in found)
        assert runs(scores[:1])[0].held[0].ctypes.data == scores[0].data_ptr()
    with limits(64, 94, 0):
        assert all(run.held is not None for run in runs(scores))


def test_a_bracket_that_catches_too_much_is_given_up():
    with limits(64, 0, 0):
        found = runs([torch.rand(400)])
        assert threshold._within(found, 200, 400, -torch.inf, torch.inf) is None
        assert threshold._within(found, 200, 400, 0.45, 0.55) is not None


@pytest.mark.parametrize("length", [2, 3, 5, 10, 49, 64, 768, 3072])
def test_a_sample_sees_every_column(length):
    """Scores often have the period of a row, as each input of a layer has a scale of its own."""
    for step in (20, 64, 210):
        values = np.tile(np.arange(length, dtype=np.float32), 2 * step)
        sample = threshold._sample(np.array_split(values, 7), step)
        assert len(sample) * step == pytest.approx(values.size, rel=0.2)
        assert len(set(sample.tolist())) == length


@given(problems(), st.floats(0.001, 1.0), st.sampled_from(LIMITS))
def test_all_weights_in_free_competition_are_chosen_as_by_groups_of_units(problem, density, sizes):
    scores = {str(i): s for i, s in enumerate(problem[0]) if s.numel()}
    if not scores:
        return
    with limits(*sizes):
        found = prune(scores, density)
        everything = {name: torch.ones_like(s, dtype=torch.bool) for name, s in scores.items()}
        assert prune(scores, density, within=everything) == found
    keep = kept_count(density, found.total)
    assert list(found) == list(scores)
    assert_same(found.values(), brute_force(list(scores.values()), keep))
    assert_same(top_share(scores, density).values(), found.values())


def test_a_share_is_a_float64_whatever_number_it_came_as():
    """float32 counts only to 2^24."""
    scores = {"whole": torch.arange(2**24 + 2.0)}
    for density in (np.float32(1 - 2**-24), np.float16(0.5)):
        assert prune(scores, density).kept == kept_count(float(density), 2**24 + 2)


@pytest.mark.parametrize("chunk", [1, 4, 1 << 17])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_one_score_among_many_tensors_that_cannot_be_ranked_is_named(chunk, value):
    scores = {f"layer{i}": torch.rand(2, 3) for i in range(9)} | {"whole": torch.ones(3, dtype=torch.int64)}
    scores["layer7"][1, 1] = value
    within = {name: torch.ones_like(score, dtype=torch.bool) for name, score in scores.items()}
    dead = scores | {"layer2": scores["layer2"].clone().fill_(value)}
    without = within | {"layer2": torch.zeros_like(within["layer2"])}
    with limits(chunk, 0, 0):
        for call in (
            lambda: prune(scores, 0.5),
            lambda: check_all_finite(scores, within),
            lambda: prune(scores, 0.5, within=within),
            lambda: prune(dead, 0.3, within=without),
            lambda: prune(scores, 0.5, allocation=allocation_kinds.Uniform()),
        ):
            with pytest.raises(ScoreError, match=r"layer7: 1 of 6"):
                call()
        within["layer7"][1, 1] = False
        check_all_finite(scores, within)
        assert not prune(scores, 0.5, within=within)["layer7"][1, 1]


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), min_size=1, max_size=5), st.data())
def test_what_a_tensor_keeps_at_least_is_reserved_in_each_and_the_rest_competes(values, data):
    scores = {str(i): torch.tensor(v).float() for i, v in enumerate(values)}
    alive = {
        n: torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(s), max_size=len(s)))) for n, s in scores.items()
    }
    within = data.draw(st.sampled_from([None, alive]))
    live = {n: torch.ones_like(s, dtype=torch.bool) if within is None else alive[n] for n, s in scores.items()}
    minimum = data.draw(st.integers(0, 3))
    least = {n: min(minimum, int(live[n].sum())) for n in scores}
    keep = data.draw(st.integers(sum(least.values()), sum(int(a.sum()) for a in live.values())))
    units = Weights().gather(scores, within).units
    found = Group(tuple(scores), keep, minimum).select(units)
    reserved = {n: brute_force([scores[n]], least[n], [live[n]])[0] for n in scores}
    rest = [live[n] & ~reserved[n] for n in scores]
    more = brute_force(list(scores.values()), keep - sum(least.values()), rest)
    assert_same(found.values(), [r | m for r, m in zip(reserved.values(), more, strict=True)])


@pytest.mark.parametrize("score", [[2**60 + 1, 2**60, 0], [2**63 + 5, 1, 0], [2**53 + 1, 2**53, 0], [2**64 - 1, 1, 0]])
def test_unsigned_integers_that_are_not_told_apart_are_refused(score):
    with pytest.raises(ScoreError, match=r"odd: .*2\^53"):
        prune({"fine": torch.ones(2), "odd": torch.tensor(score, dtype=torch.uint64)}, 0.5)
    assert prune({"odd": torch.tensor([2**53, 2**53 - 1], dtype=torch.uint64)}, 0.5)["odd"].tolist() == [True, False]


def magnitudes(values):
    found = list(ordering.descending_magnitudes(values))
    return tuple(torch.cat(parts) for parts in zip(*found, strict=True))


@given(
    st.lists(st.sampled_from((*NASTY, 0.5, 2.0, float("inf"), float("nan"))) | st.floats(-4, 4, width=32), max_size=60),
    st.sampled_from(FLOATS),
    st.sampled_from([(0, 1), (0, 7), (1 << 13, 1 << 15)]),
)
def test_magnitudes_are_ordered_as_by_a_stable_sort(values, dtype, sizes):
    values = torch.tensor(values, dtype=torch.float64).to(dtype)
    expected, places = values.abs().sort(descending=True, stable=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ordering, "FEW", sizes[0])
        patch.setattr(ordering, "PIECE", sizes[1])
        ordered, positions = magnitudes(values)
    assert ordered.dtype == dtype
    assert torch.equal(positions, places)
    assert torch.equal(ordered.nan_to_num(), expected.nan_to_num())


@pytest.mark.parametrize("scale", [1.0, 1e-30, 0.0])
def test_many_magnitudes_are_ordered_as_by_a_stable_sort(scale):
    values = torch.randn(99_999, generator=torch.Generator().manual_seed(0)).mul(scale)
    values[::3] = values[1::3].sort().values  # ties, and rows in order
    values = torch.stack([values, -values], 1).reshape(-1)[::2]  # not contiguous
    before = values.clone()
    ordered, positions = magnitudes(values)
    expected, places = values.abs().sort(descending=True, stable=True)
    assert torch.equal(ordered, expected)
    assert torch.equal(positions, places)
    assert torch.equal(values, before)
