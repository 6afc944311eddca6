"""Gradients of single examples without a loop over them, and their mean squares.

A gradient of an example is J_nᵀv_n: the Jacobian of its outputs, transposed, times a cotangent of its outputs. What v
is makes it a row of the empirical Fisher, of the true one, or of the Gauss-Newton matrix; see `cotangents`.

Linear layers and convolutions need one backward pass for all examples: their inputs and the gradients of their outputs
hold every example's gradient, where `passes` has found it so. All other parameters go through `torch.func.vmap`, and
where an operator has no rule for that, one by one.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils._pytree import tree_map

from pruning.batches import Batch, cut, has_items
from pruning.curvature.calls import Use
from pruning.curvature.forward import Pass, one_by_one, output_gradients, read_off
from pruning.curvature.passes import passes
from pruning.evidence import Evidence, Scores, accumulated, output_tensor
from pruning.parameters import unwrapped
from pruning.processes import sum_, sum_of

Cotangents = Callable[[Tensor, Tensor, Tensor], Iterable[Tensor]]
"""From the mean loss and the outputs [examples, …], both in the graph, and how much each example counts, float64
[examples], to cotangents of the outputs' shape."""

MEMORY = 2**27
"""Bytes that the gradients of a chunk of examples may take, unless set otherwise."""


def mean_squares(evidence: Evidence, cotangents: Cotangents, memory: int = MEMORY) -> Scores:
    """(1/C) Σ_n Σ_v (J_nᵀv_n)², name → tensor of the parameter's shape: the diagonal of a second-moment matrix.

    C is the number of examples, or the sum of what `Evidence.count` gives for each of them.
    Within an example positions (pixels, tokens) and uses of a tied weight are summed before the square is taken.

    Raises:
        ScoreError: as `example_gradients`.
    """
    summed = {
        name: torch.zeros(p.shape, dtype=torch.float64, device=p.device) for name, p in evidence.parameters.items()
    }
    count = 0.0
    for taken in passes(evidence):
        count += float(taken.counts.sum())
        for whole in cotangents(taken.loss, taken.outputs, taken.counts):
            largest = float(whole.abs().max())
            if not largest:
                continue
            cotangent = whole / largest  # squares of small gradients are zero in float32
            found = output_gradients(taken, cotangent)
            outer = {name for name, calls in found.items() if _is_outer_product(calls)}
            for name in outer:
                ((use, gradient),) = found.pop(name)
                rows, columns = accumulated(gradient).square(), accumulated(use.unchanged()).square()
                summed[name].add_(rows.flatten(0, -2).T @ columns.flatten(0, -2), alpha=largest**2)
            rest = [name for name in evidence.parameters if name not in outer]
            for chunk in _chunks(evidence, taken, cotangent, found, rest, memory):
                for name, gradients in chunk.items():
                    summed[name].add_(gradients.square().sum(0), alpha=largest**2)
    sum_(evidence.model, summed.values())
    count = sum_of(evidence.model, count)
    return {name: value.div_(count) for name, value in summed.items()}


def example_gradients(
    evidence: Evidence, cotangents: Cotangents, memory: int = MEMORY
) -> Iterator[tuple[Scores, float]]:
    """J_nᵀv_n of some examples and one cotangent, as (name → [examples, *shape], how much they count), chunk by chunk.

    The second number counts examples at their first cotangent only, so that its sum is C of `mean_squares`.

    Raises:
        ScoreError: see `passes`.
    """
    for taken in passes(evidence):
        for number, cotangent in enumerate(cotangents(taken.loss, taken.outputs, taken.counts)):
            found = output_gradients(taken, cotangent)
            start = 0
            for chunk in _chunks(evidence, taken, cotangent, found, list(evidence.parameters), memory):
                stop = start + len(next(iter(chunk.values())))
                yield chunk, float(taken.counts[start:stop].sum()) if number == 0 else 0.0
                start = stop


def _is_outer_product(calls: list[tuple[Use, Tensor]]) -> bool:
    """One use at one position: the square of the gradient is the product of the squares."""
    return len(calls) == 1 and isinstance(calls[0][0].module, nn.Linear) and calls[0][0].inputs.dim() == 2


def _chunks(
    evidence: Evidence,
    taken: Pass,
    cotangent: Tensor,
    found: Mapping[str, list[tuple[Use, Tensor]]],
    names: list[str],
    memory: int,
) -> Iterator[Scores]:
    """The gradients of `names` for some examples at a time, as many as fit `memory`."""
    if not names:
        return
    per_example = sum(accumulated(evidence.parameters[name]).nbytes for name in names)
    step = max(1, min(taken.size, memory // per_example))
    others = [name for name in names if name not in found]
    for start in range(0, taken.size, step):
        part = slice(start, min(start + step, taken.size))
        chunk = {name: read_off(found[name], part, evidence.parameters[name].shape) for name in names if name in found}
        yield chunk | (_mapped(evidence, taken.batch, cotangent, others, part) if others else {})


def _mapped(evidence: Evidence, batch: Batch, cotangent: Tensor, names: list[str], part: slice) -> Scores:
    """By vmap over the examples of `part`; one by one if an operator has no batching rule."""
    if has_items(batch):
        return one_by_one(evidence, batch, cotangent, names, part)
    chosen = {name: evidence.parameters[name].detach() for name in names}
    inner = unwrapped(evidence.model)
    every: dict[str, Tensor] = {**dict(inner.named_parameters()), **dict(inner.named_buffers())}
    fixed = {name: value.detach() for name, value in every.items()}

    def product(parameters: dict[str, Tensor], example: Batch, v: Tensor) -> Tensor:
        outputs: list[Any] = []

        def model(*args: Any, **kwargs: Any) -> Any:
            outputs.append(functional_call(inner, fixed | parameters, args, kwargs))
            return outputs[-1]

        assert evidence.loss is not None
        called = cast(nn.Module, model)  # a loss calls its model, and no more
        evidence.loss(called, tree_map(lambda t, dim: t if dim is None else t[None], example, dims))
        return (output_tensor(outputs[-1]) * v[None]).sum()

    some = cut(batch, part)
    dims = tree_map(lambda t: 0 if isinstance(t, Tensor) and t.dim() and len(t) == len(cotangent[part]) else None, some)
    try:
        gradients: Scores = vmap(grad(product), in_dims=(None, dims, 0))(chosen, some, cotangent[part])
    except (RuntimeError, ValueError, AttributeError):
        return one_by_one(evidence, batch, cotangent, names, part)
    return {name: accumulated(gradient) for name, gradient in gradients.items()}
