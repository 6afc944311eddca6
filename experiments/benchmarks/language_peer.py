"""Wanda and SparseGPT as plain readings of their papers, for a model whose blocks take hidden states first.

Sun et al. 2023, equation 1; Frantar & Alistarh 2023, algorithm 1, in float32, 128 columns a block, damping 0.01.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pruning.sequential import blocks

Linears = dict[str, nn.Linear]


class _Caught(Exception):  # noqa: N818  # no error: the first block is reached
    pass


@torch.no_grad()
def catch(model: nn.Module, text: Sequence[Tensor]) -> list[dict[str, Any]]:
    """The arguments of the first block, batch by batch."""
    found: list[dict[str, Any]] = []

    def stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append(
            {
                "args": args,
                "kwargs": {key: None if key == "past_key_values" else value for key, value in kwargs.items()},
            }
        )
        raise _Caught

    handle = model.get_submodule(blocks(model)[0]).register_forward_pre_hook(stop, with_kwargs=True)
    for batch in text:
        try:
            model(batch, use_cache=False)
        except _Caught:
            continue
    handle.remove()
    return found


@torch.no_grad()
def _block_by_block(
    model: nn.Module, text: Sequence[Tensor], see: Callable[[str, Tensor], None], prune: Callable[[Linears], None]
) -> None:
    """`see` gets what enters each Linear of a block, [tokens, inputs]; then `prune` gets them."""
    calls = catch(model, text)
    states = [call["args"][0] for call in calls]
    for place in blocks(model):
        block = model.get_submodule(place)
        linears = {name: module for name, module in block.named_modules() if isinstance(module, nn.Linear)}

        def hook(_: nn.Module, args: tuple[Tensor, ...], name: str) -> None:
            see(name, args[0].reshape(-1, args[0].shape[-1]))

        handles = [module.register_forward_pre_hook(partial(hook, name=name)) for name, module in linears.items()]
        for state, call in zip(states, calls, strict=True):
            block(state, **call["kwargs"])
        for handle in handles:
            handle.remove()
        prune(linears)
        states = [block(state, **call["kwargs"]) for state, call in zip(states, calls, strict=True)]


def peer_wanda(model: nn.Module, text: Sequence[Tensor], density: float, m: int | None = None) -> None:
    """Of each output the weights of the highest |W|·‖x‖ stay; with `m`, of each m consecutive ones."""
    norms: dict[str, Tensor] = {}

    def see(name: str, x: Tensor) -> None:
        norms[name] = norms.get(name, torch.zeros(x.shape[1])) + x.square().sum(0)

    def prune(linears: Linears) -> None:
        for name, linear in linears.items():
            score = linear.weight.abs() * norms.pop(name).sqrt()
            rows = score if m is None else score.reshape(-1, m)
            lowest = rows.sort(dim=1, stable=True).indices[:, : rows.shape[1] - round(density * rows.shape[1])]
            kept = torch.ones_like(rows, dtype=torch.bool).scatter_(1, lowest, False)
            linear.weight.mul_(kept.view_as(linear.weight))

    _block_by_block(model, text, see, prune)


def peer_sparsegpt(model: nn.Module, text: Sequence[Tensor], density: float, m: int | None = None) -> None:
    """Every Linear swept with the Hessian of its inputs, in float32."""
    hessians: dict[str, Tensor] = {}

    def see(name: str, x: Tensor) -> None:
        hessians[name] = hessians.get(name, torch.zeros(x.shape[1], x.shape[1])) + x.T @ x

    def prune(linears: Linears) -> None:
        for name, linear in linears.items():
            linear.weight.copy_(peer_sweep(linear.weight.clone(), hessians.pop(name), density, m))

    _block_by_block(model, text, see, prune)


@torch.no_grad()
def peer_sweep(weight: Tensor, hessian: Tensor, density: float, m: int | None = None, width: int = 128) -> Tensor:
    """`weight` [rows, columns] after one sweep; algorithm 1."""
    hessian = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(len(hessian))
    upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(hessian)), upper=True)
    columns = weight.shape[1]
    for start in range(0, columns, width):
        stop = min(start + width, columns)
        here, corner = weight[:, start:stop].clone(), upper[start:stop, start:stop]
        errors = torch.zeros_like(here)
        cost = here.square() / corner.diagonal().square()
        if m is None:
            threshold = cost.flatten().sort().values[round((1 - density) * cost.numel()) - 1]
            removed = cost <= threshold
        else:
            removed = torch.zeros_like(here, dtype=torch.bool)
        for column in range(stop - start):
            if m is not None and column % m == 0:
                group = here[:, column : column + m].square() / corner.diagonal()[column : column + m].square()
                lowest = group.topk(m - round(density * m), dim=1, largest=False).indices
                removed.scatter_(1, column + lowest, True)
            before = here[:, column]
            after = before.masked_fill(removed[:, column], 0.0)
            errors[:, column] = (before - after) / corner[column, column]
            here[:, column:] -= errors[:, column : column + 1] @ corner[column : column + 1, column:]
            here[:, column] = after
        weight[:, start:stop] = here
        weight[:, stop:] -= errors @ upper[start:stop, stop:]
    return weight
