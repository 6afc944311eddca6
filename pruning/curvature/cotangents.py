"""What is propagated back from the outputs: it decides which second-moment matrix (1/C) Σ_n Σ_v J_nᵀvvᵀJ_n comes out.

The loss of a batch is Σ_n c_n·L_n / C: the mean over examples n, which count c_n each (1, or tokens, or the weight of a
class) and C in all. So C/c_n times its gradient by the outputs of n is the gradient of L_n, the example's own loss, and
each v holds the square root of c_n.
"""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from pruning.curvature.examples import Cotangents
from pruning.curvature.forward import along_first
from pruning.errors import ScoreError
from pruning.limits import check_bytes, written_bytes

LARGEST = 10_000
"""Outputs of an example of which the Gauss-Newton matrix is made at most."""

Curvature = Literal["gauss_newton", "empirical_fisher", "true_fisher"]


def cotangents(curvature: Curvature, samples: int | None = None, seed: int = 0) -> Cotangents:
    """The cotangents of a curvature by name; `samples` and `seed` as in `true_fisher`."""
    if curvature == "gauss_newton":
        return gauss_newton
    if curvature == "empirical_fisher":
        return empirical
    if curvature == "true_fisher":
        return true_fisher(samples, seed)
    raise ScoreError(f"curvature={curvature!r} is unknown: choose gauss_newton, empirical_fisher or true_fisher")


def check_curved(found: Iterable[Tensor]) -> None:
    """Raise `ScoreError` where all that was found is zero: no ranking follows from it."""
    if not any(bool(tensor.any()) for tensor in found):
        raise ScoreError(
            "there is no curvature: of a loss that is linear in the outputs (log-probabilities, an absolute error) use "
            "the true Fisher, or let the model give logits; else check that the weights have a gradient"
        )


def empirical(loss: Tensor, outputs: Tensor, counts: Tensor) -> Iterator[Tensor]:
    """v = √c_n·∂L_n/∂z: the empirical Fisher, squares of the gradients of the examples' losses, with their labels."""
    (gradient,) = torch.autograd.grad(loss, outputs, retain_graph=True)
    yield gradient * along_first(counts.sum() * _inverse(counts).sqrt(), gradient)


def gauss_newton(loss: Tensor, outputs: Tensor, counts: Tensor) -> Iterator[Tensor]:
    """Vᵀ with VVᵀ = c_n·∂²L_n/∂z²: the Gauss-Newton matrix, exactly; one backward pass per output of an example.

    Equal to the Hessian where the network is linear in its weights, or fits the data without error; for cross-entropy
    equal to the true Fisher, with the expectation over labels taken in full.

    Raises:
        ScoreError: the loss is not convex in the outputs, so that there is no such V.
    """
    size, count = len(outputs), outputs[0].numel()
    if count > LARGEST:
        raise ScoreError(
            f"gauss_newton: an example has {count:,} outputs, so that {count:,} backward passes of each batch and "
            f"{written_bytes(8.0 * size * count**2)} of curvature would be needed, and {LARGEST:,} are the most: give "
            "curvature=empirical_fisher, or hutchinson for obd"
        )
    check_bytes("gauss_newton", 16.0 * size * count**2, outputs.device, "give smaller batches")
    (gradient,) = torch.autograd.grad(loss, outputs, create_graph=True)
    flat = gradient.reshape(size, -1) * counts.sum().to(gradient.dtype)
    rows = [torch.autograd.grad(flat[:, c].sum(), outputs, retain_graph=True)[0] for c in range(flat.shape[1])]
    hessian = torch.stack([row.reshape(size, -1) for row in rows], dim=1).double()
    if not bool(torch.isfinite(hessian).all()):
        raise ScoreError("the loss has NaN or infinite curvature in the outputs: check the data and the network")
    values, vectors = torch.linalg.eigh((hessian + hessian.mT) / 2)
    # where the network is sure of its labels the curvature is as small as the rounding of probabilities
    rounding = 8 * torch.finfo(outputs.dtype).eps * hessian.shape[1]
    if float(values.min()) < -rounding - 1e-6 * float(values.max().clamp(min=0)):
        raise ScoreError("Gauss-Newton needs a loss that is convex in the outputs: use the empirical Fisher")
    roots = (vectors * values.clamp(min=0).sqrt()[:, None]).to(outputs.dtype)
    for c in range(roots.shape[2]):
        yield roots[:, :, c].reshape(outputs.shape)


def true_fisher(samples: int | None = None, seed: int = 0) -> Cotangents:
    """The Fisher of softmax(z) with labels from the network itself: v = p - e_y, y ~ p; outputs [examples, classes].

    `samples` labels are drawn per example; None takes the expectation over all classes, p_y weighting the squares.
    """
    if samples is not None and samples < 1:
        raise ScoreError(f"samples={samples}: give at least 1 label an example, or None for the expectation")
    generator = torch.Generator("cpu").manual_seed(seed)
    return partial(_true_fisher, samples, generator)


def _true_fisher(
    samples: int | None, generator: torch.Generator, loss: Tensor, outputs: Tensor, counts: Tensor
) -> Iterator[Tensor]:
    if outputs.dim() != 2 or outputs.shape[1] < 2:
        raise ScoreError(
            f"the true Fisher needs outputs [examples, classes], not {list(outputs.shape)}: use the empirical one"
        )
    p = outputs.detach().double().softmax(1)
    if not _is_cross_entropy(loss, outputs, p, counts):
        raise ScoreError("the true Fisher needs the mean cross-entropy of the outputs as loss: use the empirical one")
    if samples is None:
        for c in range(p.shape[1]):
            yield _away_from(p, torch.full((len(p),), c, device=p.device), (p[:, c] * counts).sqrt()).to(outputs.dtype)
        return
    for _ in range(samples):
        labels = torch.multinomial(p.cpu(), 1, generator=generator)[:, 0].to(p.device)
        yield _away_from(p, labels, (counts / samples).sqrt()).to(outputs.dtype)


def _is_cross_entropy(loss: Tensor, outputs: Tensor, p: Tensor, counts: Tensor) -> bool:
    """Whether ∂L_n/∂z = p - q with probabilities q, the labels; of log-probabilities z it is -q itself."""
    (gradient,) = torch.autograd.grad(loss, outputs, retain_graph=True)
    counted = counts > 0
    outputs, p = outputs[counted], p[counted]
    gradient = gradient.double()[counted] * (counts.sum() / counts[counted])[:, None]
    tolerance = 1e-3 if outputs.dtype in (torch.float32, torch.float64) else 0.05
    normal = bool((outputs.detach().double().logsumexp(1).abs() < tolerance).all())
    return any(
        bool((labels > -tolerance).all()) and bool(((labels.sum(1) - 1).abs() < tolerance).all())
        for labels in ([p - gradient, -gradient] if normal else [p - gradient])
    )


def _inverse(counts: Tensor) -> Tensor:
    """1 / c_n; 0 for an example in which nothing counts, whose gradient is 0."""
    return torch.where(counts > 0, 1 / counts, 0.0)


def _away_from(p: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    """(p - e_label) · weight: the gradient of the cross-entropy with that label."""
    return (p - torch.nn.functional.one_hot(labels, p.shape[1])) * weight[:, None]
