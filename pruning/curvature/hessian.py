"""The Hessian of the mean loss, by products with it: exact products, and its diagonal by random probes."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel

from pruning.errors import ScoreError, ToleranceWarning
from pruning.evidence import Evidence, Scores, accumulated, check_real, scalar_loss, untouched
from pruning.gradients import Unreached, check_graph, mean_gradient, nodes
from pruning.processes import parallel, sum_, sum_of


def hessian_product(evidence: Evidence, vectors: Mapping[str, Tensor] | None = None) -> Scores:
    """H·v of the mean loss over all examples, by all parameters of the evidence together (Pearlmutter 1994).

    Args:
        vectors: v, name → tensor of the parameter's shape; None is the gradient of the same loss. With one batch the
            gradient and the product then come from the same pass.

    Raises:
        ScoreError: no loss, no data, or a loss without a gradient.
    """
    with untouched(evidence.model):  # a loader draws from the global random state
        batches = list(evidence.batches)
    if evidence.loss is None or not batches:
        raise ScoreError("curvature needs a loss and data: give Evidence a loss and batches")
    if vectors is None and (len(batches) > 1 or parallel(evidence.model) is not None):
        vectors = mean_gradient(evidence)
    check_real(evidence.parameters, "a Hessian")
    names, parameters = list(evidence.parameters), list(evidence.parameters.values())
    products = {name: torch.zeros_like(accumulated(p)) for name, p in evidence.parameters.items()}
    sizes = [evidence.size(batch) for batch in batches]
    count = sum_of(evidence.model, sum(sizes))
    unreached = Unreached(evidence, evidence.parameters)
    # neither the fused kernels of attention nor compiled code can be differentiated twice, plain arithmetic can
    plain = torch.compiler.set_stance("force_eager")
    with untouched(evidence.model, parameters), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), plain:
        for batch, size in zip(batches, sizes, strict=True):
            with unreached.watched():
                loss = scalar_loss(evidence, batch)
            check_graph(loss)
            _check_twice(loss)
            first = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
            unreached.refuse(batch, {name for name, g in zip(names, first, strict=True) if g is None})
            # what does not require a gradient is constant: the loss is linear in that parameter
            reached = [(name, g) for name, g in zip(names, first, strict=True) if g is not None and g.requires_grad]
            if not reached:
                continue
            along = [g.detach() if vectors is None else vectors[name].to(g) for name, g in reached]
            second = torch.autograd.grad([g for _, g in reached], parameters, along, allow_unused=True)
            for name, product in zip(names, second, strict=True):
                if product is not None:
                    products[name].add_(accumulated(product), alpha=size / count)
    sum_(evidence.model, products.values())
    return products


def _check_twice(loss: Tensor) -> None:
    """Raise `ScoreError` for an operator that is differentiable once: torch takes its gradient for a constant."""
    for node in nodes(loss):
        backward = getattr(getattr(type(node), "_forward_cls", None), "backward", None)
        if getattr(backward, "__code__", None) is _ONCE:
            raise ScoreError(
                f"{type(node)._forward_cls.__name__}: can be differentiated once alone (once_differentiable), so this "
                "model has no Hessian: replace it by torch's own operators, or use a scorer of gradients"
            )


_ONCE = once_differentiable(lambda ctx: ctx).__code__
"""What all functions that torch's decorator has wrapped have in common."""


@dataclass(frozen=True)
class Estimate:
    """An estimated diagonal and how sure it is.

    Attributes:
        diagonal: name → mean over the probes, of the parameter's shape.
        standard_error: of that mean, per weight; 0 where all probes agree.
        probes: how many were drawn.
    """

    diagonal: Scores
    standard_error: Scores
    probes: int


def hutchinson(evidence: Evidence, tolerance: float = 0.1, least: int = 10, most: int = 100, seed: int = 0) -> Estimate:
    """diag(H) ≈ mean of z ⊙ (H·z) with z = ±1 (Hutchinson 1990); the variance of entry i is Σ_{j≠i} H_ij² a probe.

    Args:
        tolerance: probes are drawn until ‖standard error‖₂ ≤ tolerance · ‖diagonal‖₂ over all weights together.
        least, most: number of probes at least (2 or more) and at most; of very few weights the first few probes may
            all agree by chance, and show no error.
        seed: of the probes; torch's global random state is not touched.

    Warns:
        ToleranceWarning: `most` probes have not reached the tolerance.
    """
    if not 2 <= least <= most:
        raise ScoreError(f"hutchinson: least={least}, most={most}: need 2 <= least <= most, two for a standard error")
    generator = torch.Generator("cpu").manual_seed(seed)
    mean = {name: torch.zeros_like(accumulated(p)) for name, p in evidence.parameters.items()}
    squares = {name: torch.zeros_like(value) for name, value in mean.items()}  # Welford's sum of squared deviations
    error: Scores = {}
    probes = 0
    while probes < most:
        probes += 1
        z = {
            name: (torch.randint(2, value.shape, generator=generator) * 2 - 1).to(value) for name, value in mean.items()
        }
        for name, product in hessian_product(evidence, z).items():
            sample = product.mul_(z[name])
            away = sample - mean[name]
            mean[name] += away / probes
            squares[name] += away * (sample - mean[name])
        if probes >= least:
            error = {name: (value / (probes * (probes - 1))).sqrt() for name, value in squares.items()}
            if _norm(error) <= tolerance * _norm(mean):
                break
    else:
        reached = _norm(error) / max(_norm(mean), 1e-300)
        warnings.warn(
            f"hutchinson: after {probes} probes the standard error is {reached:.2g} of the diagonal, not {tolerance:g}"
            ": allow more probes, or a larger tolerance",
            ToleranceWarning,
            stacklevel=2,
        )
    return Estimate(mean, error, probes)


def _norm(values: Scores) -> float:
    return float(torch.stack([value.double().square().sum().cpu() for value in values.values()]).sum().sqrt())
