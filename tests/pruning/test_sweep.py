"""The sweep against its definition: each column's removal made up for, exactly, by the columns to its right."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from pruning import Evidence, Masks, prunable, prune, scorers
from pruning.allocation import NofM, PerRow
from pruning.curvature import block_hessian, layer_hessian
from pruning.errors import MaskError, ScoreError, ToleranceWarning
from pruning.evidence import accumulated
from pruning.recovery import compensate
from pruning.sweep import sweep

DAMPING = 0.01


def layer(rows: int = 5, size: int = 12, seed: int = 0) -> tuple[nn.Module, Evidence, Tensor]:
    """A Linear layer with correlated inputs, its evidence, and its damped Hessian."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(size, rows, bias=False)).double()
    x = torch.randn(64, size, dtype=torch.float64) @ torch.randn(size, size, dtype=torch.float64)
    evidence = Evidence(model, prunable(model), [x[:30], x[30:]], lambda m, b: m(b).sum())
    hessian = x.T @ x / 64
    return model, evidence, hessian + DAMPING * hessian.diagonal().mean() * torch.eye(size, dtype=torch.float64)


def by_definition(weight: Tensor, mask: Tensor, hessian: Tensor) -> Tensor:
    """Column by column: what is removed is fixed at zero, and the rest to its right solved for again."""
    moved = weight.clone()
    for row in range(len(weight)):
        delta = torch.zeros(weight.shape[1], dtype=weight.dtype)
        for column in range(weight.shape[1]):
            if mask[row, column]:
                continue
            delta[column] = -weight[row, column]
            free = slice(column + 1, None)
            fixed = delta[: column + 1]
            if column + 1 < weight.shape[1]:
                delta[free] = torch.linalg.solve(hessian[free, free], -hessian[free, : column + 1] @ fixed)
        moved[row] = (weight[row] + delta) * mask[row]
    return moved


def better(before: Tensor, moved: Tensor, mask: Tensor, undamped: Tensor) -> Tensor:
    """Row by row what changes the outputs less: `moved`, or the removal alone."""
    rise = [((w - before) @ undamped * (w - before)).sum(1) for w in (moved, before * mask)]
    return torch.where((rise[0] <= rise[1])[:, None], moved, before * mask)


def moments(evidence: Evidence) -> Tensor:
    x = torch.cat(list(evidence.batches))
    return x.T @ x / len(x)


def error(evidence: Evidence, before: Tensor) -> float:
    (weight,) = evidence.parameters.values()
    return sum(float((x @ (weight - before).T).square().sum()) for x in evidence.batches)


@pytest.mark.parametrize("columns", [1, 5, 128])
def test_given_masks_are_made_up_for_to_the_right_by_the_definition(columns):
    model, evidence, hessian = layer()
    before = model[0].weight.detach().clone()
    masks = prune(scorers.magnitude(evidence), 0.5)
    found = sweep(evidence, masks, columns=columns)
    assert found == masks
    expected = by_definition(before, masks["0.weight"], hessian)
    expected = better(before, expected, masks["0.weight"], moments(evidence))
    torch.testing.assert_close(model[0].weight.detach(), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("choose", "columns"), [("block", 4), ("block", 128), ("row", 5), ("row", 12), (4, 4), (4, 8), (3, 6)]
)
def test_masks_are_chosen_again_by_the_weights_as_the_sweep_left_them(choose, columns):
    model, evidence, hessian = layer(rows=4)
    before = model[0].weight.detach().clone()
    allocation = NofM(2, 4) if choose == 4 else PerRow()
    masks = prune(scorers.magnitude(evidence), 0.5, allocation=allocation)
    given = masks["0.weight"]
    found = sweep(evidence, masks, choose, columns)["0.weight"]

    mask = torch.ones_like(given)
    factor = torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True)
    windows = range(0, 12, columns)
    for start in windows:
        block = slice(start, min(start + columns, 12))
        step = choose if isinstance(choose, int) else columns
        for window in range(start, block.stop, step):
            now = by_definition(before, mask, hessian)  # with the columns before removed, those to the right moved
            cost = (now / factor.diagonal()).square()
            part = slice(window, min(window + step, 12))
            rows = [slice(0, 4)] if choose == "block" else [slice(r, r + 1) for r in range(4)]
            for row in rows:
                count = int(given[row, part].sum())
                if choose == "block":
                    ends = [round(int(given.sum()) * end / 12) for end in (start, block.stop)]
                    count = ends[1] - ends[0]
                best = cost[row, part].flatten().argsort(descending=True)[:count]
                chosen = torch.zeros_like(cost[row, part], dtype=torch.bool).flatten()
                chosen[best] = True
                mask[row, part] = chosen.view_as(mask[row, part])
    assert torch.equal(found, mask)
    expected = better(before, by_definition(before, mask, hessian), mask, moments(evidence))
    torch.testing.assert_close(model[0].weight.detach(), expected, rtol=1e-8, atol=1e-8)
    assert int(found.sum()) == int(given.sum())


def test_a_sweep_is_better_than_removal_alone_and_nearly_as_good_as_the_exact_solution():
    errors = {}
    for name, remove in {
        "alone": lambda e, m: Masks(m).apply_(e.model),
        "exact": compensate,
        "given": sweep,
        "chosen": lambda e, m: sweep(e, m, "row", 4),
    }.items():
        total = 0.0
        for seed in range(5):
            model, evidence, _ = layer(8, 24, seed)
            before = model[0].weight.detach().clone()
            remove(evidence, prune(scorers.magnitude(evidence), 0.5, allocation=PerRow()))
            total += error(evidence, before)
        errors[name] = total
    assert errors["exact"] < errors["given"] < errors["alone"]
    assert errors["chosen"] < errors["given"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("choose", ["given", "block", "row", 4])
def test_no_row_gets_worse_than_by_removal_alone(choose, dtype):
    """Smoothed noise: neighbours are nearly the same input, and moving columns to the right alone blows up."""
    torch.manual_seed(0)
    x = torch.randn(512, 1, 160)
    for _ in range(2):
        x = torch.nn.functional.avg_pool1d(x, 16, 1)
    x = x[:, 0, :128].to(dtype).contiguous()
    model = nn.Sequential(nn.Linear(128, 16, bias=False)).to(dtype)
    evidence = Evidence(model, prunable(model), [x], lambda m, b: m(b).sum())
    before = model[0].weight.detach().clone()
    allocation = NofM(1, 4) if choose == 4 else PerRow()
    masks = prune(scorers.wanda(evidence), None if choose == 4 else 0.2, allocation=allocation)
    with pytest.warns(ToleranceWarning, match=r"0\.weight: \d+ of 16 rows would have got worse"):
        mask = sweep(evidence, masks, choose, hessian=partial(layer_hessian, damping=1e-4))["0.weight"]
    after = model[0].weight.detach()
    swept, alone = ((x @ (w - before).T).square().sum(0) for w in (after, before * mask))
    assert bool((swept <= alone * (1 + 1e-3)).all())
    assert bool(torch.isfinite(after).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_of_lower_precision_are_swept_in_float32(dtype):
    model, evidence, _ = layer()
    masks = prune(scorers.magnitude(evidence), 0.5)
    lower = nn.Sequential(nn.Linear(12, 5, bias=False)).to(dtype)
    lower[0].weight.data.copy_(model[0].weight)
    batches = [x.to(dtype) for x in evidence.batches]
    sweep(Evidence(lower, prunable(lower), batches, lambda m, b: m(b).sum()), masks)
    sweep(evidence, masks)
    assert lower[0].weight.dtype == dtype
    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(
        lower[0].weight.detach().double(), model[0].weight.detach(), rtol=tolerance, atol=tolerance
    )
    assert bool((accumulated(lower[0].weight)[~masks["0.weight"]] == 0).all())


def test_convolutions_groups_and_tied_inputs_are_swept_as_their_matrices():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.Flatten(), nn.Linear(54, 3)).double()
    x = torch.randn(20, 4, 5, 5, dtype=torch.float64)
    evidence = Evidence(model, prunable(model), [x], lambda m, b: m(b).sum())
    before = model[0].weight.detach().clone()
    masks = prune(scorers.magnitude(evidence), 0.5)
    quadratic = next(layer_hessian(evidence))
    sweep(evidence, masks, columns=7)
    for group in range(2):
        rows = slice(3 * group, 3 * group + 3)
        undamped = quadratic.hessian[group]
        hessian = undamped + DAMPING * undamped.diagonal().mean() * torch.eye(18, dtype=torch.float64)
        old, mask = before[rows].flatten(1), masks["0.weight"][rows].flatten(1)
        expected = better(old, by_definition(old, mask, hessian), mask, undamped)
        torch.testing.assert_close(model[0].weight.detach()[rows].flatten(1), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("choose", ["row", "block"])
def test_what_was_removed_before_stays_away(choose):
    model, evidence, _ = layer()
    first = prune(scorers.magnitude(evidence), 0.5, allocation=PerRow())
    first.apply_(model)
    again = Evidence(model, evidence.parameters, evidence.batches, evidence.loss, first)
    second = sweep(again, prune(scorers.magnitude(again), 0.25, allocation=PerRow(), within=first), choose, 6)
    assert second.density == 0.25
    assert bool((second["0.weight"] <= first["0.weight"]).all())
    assert bool((model[0].weight[~second["0.weight"]] == 0).all())


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"choose": "rows"}, "choose='rows': give"),
        ({"choose": 0}, "choose=0: give"),
        ({"choose": True}, "choose=True: give"),
        ({"columns": 0}, "columns=0: give"),
        ({"choose": 4, "columns": 6}, "columns=6: give a multiple of choose=4"),
    ],
)
def test_choices_that_do_not_fit_are_refused(options, reason):
    _, evidence, _ = layer()
    with pytest.raises(MaskError, match=reason):
        sweep(evidence, prune(scorers.magnitude(evidence), 0.5), **options)


def test_a_hessian_that_is_not_of_rows_is_refused_and_nothing_moves():
    model, evidence, _ = layer()
    evidence = replace(evidence, loss=lambda m, b: m(b).square().sum(1).mean())
    before = model[0].weight.detach().clone()
    with pytest.raises(ScoreError, match=r"0.weight: a sweep needs the Hessian of its rows"):
        sweep(evidence, prune(scorers.magnitude(evidence), 0.5), hessian=block_hessian)
    assert torch.equal(model[0].weight, before)
