"""Gradients of the mean loss, where zero means zero and never "not computed".

`torch.autograd.grad` gives None for a weight that it does not reach. Mostly the loss does not depend on the weight; but
reentrant checkpoints hide their weights from it, and so do operators that read a weight outside of autograd. Where
there is such a checkpoint, gradients come by a backward pass from the loss to everything, as training takes them. And
the first forward pass is watched, later ones for the weights without a gradient: one of these is refused by name if a
pass reads it where there is no graph, or takes what was made of it out of the graph.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pruning.batches import Batch
from pruning.errors import ScoreError
from pruning.evidence import Evidence, Scores, accumulated, scalar_loss, untouched
from pruning.inputs import tensors_in
from pruning.memory import Memory, arguments_of, is_copy, reads
from pruning.parameters import check_values
from pruning.processes import parallel, sum_, sum_of


def gradients(evidence: Evidence) -> Iterator[tuple[Scores, float]]:
    """∂L/∂w of the mean loss on each batch, as (name → tensor in at least float32, weight of the batch).

    Weights, gradients, buffers, train and eval flags and random state of the model are as before when the iterator is
    exhausted or closed. A parameter that the loss does not depend on has gradient 0. Of a DDP-wrapped model these are
    the batches of this process.

    Raises:
        ScoreError: no loss, no batches, batches that can be iterated only once, or a gradient that cannot be computed.
        ParameterError: parameters without values.
    """
    if evidence.loss is None:
        raise ScoreError("this scorer needs gradients: give Evidence a loss")
    seen = 0
    with untouched(evidence.model, evidence.parameters.values()):
        differentiate = Differentiation(evidence, evidence.parameters)
        for batch in evidence.batches:
            seen += 1
            yield differentiate(batch), evidence.size(batch)
    if not seen:
        raise ScoreError("this scorer needs data: batches is empty, or could be iterated only once (give a list)")


def mean_gradient(evidence: Evidence) -> Scores:
    """∂L/∂w of the mean loss over all examples, of all processes, however the data are cut. See `gradients`."""
    summed: Scores = {}
    count = 0.0
    for batch, size in gradients(evidence):
        count += size
        for name, gradient in batch.items():
            summed[name] = summed[name].add_(gradient, alpha=size) if name in summed else gradient * size
    sum_(evidence.model, summed.values())
    count = sum_of(evidence.model, count)
    return {name: gradient.div_(count) for name, gradient in summed.items()}


class Differentiation:
    """∂L/∂w of the losses of batches, one after the other; it remembers which weights they do not depend on."""

    def __init__(self, evidence: Evidence, parameters: Mapping[str, nn.Parameter]):
        """Use it inside `untouched`. `parameters` may be more than the prunable ones.

        Raises:
            ParameterError: some have no values.
        """
        check_values(parameters)
        self._evidence, self._parameters = evidence, parameters
        self._unreached = Unreached(evidence, parameters)

    @torch.enable_grad()
    def __call__(self, batch: Batch) -> Scores:
        """Name → gradient in at least float32; 0 where the loss does not depend on the weight.

        Raises:
            ScoreError: no single number with a gradient, or a weight whose gradient cannot be computed.
        """
        with self._unreached.watched():
            loss = scalar_loss(self._evidence, batch)
        by_backward = is_cut(loss)
        found = self._by_backward(loss, batch) if by_backward else self._by_grad(loss)
        self._unreached.refuse(batch, {name for name, gradient in found.items() if gradient is None})
        return {
            name: torch.zeros_like(accumulated(self._parameters[name])) if g is None else accumulated(g)
            for name, g in found.items()
        }

    def _by_grad(self, loss: Tensor) -> dict[str, Tensor | None]:
        found = torch.autograd.grad(loss, list(self._parameters.values()), allow_unused=True)
        return dict(zip(self._parameters, found, strict=True))

    def _by_backward(self, loss: Tensor, batch: Batch) -> dict[str, Tensor | None]:
        if parallel(self._evidence.model) is not None:
            raise ScoreError(
                "reentrant checkpoints need backward passes, in which DistributedDataParallel would take part: set "
                "use_reentrant=False, or score the model without its wrapper"
            )
        others = (*leaves(loss), *(tensor for tensor in tensors_in(batch) if tensor.is_leaf))
        given = [(tensor, tensor.grad) for tensor in others]
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own
        found = {name: parameter.grad for name, parameter in self._parameters.items()}
        for tensor, gradient in given:
            tensor.grad = gradient
        for parameter in self._evidence.model.parameters():
            parameter.grad = None
        return found


class Unreached:
    """The weights to which autograd finds no way from the loss, and which of them the loss reads all the same."""

    def __init__(self, evidence: Evidence, parameters: Mapping[str, Tensor]):
        self._evidence, self._parameters = evidence, parameters
        self._watched = set(parameters)  # in the first pass all of them, then those without a gradient
        self._read: set[str] = set()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Watch the forward pass of a batch in this block."""
        with read_without_graph({name: self._parameters[name] for name in self._watched}) as self._read:
            yield

    def refuse(self, batch: Batch, missing: set[str]) -> None:
        """Raise `ScoreError` for those of `missing`, the weights without a gradient in that pass, that it read.

        Where one was not watched, the pass of `batch` is run once more.
        """
        read, new = self._read & missing, missing - self._watched
        if new:
            model = self._evidence.model
            with untouched(model), read_without_graph({name: self._parameters[name] for name in new}) as more:
                scalar_loss(self._evidence, batch)
            read |= more
        self._watched = missing
        refuse_hidden(read)


def leaves(loss: Tensor, seen: Collection[tuple[Any, int]] = ()) -> list[Tensor]:
    """Leaves reachable from `loss` through the autograd graph, without crossing the edges in `seen`."""
    return [node.variable for node in nodes(loss, seen) if hasattr(node, "variable")]


def check_graph(loss: Tensor) -> None:
    """Raise `ScoreError` if a reentrant checkpoint cuts the graph of `loss`."""
    if is_cut(loss):
        raise ScoreError(
            "this scorer needs the graph of all that runs, and a reentrant checkpoint has none: set use_reentrant=False"
        )


def is_cut(loss: Tensor) -> bool:
    """Whether there is a reentrant checkpoint in the graph, which has none of its own."""
    return any(node.name() == "CheckpointFunctionBackward" for node in nodes(loss))


def nodes(loss: Tensor, seen: Collection[tuple[Any, int]] = ()) -> Iterator[Any]:
    """The operators of the graph of `loss`; one may come several times, once for each of its outputs."""
    waiting, passed = [(loss.grad_fn, 0)], set(seen)
    while waiting:
        edge = waiting.pop()
        if edge[0] is None or edge in passed:
            continue
        passed.add(edge)
        yield edge[0]
        waiting += edge[0].next_functions


def refuse_hidden(names: Collection[str]) -> None:
    """Raise `ScoreError` if there are weights that the loss reads where autograd does not see it."""
    for name in sorted(names):
        raise ScoreError(
            f"{name}: the loss reads it where autograd does not record it (reentrant checkpoint, no_grad, detach), so "
            "its gradient is unknown: set use_reentrant=False, let its layer be recorded, or exclude it"
        )


@contextmanager
def read_without_graph(tensors: Mapping[str, Tensor]) -> Iterator[set[str]]:
    """The names of those of `tensors` that operators within the block read without autograd recording it."""
    found: set[str] = set()
    if not tensors:
        yield found
        return
    try:
        with _Reads(tensors, found):
            yield found
    except NotImplementedError as error:
        if "HigherOrderOperator" not in str(error):
            raise
        raise ScoreError(
            "torch.cond and its like cannot be watched while gradients are taken: use branches of Python"
        ) from error


class _Reads(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own
    """Watches operators that are not in the graph, and those that take values out of it. Views read nothing."""

    def __init__(self, tensors: Mapping[str, Tensor], found: set[str]):
        super().__init__()  # type: ignore[no-untyped-call]  # torch's own
        self._memory, self._found = Memory(tensors), found
        self._names = {id(tensor): name for name, tensor in tensors.items()}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = function(*args, **(kwargs or {}))
        if function in _LEAVING and torch.is_grad_enabled() and args[0].requires_grad:
            self._found.update(self._names[id(leaf)] for leaf in leaves(args[0]) if id(leaf) in self._names)
        if is_copy(function):  # autocast keeps its casts for later uses
            for name in list(self._memory.names(args[0])):
                self._memory.add(name, outputs)
        if reads(function):
            recorded = torch.is_grad_enabled()
            for tensor in arguments_of(args, kwargs or {}):
                if not (recorded and tensor.requires_grad):
                    self._found.update(self._memory.names(tensor))
        return outputs


_LEAVING = (torch.ops.aten.detach.default, torch.ops.aten._local_scalar_dense.default)
"""Operators behind which autograd no longer follows a value."""
