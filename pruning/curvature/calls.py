"""Calls of linear layers: what goes into them and comes out, and what happens to their weights elsewhere."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from pruning.curvature.linear_maps import computes_as_kind, modules_with_columns
from pruning.decomposed import module_by_module
from pruning.errors import ScoreError
from pruning.evidence import Evidence, untouched
from pruning.memory import Memory, arguments_of, is_copy, reads
from pruning.parameters import is_conv1d
from pruning.products import operator_name


@dataclass(frozen=True)
class Use:
    """One call of `module`: what went in (detached) and what came out (in the graph)."""

    module: nn.Module
    inputs: Tensor
    outputs: Tensor
    version: int

    def unchanged(self) -> Tensor:
        """The inputs; an error if somebody has written over them since."""
        if self.inputs._version != self.version:
            raise ScoreError(
                f"{type(self.module).__name__}: its input was changed in place after it was read: "
                "use the out-of-place form of the next operation (inplace=False)"
            )
        return self.inputs


Consume = Callable[[str, Use], None]
"""Takes the name of a weight and one use of it, while the model runs; what it does not keep is freed."""


@dataclass
class Uses:
    """What happened to some weights in the forward passes of a model.

    Attributes:
        calls: of their modules, in their order.
        elsewhere: the names of those that were read outside of their modules too.
        operators: everything that ran, with shapes and settings; None if nobody asks.
        by_data: whether an operator may have gone by the data: with indices, conditions or numbers taken from tensors.
    """

    calls: list[Use] = field(default_factory=list)
    elsewhere: set[str] = field(default_factory=set)
    operators: list[Any] | None = None
    by_data: bool = False

    def by_name(self, modules: Mapping[nn.Module, str]) -> dict[str, list[Use]]:
        """The calls of each weight's modules."""
        found: dict[str, list[Use]] = {}
        for call in self.calls:
            found.setdefault(modules[call.module], []).append(call)
        return found


@contextmanager
def uses(
    model: nn.Module, modules: Mapping[nn.Module, str], described: bool = False, consume: Consume | None = None
) -> Iterator[Uses]:
    """The uses of the weights of `modules` (module → weight's name) in the forward passes of `model` within the block.

    What a loss does with weights outside of the model, as a penalty does, does not count. With `described`, operators
    are noted too. Where `consume` is given, it takes every call in its hook, and none is kept.
    """
    if torch.is_inference_mode_enabled():
        raise ScoreError("inputs of layers cannot be kept in inference_mode: score outside of it")
    found = Uses(operators=[] if described else None)
    running: list[str | None] = []

    def enter(module: nn.Module, _: Any) -> None:
        running.append(modules.get(module))

    def leave(module: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor], outputs: Tensor) -> Tensor:
        entered = (inputs[0] if inputs else next(iter(named.values()))).detach()
        if not computes_as_kind(module, entered, outputs):
            found.elsewhere.add(modules[module])
        running.pop()
        use = Use(module, entered, outputs, entered._version)
        if consume is not None:
            with _disable_current_modes():  # what is computed of the inputs is no operator of the model
                consume(modules[module], use)
            return outputs
        found.calls.append(use)
        return outputs.clone()  # an in-place activation must not write over what is differentiated

    weights = {name: module.get_parameter("weight") for module, name in modules.items()}
    with ExitStack() as stack:
        if model not in modules:
            stack.callback(model.register_forward_pre_hook(enter).remove)
            stack.callback(model.register_forward_hook(lambda *_: running.clear(), always_call=True).remove)
        for module in modules:
            stack.callback(module.register_forward_pre_hook(enter).remove)
            stack.callback(module.register_forward_hook(leave, with_kwargs=True).remove)
        stack.enter_context(_Watch(weights, running, found))
        yield found


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own
    """Notes what operators do while the model is `running`, a list of the weights whose modules are."""

    def __init__(self, weights: Mapping[str, Tensor], running: list[str | None], found: Uses):
        super().__init__()  # type: ignore[no-untyped-call]  # torch's own
        self._memory, self._running, self._found = Memory(weights), running, found
        self.supports_higher_order_operators = not torch.is_grad_enabled()  # their gradients do not bear a watch

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        outputs = function(*args, **kwargs)
        if not self._running:
            return outputs
        tensors = list(arguments_of(args, kwargs))
        if self._found.operators is not None:
            self._describe(function, (*args, *kwargs.items()), tensors, outputs)
        if not reads(function):
            return outputs
        read = {name for tensor in tensors for name in self._memory.names(tensor)}
        if is_copy(function):  # autocast keeps its casts for later uses
            for name in read:
                self._memory.add(name, outputs)
        else:
            self._found.elsewhere |= read - {self._running[-1]}
        return outputs

    def _describe(self, function: Any, args: Any, tensors: list[Tensor], outputs: Any) -> None:
        assert self._found.operators is not None
        shapes = tuple(tensor.shape for tensor in tensors)
        settings = [value for value in args if next(arguments_of((value,), {}), None) is None]
        self._found.operators.append((function, shapes, repr(settings) if settings else ""))
        given, made = ({_is_continuous(t) for t in part} for part in (tensors, arguments_of((outputs,), {})))
        chosen = (False in given and True in made) or len(
            made
        ) > 1  # numbers chosen by indices or conditions, or sorted
        item = function is torch.ops.aten._local_scalar_dense.default
        self._found.by_data |= item or (chosen and operator_name(function) not in _WITHIN_ROWS)


_WITHIN_ROWS = frozenset(("embedding", "masked_fill", "to_copy", "add", "sub", "rsub", "mul", "div"))
"""Operators whose indices and conditions move no row to another's place, as token ids and attention masks do not."""


def _is_continuous(tensor: Tensor) -> bool:
    """Whether it holds real or complex numbers, not indices or conditions."""
    return tensor.is_floating_point() or tensor.is_complex()


def follow_inputs(evidence: Evidence, consume: Consume) -> float:
    """Run all batches, and let `consume` take every use of every prunable weight as it happens; their weight in a mean.

    One pass of all batches, no gradient, and nothing is kept but what `consume` keeps. A weight that no data come to,
    as of an expert without a token, has one use without examples at the end. Transposed convolutions are not among the
    layers: `columns` has none of them.

    Raises:
        ScoreError: no loss, no data, or a weight that no Linear or convolution uses, or something else uses too.
    """
    if evidence.loss is None:
        raise ScoreError("the inputs of layers need a forward pass: give Evidence a loss, which runs the model")
    modules = modules_with_columns(evidence)
    _check_used(evidence.parameters, set(modules.values()))
    seen: set[str] = set()

    def take(name: str, use: Use) -> None:
        seen.add(name)
        consume(name, use)

    total, empty = 0.0, True
    with untouched(evidence.model):
        for batch in evidence.batches:
            empty = False
            with torch.no_grad(), module_by_module(), uses(evidence.local, modules, consume=take) as found:
                evidence.loss(evidence.local, batch)
            for name in sorted(found.elsewhere):
                if name not in seen:
                    _check_used([name], ())
                raise ScoreError(
                    f"{name}: is also used outside of a plain layer, as by F.linear(x, layer.weight) or in a subclass "
                    "that does more, where its inputs are not seen: call such a layer, or exclude it"
                )
            total += evidence.size(batch)
    if empty:
        raise ScoreError(
            "the inputs of layers need data: batches is empty, or could be iterated only once (give a list)"
        )
    with torch.no_grad():
        for module, name in modules.items():
            if name not in seen:
                consume(name, empty_use(module))
    return total


def empty_use(module: nn.Module) -> Use:
    """A use of `module` by no example."""
    weight = module.get_parameter("weight")
    if isinstance(module, nn.modules.conv._ConvNd):
        sizes = zip(module.kernel_size, module.dilation, strict=True)
        shape = [module.in_channels, *(gap * (size - 1) + 1 for size, gap in sizes)]
    else:
        shape = [weight.shape[0] if is_conv1d(module) else weight.shape[1]]
    empty = weight.detach().new_empty(0, *shape)
    return Use(module, empty, empty, empty._version)


def _check_used(names: Iterable[str], used: Collection[str]) -> None:
    for name in names:
        if name not in used:
            raise ScoreError(f"{name}: no Linear or convolution uses it, so its inputs are unknown: exclude it")
