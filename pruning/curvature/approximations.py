"""Three approximations of the Hessian that can be inverted: whole, by layer, by block."""

from collections.abc import Callable

import torch
from torch import Tensor

from pruning.curvature.calls import Use, forward_uses
from pruning.curvature.cotangents import Curvature, check_curved, cotangents
from pruning.curvature.examples import example_gradients
from pruning.curvature.linear_maps import batched, column_sums, columns
from pruning.curvature.quadratic import Quadratic
from pruning.errors import ScoreError
from pruning.evidence import Evidence, accumulated, check_real
from pruning.processes import parallel, sum_, sum_of

Approximation = Callable[[Evidence], list[Quadratic]]

LARGEST = 10_000
"""Weights of which the whole Hessian is made at most: 0.8 GB."""

_ELEMENTS = 2**23
"""How many numbers the inputs of a chunk of examples may hold."""


def full_hessian(
    evidence: Evidence,
    curvature: Curvature = "gauss_newton",
    damping: float = 1e-3,
    relative: bool = True,
    samples: int | None = None,
    seed: int = 0,
) -> list[Quadratic]:
    """One matrix of all weights together, for small networks. Hassibi & Stork 1993, equation 7.

    Args:
        curvature: `gauss_newton`, exact; `empirical_fisher`; `true_fisher`. Means over examples.
        damping, relative: see `Quadratic`.
        samples, seed: of `true_fisher`: labels drawn an example; None takes the expectation.

    Returns:
        One quadratic over all tensors, of one row.

    Raises:
        ScoreError: more weights than `LARGEST`, no curvature at all; else see `example_gradients`.
    """
    size = sum(p.numel() for p in evidence.parameters.values())
    if size > LARGEST:
        raise ScoreError(f"full_hessian: {size} weights are more than {LARGEST}: use layer_hessian or block_hessian")
    matrix: Tensor | None = None
    count = 0.0
    for chunk, number in example_gradients(evidence, cotangents(curvature, samples, seed)):
        rows = torch.cat([gradient.flatten(1) for gradient in chunk.values()], 1).double()
        matrix = rows.T @ rows if matrix is None else matrix.addmm_(rows.T, rows)
        count += number
    assert matrix is not None
    sum_(evidence.model, [matrix])
    check_curved([matrix])
    seen = sum_of(evidence.model, count)
    return [Quadratic(tuple(evidence.parameters), matrix[None] / seen, size, damping, relative)]


def block_hessian(
    evidence: Evidence,
    size: int = 64,
    curvature: Curvature = "empirical_fisher",
    damping: float = 1e-2,
    relative: bool = True,
    samples: int | None = None,
    seed: int = 0,
) -> list[Quadratic]:
    """A matrix for every `size` consecutive weights of a tensor. Singh & Alistarh 2020 (WoodFisher), section 3.

    Args:
        size: at least 1.
        curvature, damping, relative, samples, seed: as in `full_hessian`.

    Returns:
        One quadratic a tensor, with a row and a matrix a block.

    Raises:
        ScoreError: no curvature at all; else see `example_gradients`.
    """
    if size < 1:
        raise ScoreError(f"block_hessian: size={size}: give at least 1")
    blocks = {name: -(-p.numel() // size) for name, p in evidence.parameters.items()}
    sums = {
        name: torch.zeros(blocks[name], size, size, dtype=torch.float64, device=p.device)
        for name, p in evidence.parameters.items()
    }
    count = 0.0
    for chunk, number in example_gradients(evidence, cotangents(curvature, samples, seed)):
        count += number
        for name, gradient in chunk.items():
            flat = gradient.flatten(1).double()
            padded = torch.nn.functional.pad(flat, (0, blocks[name] * size - flat.shape[1]))
            by_block = padded.view(len(flat), blocks[name], size).transpose(0, 1)
            sums[name].baddbmm_(by_block.mT, by_block)
    sum_(evidence.model, sums.values())
    check_curved(sums.values())
    seen = sum_of(evidence.model, count)
    return [
        Quadratic((name,), matrix / seen, evidence.parameters[name].numel(), damping, relative)
        for name, matrix in sums.items()
    ]


def layer_hessian(evidence: Evidence, damping: float = 1e-2, relative: bool = True) -> list[Quadratic]:
    """Σ xxᵀ of the inputs of a layer: the Hessian of the squared change of its outputs, the same for every output.

    The mean over examples, summed over positions and over uses of a tied weight. Modules that read the same input,
    as queries, keys and values do, share one matrix. Dong et al. 2017 (L-OBS); Frantar & Alistarh 2023 (SparseGPT).
    One forward pass of all batches, no gradient.

    Args:
        damping, relative: see `Quadratic`.

    Raises:
        ScoreError: no data, or a weight that no Linear or convolution uses.
    """
    check_real(evidence.parameters, "a Hessian")
    sums: dict[str, Tensor] = {}
    count = 0.0
    for by_name, size in forward_uses(evidence):
        count += size
        sums = _added(sums, by_name)
    if parallel(evidence.model) is not None:  # processes may share other tensors
        sums = {name: sums[name].clone() for name in evidence.parameters}
        sum_(evidence.model, sums.values())
    count = sum_of(evidence.model, count)
    sharing: dict[object, list[str]] = {}
    for name in evidence.parameters:  # rows of one group can share a factor across tensors
        sharing.setdefault(id(sums[name]) if len(sums[name]) == 1 else name, []).append(name)
    return [
        Quadratic(
            tuple(names),
            sums[names[0]] / count,
            sum(evidence.parameters[name].numel() for name in names),
            damping,
            relative,
            evidence.layouts,
        )
        for names in sharing.values()
    ]


def _added(sums: dict[str, Tensor], by_name: dict[str, list[Use]]) -> dict[str, Tensor]:
    """`sums` with what this batch adds; names that have read the same inputs in all batches share one tensor."""
    made: dict[object, Tensor] = {}
    found = dict(sums)
    for name, calls in by_name.items():
        key = (id(sums.get(name)), *(_identity(call) for call in calls))
        if key not in made:
            term = torch.stack([_second_moment(call) for call in calls]).sum(0)
            made[key] = term if name not in sums else sums[name] + term
        found[name] = made[key]
    return found


def _identity(call: Use) -> object:
    """Equal exactly for uses of the same kind over the same memory, which the uses themselves keep from being freed."""
    x, module = call.inputs, call.module
    kind = (type(module).__name__, *(str(getattr(module, key, None)) for key in _GEOMETRY))
    return x.data_ptr(), tuple(x.shape), x.stride(), kind


_GEOMETRY = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")


def _second_moment(call: Use) -> Tensor:
    """Σ over examples and positions of xxᵀ, [groups, inputs of a row, inputs of a row]; float64, as sums are long."""
    x = batched(call.module, accumulated(call.unchanged()))
    if not x.numel():
        groups, size = column_sums(call.module, x).shape
        return x.new_zeros(groups, size, size, dtype=torch.float64)
    total: Tensor | None = None
    patch = columns(call.module, x[:1])[0].numel()
    for part in torch.split(x, max(1, _ELEMENTS // patch)):
        rows = columns(call.module, part).permute(1, 2, 0, 3).flatten(2).double()
        total = rows @ rows.mT if total is None else total.baddbmm_(rows, rows.mT)
    assert total is not None
    return total


def approximated(hessian: Approximation, evidence: Evidence) -> list[Quadratic]:
    """What `hessian` makes of the evidence, if it speaks of exactly its weights. Raises `ScoreError`."""
    if not callable(hessian):
        raise ScoreError("hessian= is no function: give layer_hessian itself, not what it returns")
    found = hessian(evidence)
    named = [name for quadratic in found for name in quadratic.names]
    for name in evidence.parameters:
        if named.count(name) != 1:
            raise ScoreError(f"{name}: is in {named.count(name)} quadratics: an approximation has every tensor once")
    return found
