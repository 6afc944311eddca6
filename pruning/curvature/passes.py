"""Forward passes whose recorded calls give every example's gradient, and the proof that they do.

The inputs of a linear layer or convolution and the gradients of its outputs hold the gradient of every example. That is
not so where a weight is also used outside its module, or something else than examples comes first within; and nothing
can be read off at all where the loss sees the weights past the model's outputs. The first batch is checked in full: its
first example against its gradient alone, the sum of all against the gradient of the batch. Every pass that runs
otherwise, or goes by the data, is checked for rows that hold something of several examples, as those of an expert do.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from pruning.batches import cut
from pruning.curvature.calls import Use
from pruning.curvature.forward import (
    Pass,
    along_first,
    close,
    forward,
    one_by_one,
    output_gradients,
    read_off,
    run,
    summed,
)
from pruning.curvature.linear_maps import linear_modules
from pruning.errors import ScoreError, first_line
from pruning.evidence import Evidence, accumulated, check_real, untouched
from pruning.gradients import Unreached, check_graph, leaves


def passes(evidence: Evidence) -> Iterator[Pass]:
    """A pass for every batch, with the calls of those parameters whose gradients can be read off.

    Raises:
        ScoreError: no loss or data; outputs that are not one tensor; batch norm or dropout in train mode, where
            examples do not have gradients of their own; a loss that sees the weights past the model's outputs.
    """
    if evidence.loss is None:
        raise ScoreError("curvature needs gradients: give Evidence a loss")
    for name, module in evidence.model.named_modules():
        mixing = isinstance(module, _BatchNorm) and (module.training or module.running_mean is None)
        if mixing and not module.training:
            raise ScoreError(f"{name}: {type(module).__name__} without running statistics mixes examples: replace it")
        if mixing or (module.training and isinstance(module, _DropoutNd) and module.p > 0):
            raise ScoreError(f"{name}: {type(module).__name__} in train mode mixes examples: call model.eval() first")
    modules = linear_modules(evidence.model, evidence.parameters)
    check_real(evidence.parameters, "curvature")
    trusted: set[str] | None = None
    unreached = Unreached(evidence, evidence.parameters)
    known: dict[int | None, set[str]] = {}  # signature of a pass → parameters whose calls mix examples
    with untouched(evidence.model, evidence.parameters.values()), torch.enable_grad():
        for batch in evidence.batches:
            with unreached.watched():
                taken = forward(evidence, batch, modules)
            check_graph(taken.loss)
            reached = {id(leaf) for leaf in leaves(taken.loss)}
            unreached.refuse(batch, {name for name, p in evidence.parameters.items() if id(p) not in reached})
            _check_loss(evidence, taken)
            if taken.signature not in known:
                _check_alone(evidence, taken)
            if trusted is None:
                trusted = _trusted(evidence, taken)
            calls = {name: found for name, found in _by_example(taken).items() if name in trusted}
            mixes = known[taken.signature] if taken.signature in known else _mixing(replace(taken, calls=calls))
            if taken.signature is not None:
                known[taken.signature] = mixes
            yield replace(taken, calls={name: found for name, found in calls.items() if name not in mixes})
    if trusted is None:
        raise ScoreError("curvature needs data: batches is empty, or could be iterated only once (give a list)")


def _by_example(taken: Pass) -> dict[str, list[Use]]:
    """The parameters all of whose calls have examples first."""
    return {
        name: calls
        for name, calls in taken.calls.items()
        if all(len(call.inputs) == len(call.outputs) == taken.size for call in calls)
    }


def _trusted(evidence: Evidence, taken: Pass) -> set[str]:
    """The parameters whose gradient of the first example, read off their modules, is that of this example alone.

    Not so where a weight is also used outside its module, or where something else than examples comes first within.
    """
    calls = _by_example(taken)
    if not calls:
        return set()
    generator = torch.Generator().manual_seed(0)
    cotangent = torch.randn(taken.outputs.shape, generator=generator).to(taken.outputs)
    found = output_gradients(replace(taken, calls=calls), cotangent)
    first = slice(0, 1)
    alone = one_by_one(evidence, taken.batch, cotangent, list(calls), first)
    together = torch.autograd.grad(
        taken.outputs, [evidence.parameters[name] for name in calls], cotangent, retain_graph=True, allow_unused=True
    )
    return {
        name
        for name, whole in zip(calls, together, strict=True)
        if whole is not None
        and close(read_off(found[name], first, whole.shape), alone[name])
        and close(summed(found[name], whole.shape), accumulated(whole))
    }


def _check_alone(evidence: Evidence, taken: Pass) -> None:
    """Raise `ScoreError` if an example has other outputs alone than in its batch, or another loss than its part of the
    batch's: then it has no gradient of its own.

    Asked of the first, the last and one between: where time comes first, one of them knows nothing of the others.
    """
    if taken.size == 1:
        return
    (slope,) = torch.autograd.grad(taken.loss, taken.outputs, retain_graph=True)
    for number in sorted({0, taken.size // 2, taken.size - 1}):
        one = slice(number, number + 1)
        try:
            loss, alone = run(evidence, cut(taken.batch, one))
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            raise ScoreError(
                f"the model does not run on one example of a batch ({first_line(error)}), so examples have no "
                "gradients of their own: use a scorer of the whole batch, as taylor"
            ) from error
        tolerance = 1e-3 if torch.finfo(alone.dtype).bits >= 32 else 0.05
        whole = taken.outputs.detach()[one]
        if alone.shape != whole.shape or not close(accumulated(alone), accumulated(whole), tolerance):
            raise ScoreError(
                "an example has other outputs alone than in its batch: the model mixes examples, counts its calls in a "
                "buffer, or something else comes first (time, say): put examples first, or use a scorer of the whole "
                "batch, as taylor"
            )
        if not float(taken.counts[number]):
            continue
        (own,) = torch.autograd.grad(loss, alone)
        part = slope[one] * float(taken.counts.sum() / taken.counts[number])
        if not close(accumulated(part), accumulated(own), tolerance):
            raise ScoreError(
                "the loss of a batch is no mean over its examples: the loss of one alone has another gradient than its "
                "part of the batch's: give the mean, or Evidence(count=...), from a batch to what it averages over"
            )


def _mixing(taken: Pass) -> set[str]:
    """The parameters whose calls mix examples: whose rows reach the outputs of others than their own.

    Where cotangents of examples are scaled by random factors, gradients of rows of one example are scaled by its own.
    """
    if taken.size == 1 or not taken.calls:
        return set()
    generator = torch.Generator().manual_seed(1)
    cotangent = torch.randn(taken.outputs.shape, generator=generator).to(taken.outputs)
    scales = 0.5 + torch.rand(taken.size, generator=generator).to(taken.outputs)
    plain = output_gradients(taken, cotangent)
    scaled = output_gradients(taken, cotangent * along_first(scales, cotangent))
    return {
        name
        for name, calls in plain.items()
        for (_, gradient), (_, other) in zip(calls, scaled[name], strict=True)
        if not close(accumulated(other), accumulated(gradient * along_first(scales, gradient)))
    }


def _check_loss(evidence: Evidence, taken: Pass) -> None:
    """The gradient of the loss must be that through the outputs; else examples' gradients are not what is read off."""
    if not bool(torch.isfinite(taken.loss)):
        raise ScoreError("the loss is NaN or infinite: check the data, and that the network has not diverged")
    (cotangent,) = torch.autograd.grad(taken.loss, taken.outputs, retain_graph=True, allow_unused=True)
    if cotangent is None:
        raise ScoreError("the loss does not depend on what the model gave last: call the model once in the loss")
    beside = {id(leaf) for leaf in leaves(taken.loss, {(taken.outputs.grad_fn, taken.outputs.output_nr)})}
    suspects = {name: p for name, p in evidence.parameters.items() if id(p) in beside}
    if not suspects:
        return
    parameters = list(suspects.values())
    through = torch.autograd.grad(taken.outputs, parameters, cotangent, retain_graph=True, allow_unused=True)
    whole = torch.autograd.grad(taken.loss, parameters, retain_graph=True, allow_unused=True)
    for name, found, wanted in zip(suspects, through, whole, strict=True):
        tolerance = 1e-3 if wanted is None or torch.finfo(wanted.dtype).bits >= 32 else 0.05
        if wanted is not None and (found is None or not close(accumulated(found), accumulated(wanted), tolerance)):
            raise ScoreError(
                f"{name}: the loss sees it past the model's outputs: call the model once in the loss, without penalties"
            )
