"""Layers that are linear in their weight, as one matrix product: what curvature and activation scorers build on.

Every use of such a layer is, per group, `outputs[:, l] = weight @ columns[:, l]` at positions l: tokens, pixels. So the
gradient of one example is Σ_l rows[:, l] columns[:, l]ᵀ, with `rows` the gradient of the outputs.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvTransposeNd
from torch.utils._python_dispatch import TorchDispatchMode

from pruning.decomposed import module_by_module
from pruning.errors import ScoreError
from pruning.evidence import Evidence, untouched
from pruning.memory import Memory, arguments_of, is_view
from pruning.parameters import check_values, is_conv1d, storage, unwrapped

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_KINDS = (nn.Linear, *_CONVOLUTIONS, *_TRANSPOSED)


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


def linear_modules(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> dict[nn.Module, str]:
    """The modules of `model` that `columns` and `factors` know, and which of `parameters` each multiplies by."""
    names = {storage(parameter): name for name, parameter in parameters.items()}
    found = {}
    for module in unwrapped(model).modules():
        weight = getattr(module, "weight", None)
        if _is_linear_map(module) and isinstance(weight, nn.Parameter) and storage(weight) in names:
            name = names[storage(weight)]
            if weight.shape == parameters[name].shape:  # a transposed view over the same storage is not
                found[module] = name
    return found


def _is_linear_map(module: nn.Module) -> bool:
    """Linear, convolutions and the Conv1D of transformers; subclasses only with the same forward."""
    if is_conv1d(module):
        return type(module).__module__ == "transformers.pytorch_utils"
    return any(isinstance(module, kind) and type(module).forward is kind.forward for kind in _KINDS)


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
def uses(model: nn.Module, modules: Mapping[nn.Module, str], described: bool = False) -> Iterator[Uses]:
    """The uses of the weights of `modules` (module → weight's name) in the forward passes of `model` within the block.

    What a loss does with weights outside of the model, as a penalty does, does not count. With `described`, operators
    are noted too.
    """
    found = Uses(operators=[] if described else None)
    running: list[str | None] = []

    def enter(module: nn.Module, _: Any) -> None:
        running.append(modules.get(module))

    def leave(module: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor], outputs: Tensor) -> Tensor:
        running.pop()
        entered = (inputs[0] if inputs else next(iter(named.values()))).detach()
        found.calls.append(Use(module, entered, outputs, entered._version))
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

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        outputs = function(*args, **kwargs)
        if not self._running:
            return outputs
        tensors = list(arguments_of(args, kwargs))
        if self._found.operators is not None:
            self._describe(function, (*args, *kwargs.items()), tensors, outputs)
        if is_view(function):
            return outputs
        read = {name for tensor in tensors for name in self._memory.names(tensor)}
        if function is torch.ops.aten._to_copy.default:  # autocast keeps its casts for later uses
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
        made = outputs if isinstance(outputs, list | tuple) else (outputs,)
        self._found.by_data |= function is torch.ops.aten._local_scalar_dense.default or not all(
            _is_continuous(tensor) for tensor in (*tensors, *arguments_of(made, {}))
        )


def _is_continuous(tensor: Tensor) -> bool:
    """Whether it holds real or complex numbers, not indices or conditions."""
    return tensor.is_floating_point() or tensor.is_complex()


def modules_with_columns(evidence: Evidence) -> dict[nn.Module, str]:
    """Those of `linear_modules` that `columns` knows: no transposed convolutions."""
    known = linear_modules(evidence.model, evidence.parameters)
    return {module: name for module, name in known.items() if not isinstance(module, _ConvTransposeNd)}


def forward_uses(evidence: Evidence) -> Iterator[tuple[dict[str, list[Use]], float]]:
    """The uses of every prunable weight in one forward pass of a batch, by name, and the batch's weight in a mean.

    One pass of all batches, no gradient. A weight that no data come to, as of an expert without a token, has one use
    without examples at the end. Transposed convolutions are not among the layers: `columns` has none of them.

    Raises:
        ScoreError: no loss, no data, or a weight that no Linear or convolution uses, or something else uses too.
    """
    if evidence.loss is None:
        raise ScoreError("the inputs of layers need a forward pass: give Evidence a loss, which runs the model")
    modules = modules_with_columns(evidence)
    check_values(evidence.parameters)
    _check_used(evidence, modules.values())
    seen: set[str] = set()
    empty = True
    with untouched(evidence.model):
        for batch in evidence.batches:
            empty = False
            with torch.no_grad(), module_by_module(), uses(evidence.local, modules) as found:
                evidence.loss(evidence.local, batch)
            by_name = found.by_name(modules)
            _check_used(evidence, [name for name in evidence.parameters if name not in found.elsewhere - set(by_name)])
            for name in sorted(found.elsewhere):
                raise ScoreError(
                    f"{name}: is also used outside of its module, as by F.linear(x, layer.weight), where its inputs "
                    "are not seen: call the module, or exclude it"
                )
            seen |= by_name.keys()
            yield by_name, evidence.size(batch)
    if empty:
        raise ScoreError(
            "the inputs of layers need data: batches is empty, or could be iterated only once (give a list)"
        )
    unseen = {name: [empty_use(module)] for module, name in modules.items() if name not in seen}
    if unseen:
        yield unseen, 0.0


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


def _check_used(evidence: Evidence, used: Collection[str]) -> None:
    for name in evidence.parameters:
        if name not in used:
            raise ScoreError(f"{name}: no Linear or convolution uses it, so it has no rows of inputs: exclude it")


def columns(module: nn.Module, inputs: Tensor) -> Tensor:
    """What the weight of a Linear or a convolution multiplies: [examples, groups, inputs of a row, positions].

    The order of the inputs of a row is that of its layout's `rows(weight)`.
    """
    if _takes_last(module):
        return inputs.reshape(len(inputs), 1, -1, inputs.shape[-1]).transpose(2, 3)
    assert isinstance(module, _CONVOLUTIONS)
    padded = _padded(module, inputs)
    return _windows(padded, module).reshape(len(inputs), module.groups, -1, _positions(padded, module))


def column_sums(module: nn.Module, inputs: Tensor) -> Tensor:
    """Σ over examples and positions of `columns(module, inputs)`, [groups, inputs of a row], without making them."""
    if _takes_last(module):
        return inputs.reshape(-1, inputs.shape[-1]).sum(0, keepdim=True)
    assert isinstance(module, _CONVOLUTIONS)
    dimensions = len(module.kernel_size)
    windows = _windows(_padded(module, inputs), module)
    return windows.sum((0, *range(-dimensions, 0))).reshape(module.groups, -1)


def factors(module: nn.Module, inputs: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """(rows, columns) with per-example gradient `rows @ columnsᵀ` per group; `gradient` is that of the outputs.

    A transposed convolution is the adjoint of a convolution: inputs and outputs change places. So do they in the weight
    of a Conv1D.
    """
    if _takes_last(module):
        rows = gradient.reshape(len(gradient), 1, -1, gradient.shape[-1]).transpose(2, 3)
        return (columns(module, inputs), rows) if is_conv1d(module) else (rows, columns(module, inputs))
    assert isinstance(module, nn.modules.conv._ConvNd)
    if not isinstance(module, _ConvTransposeNd):
        return gradient.reshape(len(gradient), module.groups, gradient.shape[1] // module.groups, -1), columns(
            module, inputs
        )
    spatial = inputs.shape[2:]
    sides = [int(p) for p in reversed(module.padding)]  # type: ignore[call-overload]  # torch types them as objects
    padded = F.pad(gradient, [side for size in sides for side in (size, size)])
    windows = _windows(padded, module)
    for axis, size in enumerate(spatial, start=windows.dim() - len(spatial)):
        windows = windows.narrow(axis, 0, size)  # output_padding may leave room for one more
    rows = inputs.reshape(len(inputs), module.groups, inputs.shape[1] // module.groups, -1)
    return rows, windows.reshape(len(inputs), module.groups, -1, rows.shape[-1])


def _takes_last(module: nn.Module) -> bool:
    """Whether the weight multiplies the last dimension of the inputs."""
    return isinstance(module, nn.Linear) or is_conv1d(module)


def _padded(module: nn.modules.conv._ConvNd, inputs: Tensor) -> Tensor:
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    return F.pad(inputs, module._reversed_padding_repeated_twice, mode)


def _windows(padded: Tensor, module: nn.modules.conv._ConvNd) -> Tensor:
    """[examples, channels, *kernel, *positions]: what the kernel sees where."""
    dimensions = len(module.kernel_size)
    for axis, (size, step, gap) in enumerate(
        zip(module.kernel_size, module.stride, module.dilation, strict=True), start=2
    ):
        padded = padded.unfold(axis, gap * (size - 1) + 1, step)[..., ::gap]
    kernel = range(2 + dimensions, 2 + 2 * dimensions)
    return padded.permute(0, 1, *kernel, *range(2, 2 + dimensions))


def _positions(padded: Tensor, module: nn.modules.conv._ConvNd) -> int:
    sizes = zip(padded.shape[2:], module.kernel_size, module.stride, module.dilation, strict=True)
    return int(torch.tensor([(length - gap * (size - 1) - 1) // step + 1 for length, size, step, gap in sizes]).prod())
