"""One forward pass, and every example's gradient from its recorded calls: read off, or by the definition."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pruning.batches import Batch, cut, examples
from pruning.curvature.calls import Use, uses
from pruning.curvature.linear_maps import factors
from pruning.errors import ScoreError
from pruning.evidence import Evidence, Scores, accumulated, loss_of, output_tensor
from pruning.gradients import leaves
from pruning.inputs import tensors_in


@dataclass(frozen=True)
class Pass:
    """One forward pass: the batch, its outputs, and the calls of each parameter's modules.

    `counts` says how much each example counts, float64 [size]: 1, unless `Evidence.count` says otherwise. `signature`
    is equal for passes that run the same operators on the same shapes, so that rows hold the same examples; None if an
    operator depended on data.
    """

    batch: Batch
    size: int
    loss: Tensor
    outputs: Tensor
    counts: Tensor
    calls: Mapping[str, list[Use]]
    signature: int | None


def forward(evidence: Evidence, batch: Batch, modules: Mapping[nn.Module, str]) -> Pass:
    with uses(evidence.local, modules, described=True) as found:
        loss, whole = run(evidence, batch)
    by_name = {name: calls for name, calls in found.by_name(modules).items() if name not in found.elsewhere}
    size = len(whole)
    signature = None if found.by_data else hash((size, *(found.operators or ())))
    return Pass(batch, size, loss, whole, _counts(evidence, batch, size).to(whole.device), by_name, signature)


def _counts(evidence: Evidence, batch: Batch, size: int) -> Tensor:
    """How much each example counts in the mean that the loss of `batch` is."""
    if evidence.count is None:
        return torch.ones(size, dtype=torch.float64)
    found = torch.tensor([float(evidence.count(cut(batch, slice(n, n + 1)))) for n in range(size)], dtype=torch.float64)
    whole = evidence.size(batch)
    if not bool((found >= 0).all()) or abs(float(found.sum()) - whole) > 1e-6 * whole:
        raise ScoreError(
            f"Evidence count= gives {whole:g} for a batch, and {float(found.sum()):g} for its examples one by one: "
            "give a sum over examples, none below 0"
        )
    return found


def run(evidence: Evidence, batch: Batch) -> tuple[Tensor, Tensor]:
    """The loss of `batch`, and the outputs on which it depends, examples first."""
    with _outputs(evidence.local) as outputs:
        loss = loss_of(evidence, batch)
    size = examples(batch)
    whole = _outputs_of_loss(evidence.local, loss, outputs[-1] if outputs else None)
    if not whole.dim() or len(whole) != size:
        raise ScoreError(f"the model's output has shape {list(whole.shape)} for {size} examples: put examples first")
    if not whole.requires_grad:
        raise ScoreError("the model's output has no gradient: its weights are used under no_grad, or detached")
    return loss, whole


def _outputs_of_loss(model: nn.Module, loss: Tensor, outputs: Any) -> Tensor:
    """The outputs; of several tensors in a tuple or a mapping that one through which all weights reach the loss."""
    try:
        return output_tensor(outputs)
    except ScoreError:
        weights = {id(parameter) for parameter in model.parameters()}
        for one in tensors_in(outputs):
            if one.requires_grad and not weights & set(map(id, leaves(loss, {(one.grad_fn, one.output_nr)}))):
                return one
        raise


@contextmanager
def _outputs(model: nn.Module) -> Iterator[list[Any]]:
    found: list[Any] = []

    def hook(module: nn.Module, inputs: Any, outputs: Any) -> None:
        found.append(outputs)

    handle = model.register_forward_hook(hook)
    try:
        yield found
    finally:
        handle.remove()


def output_gradients(taken: Pass, cotangent: Tensor) -> dict[str, list[tuple[Use, Tensor]]]:
    """∂(outputs · cotangent) by the outputs of every call, in one backward pass."""
    calls = [(name, use) for name, uses_ in taken.calls.items() for use in uses_]
    if not calls:
        return {}
    gradients = torch.autograd.grad(
        taken.outputs, [use.outputs for _, use in calls], cotangent, retain_graph=True, allow_unused=True
    )
    found: dict[str, list[tuple[Use, Tensor]]] = {}
    for (name, use), gradient in zip(calls, gradients, strict=True):
        found.setdefault(name, []).append((use, torch.zeros_like(use.outputs) if gradient is None else gradient))
    return found


def read_off(calls: list[tuple[Use, Tensor]], part: slice, shape: torch.Size) -> Tensor:
    """The gradients of the examples in `part`, [examples, *shape], summed over calls and their positions."""
    total: Tensor | None = None
    for use, gradient in calls:
        rows, columns = factors(use.module, accumulated(use.unchanged()[part]), accumulated(gradient[part]))
        term = (rows @ columns.transpose(2, 3)).reshape(len(rows), *shape)
        total = term if total is None else total + term
    assert total is not None
    return total


def summed(calls: list[tuple[Use, Tensor]], shape: torch.Size) -> Tensor:
    """`read_off`, summed over all examples."""
    total = torch.zeros((), device=calls[0][1].device)
    for use, gradient in calls:
        inputs, slopes = (torch.split(accumulated(tensor), 64) for tensor in (use.unchanged(), gradient))
        for x, slope in zip(inputs, slopes, strict=True):
            rows, columns = factors(use.module, x, slope)
            total = total + torch.einsum("ngrl,ngcl->grc", rows, columns).reshape(shape)
    return total


def along_first(values: Tensor, like: Tensor) -> Tensor:
    """`values`, one an example, so that they multiply `like` [examples, …] in its own dtype."""
    return values.to(like.dtype).view(-1, *[1] * (like.dim() - 1))


def close(found: Tensor, wanted: Tensor, tolerance: float = 1e-3) -> bool:
    return bool((found - wanted).abs().max() <= tolerance * wanted.abs().max() + 1e-30)


def one_by_one(evidence: Evidence, batch: Batch, cotangent: Tensor, names: list[str], part: slice) -> Scores:
    """The same by the definition: every example goes through the network alone."""
    assert evidence.loss is not None
    parameters = [evidence.parameters[name] for name in names]
    rows = []
    for number in range(part.start, part.stop):
        one = slice(number, number + 1)
        _, outputs = run(evidence, cut(batch, one))
        rows.append(torch.autograd.grad(outputs, parameters, cotangent[one], allow_unused=True))
    return {
        name: torch.stack([accumulated(torch.zeros_like(p) if row[i] is None else row[i]) for row in rows])
        for i, (name, p) in enumerate(zip(names, parameters, strict=True))
    }
