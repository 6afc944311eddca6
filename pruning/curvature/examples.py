"""Gradients of single examples without a loop over them, and their mean squares.

A gradient of an example is J_nᵀv_n: the Jacobian of its outputs, transposed, times a cotangent of its outputs. What v
is makes it a row of the empirical Fisher, of the true one, or of the Gauss-Newton matrix; see `cotangents`.

Linear layers and convolutions need one backward pass for all examples: their inputs and the gradients of their outputs
hold every example's gradient. Whether that is so is checked on the very first example, against its gradient alone. All
other parameters go through `torch.func.vmap`, and where an operator has no rule for that, one by one.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.utils._pytree import tree_map

from pruning.curvature.linear_maps import Use, factors, linear_modules, uses
from pruning.errors import ScoreError
from pruning.evidence import Batch, Evidence, Scores, accumulated, examples, output_tensor, untouched
from pruning.parameters import unwrapped

Cotangents = Callable[[Tensor, Tensor], Iterable[Tensor]]
"""From the mean loss and the outputs [examples, …], both in the graph, to cotangents of the outputs' shape."""

MEMORY = 2**27
"""Bytes that the gradients of a chunk of examples may take, unless told otherwise."""


@dataclass(frozen=True)
class _Pass:
    """One forward pass: the batch, its outputs, and the calls of each parameter's modules."""

    batch: Batch
    size: int
    loss: Tensor
    outputs: Tensor
    calls: Mapping[str, list[Use]]


def mean_squares(evidence: Evidence, cotangents: Cotangents, memory: int = MEMORY) -> Scores:
    """(1/N) Σ_n Σ_v (J_nᵀv_n)², name → tensor of the parameter's shape: the diagonal of a second-moment matrix.

    Within an example positions (pixels, tokens) and uses of a tied weight are summed before the square is taken.

    Raises:
        ScoreError: as `example_gradients`.
    """
    total = {name: torch.zeros_like(accumulated(p)) for name, p in evidence.parameters.items()}
    count = 0
    for taken in _passes(evidence):
        count += taken.size
        for cotangent in cotangents(taken.loss, taken.outputs):
            found = _output_gradients(taken, cotangent)
            outer = {name for name, calls in found.items() if _is_outer_product(calls)}
            for name in outer:
                ((use, gradient),) = found.pop(name)
                rows, columns = accumulated(gradient).square(), accumulated(use.unchanged()).square()
                total[name] += rows.flatten(0, -2).T @ columns.flatten(0, -2)
            rest = [name for name in evidence.parameters if name not in outer]
            for chunk in _chunks(evidence, taken, cotangent, found, rest, memory):
                for name, gradients in chunk.items():
                    total[name] += gradients.square().sum(0)
    return {name: value.div_(count) for name, value in total.items()}


def example_gradients(evidence: Evidence, cotangents: Cotangents, memory: int = MEMORY) -> Iterator[tuple[Scores, int]]:
    """J_nᵀv_n of some examples and one cotangent, as (name → [examples, *shape], examples), chunk by chunk.

    The second number counts examples at their first cotangent only, so that its sum is N.

    Raises:
        ScoreError: no loss or data; outputs that are not one tensor; batch norm or dropout in train mode, where
            examples do not have gradients of their own.
    """
    for taken in _passes(evidence):
        for number, cotangent in enumerate(cotangents(taken.loss, taken.outputs)):
            found = _output_gradients(taken, cotangent)
            for chunk in _chunks(evidence, taken, cotangent, found, list(evidence.parameters), memory):
                size = len(next(iter(chunk.values())))
                yield chunk, size if number == 0 else 0


def _passes(evidence: Evidence) -> Iterator[_Pass]:
    if evidence.loss is None:
        raise ScoreError("curvature needs gradients: give Evidence a loss")
    for name, module in evidence.model.named_modules():
        if module.training and (isinstance(module, _BatchNorm) or (isinstance(module, _DropoutNd) and module.p > 0)):
            raise ScoreError(f"{name}: {type(module).__name__} in train mode mixes examples: call model.eval() first")
    modules = linear_modules(evidence.model, evidence.parameters)
    trusted: set[str] | None = None
    with untouched(evidence.model, evidence.parameters.values()), torch.enable_grad():
        for batch in evidence.batches:
            taken = _forward(evidence, batch, modules)
            if trusted is None:
                trusted = _trusted(evidence, taken)
            calls = {name: found for name, found in _by_example(taken).items() if name in trusted}
            yield replace(taken, calls=calls)
    if trusted is None:
        raise ScoreError("curvature needs data: batches is empty, or could be iterated only once (give a list)")


def _forward(evidence: Evidence, batch: Batch, modules: Mapping[nn.Module, str]) -> _Pass:
    assert evidence.loss is not None
    with uses(modules) as calls, _outputs(evidence.model) as outputs:
        loss = evidence.loss(evidence.model, batch)
    by_name: dict[str, list[Use]] = {}
    for use in calls:
        by_name.setdefault(modules[use.module], []).append(use)
    size = examples(batch)
    whole = output_tensor(outputs[-1] if outputs else None)
    if len(whole) != size:
        raise ScoreError(f"the model's output has {len(whole)} rows for {size} examples: put examples first")
    return _Pass(batch, size, loss, whole, by_name)


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


def _output_gradients(taken: _Pass, cotangent: Tensor) -> dict[str, list[tuple[Use, Tensor]]]:
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


def _is_outer_product(calls: list[tuple[Use, Tensor]]) -> bool:
    """One use at one position: the square of the gradient is the product of the squares."""
    return len(calls) == 1 and isinstance(calls[0][0].module, nn.Linear) and calls[0][0].inputs.dim() == 2


def _chunks(
    evidence: Evidence,
    taken: _Pass,
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
        chunk = {name: _read_off(found[name], part, evidence.parameters[name].shape) for name in names if name in found}
        yield chunk | (_mapped(evidence, taken.batch, cotangent, others, part) if others else {})


def _read_off(calls: list[tuple[Use, Tensor]], part: slice, shape: torch.Size) -> Tensor:
    total: Tensor | None = None
    for use, gradient in calls:
        rows, columns = factors(use.module, accumulated(use.unchanged()[part]), accumulated(gradient[part]))
        term = (rows @ columns.transpose(2, 3)).reshape(len(rows), *shape)
        total = term if total is None else total + term
    assert total is not None
    return total


def _mapped(evidence: Evidence, batch: Batch, cotangent: Tensor, names: list[str], part: slice) -> Scores:
    """By vmap over the examples of `part`; one by one if an operator has no batching rule."""
    size = examples(batch)
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
        evidence.loss(model, tree_map(lambda t: t[None] if isinstance(t, Tensor) else t, example))  # type: ignore[arg-type]  # called, no more
        return (output_tensor(outputs[-1]) * v[None]).sum()

    some = _sliced(batch, part, size)
    dims = tree_map(lambda t: 0 if isinstance(t, Tensor) and t.dim() and len(t) == len(cotangent[part]) else None, some)
    try:
        gradients: Scores = vmap(grad(product), in_dims=(None, dims, 0))(chosen, some, cotangent[part])
    except (RuntimeError, ValueError, AttributeError):
        return _one_by_one(evidence, batch, cotangent, names, part)
    return {name: accumulated(gradient) for name, gradient in gradients.items()}


def _one_by_one(evidence: Evidence, batch: Batch, cotangent: Tensor, names: list[str], part: slice) -> Scores:
    assert evidence.loss is not None
    parameters = [evidence.parameters[name] for name in names]
    rows = []
    for number in range(part.start, part.stop):
        one = slice(number, number + 1)
        taken = _forward(evidence, _sliced(batch, one, examples(batch)), {})
        rows.append(torch.autograd.grad(taken.outputs, parameters, cotangent[one], allow_unused=True))
    return {
        name: torch.stack([accumulated(torch.zeros_like(p) if row[i] is None else row[i]) for row in rows])
        for i, (name, p) in enumerate(zip(names, parameters, strict=True))
    }


def _sliced(batch: Batch, part: slice, size: int) -> Batch:
    return tree_map(lambda t: t[part] if isinstance(t, Tensor) and t.dim() and len(t) == size else t, batch)


def _by_example(taken: _Pass) -> dict[str, list[Use]]:
    """The parameters all of whose calls have examples first."""
    return {
        name: calls
        for name, calls in taken.calls.items()
        if all(len(call.inputs) == len(call.outputs) == taken.size for call in calls)
    }


def _trusted(evidence: Evidence, taken: _Pass) -> set[str]:
    """The parameters whose gradient of the first example, read off their modules, is that of this example alone.

    Not so where a weight is also used outside its module, or where something else than examples comes first within.
    """
    calls = _by_example(taken)
    if not calls:
        return set()
    generator = torch.Generator().manual_seed(0)
    cotangent = torch.randn(taken.outputs.shape, generator=generator).to(taken.outputs)
    found = _output_gradients(replace(taken, calls=calls), cotangent)
    first = slice(0, 1)
    alone = _one_by_one(evidence, taken.batch, cotangent, list(calls), first)
    return {
        name for name in calls if _close(_read_off(found[name], first, evidence.parameters[name].shape), alone[name])
    }


def _close(found: Tensor, wanted: Tensor) -> bool:
    return bool((found - wanted).abs().max() <= 1e-3 * wanted.abs().max() + 1e-30)
