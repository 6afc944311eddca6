"""One sweep over the columns of each weight: removed ones are made up for by the columns to their right."""

import warnings
from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from torch import Tensor

from pruning.curvature.approximations import Approximation, approximated, layer_hessian
from pruning.errors import MaskError, ScoreError, ToleranceWarning
from pruning.evidence import Evidence, accumulated
from pruning.masks import Masks
from pruning.recovery import all_or_none, checked
from pruning.selection import top

Choose = Literal["given", "block", "row"] | int

_FEW = 0.05
"""Share of rows that may get worse by a sweep before it is said."""


@torch.no_grad()
def sweep(
    evidence: Evidence,
    masks: Mapping[str, Tensor],
    choose: Choose = "given",
    columns: int = 128,
    hessian: Approximation = layer_hessian,
) -> Masks:
    """Remove weights column by column and let the columns that follow make up for it, in the model; the masks then.

    Frantar & Alistarh 2023 (SparseGPT), algorithm 1. With H⁻¹ = UᵀU, U upper triangular, a removed weight w of column
    j changes the columns k ≥ j of its row by -w U_jk / U_jj: given the columns before them, which stay, these minimise
    the squared change of the layer's outputs. All rows share U, so that a layer of r rows and d columns costs
    O(d³ + r d²) where `pruning.recovery.compensate`, which moves columns on both sides, costs O(r d³).

    Args:
        evidence: the model *before* the removal, with the data that `hessian` needs.
        masks: name → bool tensor for every prunable tensor, True = kept.
        choose: which weights go. `given`: those that `masks` removes. Else they are chosen again by w²/U_jj², from the
            weights as the sweep has left them, when it comes to them. `block`: of each block of `columns` columns the
            same share as `masks` keep of the whole weight, as in the paper. `row`: as many as `masks` remove in each
            row of such a block. A number m: as many as they remove in each m consecutive inputs of a row (N:M), chosen
            when the sweep has come to these. What `evidence.masks` has removed before does not return.
        columns: at least 1, and a multiple of m; columns of a block, which are swept before those to their right move.
        hessian: of the layer, as in `pruning.curvature.layer_hessian`.

    Raises:
        MaskError: the masks do not fit, or `choose` and `columns` do not fit each other or a weight.
        ScoreError: see the approximation; or one that is not of rows.

    Warns:
        DampingWarning: H was singular, so its damping grew.
        ToleranceWarning: in more than a twentieth of the rows of a weight nothing was moved.
    """
    kept = checked(evidence, masks)
    _check_choice(choose, columns)
    found: dict[str, Tensor] = {}
    with all_or_none(evidence.parameters) as put:
        for quadratic in approximated(hessian, evidence):
            factors = quadratic.inverse_factors()
            for name in quadratic.names:
                values, found[name] = _swept(evidence, name, quadratic.hessian, factors, kept[name], choose, columns)
                put(name, values)
                del values
            del quadratic, factors  # their memory is the next ones'
    made = Masks({name: found[name] for name in evidence.parameters})
    made.apply_(evidence.model)
    return made


def _swept(
    evidence: Evidence, name: str, hessian: Tensor, factors: Tensor, kept: Tensor, choose: Choose, columns: int
) -> tuple[Tensor, Tensor]:
    """The values and the mask of one weight after its sweep, of its own shape; H and U are [groups, size, size]."""
    layout, weight = evidence.layouts[name], evidence.parameters[name]
    rows = layout.rows(weight.detach())
    if rows[0].numel() != factors.shape[1]:
        raise ScoreError(f"{name}: a sweep needs the Hessian of its rows: give hessian=layer_hessian")
    if isinstance(choose, int) and rows[0].numel() != rows.shape[1]:
        raise MaskError(f"{name}: m consecutive inputs of a convolution lie apart: choose block, row or given")
    alive = torch.ones_like(weight, dtype=torch.bool) if evidence.masks is None else evidence.masks[name]
    matrices = [
        layout.rows(part).reshape(len(factors), -1, factors.shape[1])
        for part in (accumulated(weight), kept.to(weight.device), alive.to(weight.device))
    ]
    swept = [
        _sweep_rows(factor, values, mask, living, choose, columns)
        for factor, values, mask, living in zip(factors, *matrices, strict=True)
    ]
    values, mask = (torch.stack(parts) for parts in zip(*swept, strict=True))
    removed = matrices[0] * mask
    worse = ~(_rise(values - matrices[0], hessian) <= _rise(removed - matrices[0], hessian))  # also where it is NaN
    values = torch.where(worse[:, :, None], removed, values)
    if int(worse.sum()) > _FEW * worse.numel():
        warnings.warn(
            f"{name}: {int(worse.sum())} of {worse.numel()} rows would have got worse by a sweep than by removal, and "
            "nothing was moved in them: their inputs are too much alike: take compensate, which solves exactly",
            ToleranceWarning,
            stacklevel=4,
        )
    return layout.restored(values, weight.shape), layout.restored(mask, weight.shape)


def _rise(change: Tensor, hessian: Tensor) -> Tensor:
    """δᵀHδ of every row, [groups, rows], of changes [groups, rows, size]."""
    return ((change @ hessian.to(change.dtype)) * change).sum(-1)


def _sweep_rows(
    factor: Tensor, weight: Tensor, kept: Tensor, alive: Tensor, choose: Choose, columns: int
) -> tuple[Tensor, Tensor]:
    """Weights and mask, [rows, columns], after a sweep with U = `factor`. Columns lie in memory as rows meanwhile."""
    upper = factor.to(weight.dtype)
    left = weight.T.contiguous()
    mask = kept.T.contiguous()
    quotas = _shared_out(int(kept.sum()), alive, columns)
    for start in range(0, len(left), columns):
        block = slice(start, start + columns)
        here, corner = left[block], upper[block, block]
        quota = next(quotas)
        window = choose if isinstance(choose, int) else len(here)
        errors = torch.zeros_like(here)
        for number in range(len(here)):
            if choose != "given" and number % window == 0:
                part = slice(number, number + window)
                whole = slice(start + number, min(start + number + window, start + len(here)))
                cost = (here[part] / corner.diagonal()[part, None]).square().masked_fill_(~alive.T[whole], -1.0)
                mask[whole] = _chosen_again(cost.T, mask[whole].T, quota if choose == "block" else None).T
            errors[number] = here[number] / corner[number, number] * ~mask[start + number]
            here[number:].addr_(corner[number, number:], errors[number], alpha=-1.0)
        left[start + columns :].addmm_(upper[block, start + columns :].T, errors, alpha=-1.0)
    return (left * mask).T, mask.T


def _shared_out(kept: int, alive: Tensor, columns: int) -> Iterator[int]:
    """How many of the `kept` weights each block of `columns` columns gets: the same share of what is `alive` there."""
    counts = [int(block.sum()) for block in torch.split(alive, columns, dim=1)]
    total, seen, given = sum(counts), 0, 0
    for count in counts:
        seen += count
        upto = round(kept * seen / total) if total else 0
        yield upto - given
        given = upto


def _chosen_again(cost: Tensor, kept: Tensor, quota: int | None) -> Tensor:
    """Masks, [rows, columns], of the highest `cost`: `quota` of all, or as many in each row as `kept` has there; the
    first of equals.
    """
    if quota is not None:
        return top([cost.flatten()], quota)[0].view(cost.shape)
    counts = kept.sum(1, keepdim=True)
    order = cost.argsort(dim=1, descending=True, stable=True)
    ranks = torch.empty_like(order).scatter_(1, order, torch.arange(cost.shape[1], device=cost.device).expand_as(order))
    return ranks < counts


def _check_choice(choose: Choose, columns: int) -> None:
    if isinstance(columns, bool) or not isinstance(columns, int) or columns < 1:
        raise MaskError(f"columns={columns!r}: give a whole number of at least 1")
    whole = isinstance(choose, int) and not isinstance(choose, bool)
    if choose not in ("given", "block", "row") and not (whole and int(choose) >= 1):
        raise MaskError(f"choose={choose!r}: give given, block, row, or m of N:M")
    if whole and columns % int(choose):
        raise MaskError(f"columns={columns}: give a multiple of choose={choose}, whose windows blocks must not cut")
