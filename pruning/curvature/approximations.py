"""Three approximations of the Hessian that can be inverted: whole, by layer, by block."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from pruning.curvature.calls import Use, empty_use, follow_inputs
from pruning.curvature.cotangents import Curvature, check_curved, cotangents
from pruning.curvature.examples import example_gradients
from pruning.curvature.linear_maps import batched, column_sums, columns, modules_with_columns
from pruning.curvature.quadratic import Quadratic
from pruning.errors import ScoreError
from pruning.evidence import Evidence, accumulated, check_real
from pruning.limits import check_bytes
from pruning.processes import parallel, sum_, sum_of

Approximation = Callable[[Evidence], Iterable[Quadratic]]
"""From the evidence to quadratics of all its weights. It has asked the network all that it needs before it gives the
first, as whoever takes that may change weights."""

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
    needed = 8 * size**2 * sum(blocks.values())  # 512 bytes a weight where size is 64
    fix = "give a smaller size, fewer tensors by include and exclude, or go block by block with pruning.sequential"
    check_bytes(f"block_hessian(size={size})", needed, next(iter(evidence.parameters.values())).device, fix)
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
        Quadratic((name,), matrix.div_(seen), evidence.parameters[name].numel(), damping, relative)
        for name, matrix in sums.items()
    ]


def layer_hessian(
    evidence: Evidence,
    damping: float = 1e-2,
    relative: bool = True,
    precision: Literal["float32", "float64"] = "float64",
) -> Iterator[Quadratic]:
    """Σ xxᵀ of the inputs of a layer: the Hessian of the squared change of its outputs, the same for every output.

    The mean over examples, summed over positions and over uses of a tied weight. Modules that read the same input one
    after the other, as queries, keys and values do, share one matrix. Dong et al. 2017 (L-OBS); Frantar & Alistarh 2023
    (SparseGPT). One forward pass of all batches, no gradient, in which no input is kept; each matrix is freed when the
    next quadratic is asked for.

    Args:
        damping, relative: see `Quadratic`.
        precision: of the sums: `float32` takes half the time and memory, and is that of the papers' own code. See
            `Quadratic` for what is made of them.

    Raises:
        ScoreError: an unknown precision, no data, a weight that no Linear or convolution uses, or matrices larger than
            what memory is free.
    """
    check_real(evidence.parameters, "a Hessian")
    if precision not in ("float32", "float64"):
        raise ScoreError(f"layer_hessian: precision={precision!r}: choose float32 or float64")
    dtype = torch.float32 if precision == "float32" else torch.float64
    _check_moments(evidence, dtype.itemsize)
    moments = _Moments(dtype)
    count = follow_inputs(evidence, moments.add)
    sums = moments.sums
    del moments
    if parallel(evidence.model) is not None:  # processes may share other tensors
        sums = {name: sums[name].clone() for name in evidence.parameters}
        sum_(evidence.model, sums.values())
    count = sum_of(evidence.model, count)
    sharing: dict[object, list[str]] = {}
    for name in evidence.parameters:  # rows of one group can share a factor across tensors
        sharing.setdefault(id(sums[name]) if len(sums[name]) == 1 else name, []).append(name)
    for names in sharing.values():
        matrix = sums[names[0]] / count
        for name in names:
            del sums[name]
        weights = sum(evidence.parameters[name].numel() for name in names)
        yield Quadratic(tuple(names), matrix, weights, damping, relative, evidence.layouts)
        del matrix  # its memory is the next one's


def _check_moments(evidence: Evidence, each: int) -> None:
    """Raise `ScoreError` where the matrices of all layers are larger than what is free, each made for itself."""
    size = 0
    for module, name in modules_with_columns(evidence).items():
        groups, inputs = column_sums(module, empty_use(module).inputs).shape
        size += each * groups * inputs**2
        device = evidence.parameters[name].device
    if size:
        fix = "go block by block with pruning.sequential, or take fewer layers by include and exclude"
        check_bytes("layer_hessian without shared inputs", size, device, fix)


@dataclass
class _Moments:
    """Sums of xxᵀ by names of weights; names that have read the same inputs in all their uses share one tensor.

    Of uses before the last the inputs are gone: only those that follow each other are known to be the same.
    """

    dtype: torch.dtype
    sums: dict[str, Tensor] = field(default_factory=dict)
    last: tuple[object, Use] | None = None  # the identity at its time, and the use, so that its memory stays its own
    made: dict[int | None, tuple[Tensor | None, Tensor]] = field(default_factory=dict)
    """Of the last inputs: the sum before them, by its id, and with them. It is held, so that its id stays its own."""

    def add(self, name: str, use: Use) -> None:
        """Add one use."""
        identity = _identity(use)
        if self.last is None or self.last[0] != identity:
            self.last, self.made = (identity, use), {}
        before = self.sums.get(name)
        key = None if before is None else id(before)
        if key not in self.made:
            moment = _second_moment(use, self.dtype)
            self.made[key] = before, (moment if before is None else moment.add_(before))
        self.sums[name] = self.made[key][1]


def _identity(use: Use) -> object:
    """Equal exactly for uses of the same kind over the same unchanged memory, while the first of them is held."""
    x, module = use.inputs, use.module
    kind = (type(module).__name__, *(str(getattr(module, key, None)) for key in _GEOMETRY))
    return x.data_ptr(), x._version, tuple(x.shape), x.stride(), kind


_GEOMETRY = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")


def _second_moment(call: Use, dtype: torch.dtype) -> Tensor:
    """Σ over examples and positions of xxᵀ, [groups, inputs of a row, inputs of a row], in `dtype`."""
    x = batched(call.module, accumulated(call.inputs))
    if not x.numel():
        groups, size = column_sums(call.module, x).shape
        return x.new_zeros(groups, size, size, dtype=dtype)
    total: Tensor | None = None
    patch = columns(call.module, x[:1])[0].numel()
    for part in torch.split(x, max(1, _ELEMENTS // patch)):
        rows = columns(call.module, part).permute(1, 2, 0, 3).flatten(2).to(dtype)
        total = rows @ rows.mT if total is None else total.baddbmm_(rows, rows.mT)
    assert total is not None
    return total


def approximated(hessian: Approximation, evidence: Evidence) -> Iterator[Quadratic]:
    """What `hessian` makes of the evidence, one after the other.

    Raises `ScoreError` where these are not of exactly its weights, at the latest after the last.
    """
    if not callable(hessian):
        raise ScoreError("hessian= is no function: give layer_hessian itself, not what it returns")
    seen: set[str] = set()
    for quadratic in hessian(evidence):
        for name in quadratic.names:
            if name in seen or name not in evidence.parameters:
                which = "in two quadratics" if name in seen else "not prunable"
                raise ScoreError(f"{name}: is {which}: an approximation has every prunable tensor once")
            seen.add(name)
        yield quadratic
        del quadratic
    for name in evidence.parameters:
        if name not in seen:
            raise ScoreError(f"{name}: is in no quadratic: an approximation has every prunable tensor once")
