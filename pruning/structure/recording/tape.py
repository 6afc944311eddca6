"""One forward pass, written down: each operator, its arguments, and the module that ran it."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from pruning.decomposed import decomposed
from pruning.evidence import untouched
from pruning.inputs import Inputs, arguments_for, outputs_in, tensors_in
from pruning.structure.recording.shortcuts import shortcut


@dataclass(frozen=True)
class Ref:
    """A tensor among a call's arguments: which value of the tape it is."""

    value: int


@dataclass(frozen=True)
class Call:
    """One ATen operator.

    Attributes:
        operator: its name without overload and underscore, as in "add" for aten::add_.Tensor.
        args, kwargs: as the operator got them, with `Ref` for tensors.
        outputs: the values that it made.
        module: the name of the innermost module that was running; "" is the model itself.
        aliases: for an operator in place, other values in the memory that it writes to: views, and what they are of.
    """

    operator: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outputs: tuple[int, ...]
    module: str
    aliases: tuple[int, ...] = ()

    @cached_property
    def leaves(self) -> tuple[Any, ...]:
        """The arguments, and what is nested in them."""
        found: list[Any] = []

        def look(values: Iterable[Any]) -> None:
            for value in values:
                if isinstance(value, tuple):
                    look(value)
                else:
                    found.append(value)

        look(self.args)
        look(self.kwargs.values())
        return tuple(found)

    @cached_property
    def refs(self) -> tuple[Ref, ...]:
        """The tensors among the arguments."""
        return tuple(value for value in self.leaves if isinstance(value, Ref))


@dataclass
class Tape:
    """The calls of one forward pass, and the shapes of all values in it.

    Attributes:
        abstract: whether it ran on the meta device, without values.
        counted: how many of the calls are of the first pass; a second one, in training mode, may follow.
        shapes: the shape of each value; its type in `dtypes`.
        tensors: parameter or buffer name → its value, each once; `buffers` are the names of buffers.
        constants: values of single numbers that the model's code made, as `torch.tensor(2.0)` does.
        inputs, results: values that came from the caller, and that went back to it.
        read: values on which a result depends; calls that make others are left out of account.
        returned: module name → the tensor that its first call gave.
    """

    calls: list[Call] = field(default_factory=list)
    abstract: bool = False
    counted: int = 0
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    dtypes: list[torch.dtype] = field(default_factory=list)
    tensors: dict[str, int] = field(default_factory=dict)
    buffers: frozenset[str] = frozenset()
    constants: dict[int, float] = field(default_factory=dict)
    inputs: list[int] = field(default_factory=list)
    results: list[int] = field(default_factory=list)
    read: frozenset[int] = frozenset()
    returned: dict[str, int] = field(default_factory=dict)

    def counts(self, call: Call) -> bool:
        """Whether a result depends on what `call` makes."""
        return not self.read.isdisjoint(call.outputs)

    def new(self, tensor: Tensor) -> int:
        """A number for `tensor`."""
        self.shapes.append(tuple(tensor.shape))
        self.dtypes.append(tensor.dtype)
        return len(self.shapes) - 1


class ForwardError(Exception):
    """The model's own forward pass raised `cause`; `module` was running, and `tape` is what ran before."""

    def __init__(self, module: str, tape: Tape, cause: BaseException):
        super().__init__(f"{module or 'the model'}: {cause}")
        self.module, self.tape, self.cause = module, tape, cause


def record(model: nn.Module, inputs: Inputs) -> Tape:
    """The tape of one forward pass of `model` in eval mode; on the meta device if its tensors are there.

    Parameters that it leaves unused may be for training alone, as of auxiliary heads: then a pass in training mode
    follows, if the model can take these inputs there. The model is as before afterwards.

    Raises:
        ForwardError: the forward pass raised.
    """
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    args, kwargs = arguments_for(model, inputs)
    abstract = any(tensor.is_meta for tensor in tensors.values())
    recorder = _Recorder(model)
    recorder.tape.abstract = abstract
    recorder.tape.tensors = {name: recorder.value(tensor) for name, tensor in tensors.items()}
    recorder.tape.buffers = frozenset(name for name, _ in model.named_buffers())
    recorder.tape.inputs = [recorder.value(tensor) for tensor in tensors_in((args, kwargs))]
    with untouched(model), recorder.hooked(), decomposed(), torch.no_grad():
        model.eval()
        recorder.run(model, args, kwargs)
        tape = recorder.tape
        tape.counted = len(tape.calls)
        used = {ref.value for call in tape.calls for ref in call.refs}
        if any(value not in used for name, value in tape.tensors.items() if name not in tape.buffers):
            try:
                model.train(True)
                recorder.run(model, args, kwargs)
            except ForwardError:
                del tape.calls[tape.counted :]
    tape.read = _read(tape)
    return tape


def _read(tape: Tape) -> frozenset[int]:
    """Values that some result depends on, found backwards from the results.

    A call that writes into the memory of other values counts as read, as they may be.
    """
    read = set(tape.results)
    for call in reversed(tape.calls):
        if call.aliases or not read.isdisjoint(call.outputs):
            read.update(call.outputs, (ref.value for ref in call.refs))
    return frozenset(read)


def _memory(tensor: Tensor) -> int:
    """What is the same for a tensor, its views, and what `detach` or `.data` gives; sparse tensors have no views."""
    return int(tensor.untyped_storage()._cdata) if tensor.layout is torch.strided else -id(tensor)


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own
    def __init__(self, model: nn.Module):
        super().__init__()  # type: ignore[no-untyped-call]  # torch's own
        self.tape = Tape()
        self._names = {id(module): name for name, module in model.named_modules()}
        self._running = [""]
        self._values: dict[int, int] = {}
        self._stored: dict[int, list[int]] = {}  # memory → values in it
        self._alive: list[Tensor] = []  # an id is unique only among the living

    def run(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Write down one forward pass."""
        try:
            with self:
                output = model(*args, **kwargs)
        except Exception as error:
            failed = self.module
            self._running = [""]
            raise ForwardError(failed, self.tape, error) from error
        found = [self.value(tensor) for tensor in outputs_in(output)]
        if not found:
            cause = TypeError(f"returns {type(output).__name__} without a tensor in it: return tensors")
            raise ForwardError("", self.tape, cause)
        self.tape.results += found

    @property
    def module(self) -> str:
        return self._running[-1]

    def value(self, tensor: Tensor) -> int:
        known = self._values.get(id(tensor))
        return self._made(tensor) if known is None else known

    def _met(self, tensor: Tensor) -> int:
        """The number of an argument. One that no operator made is a constant of the model's code."""
        new = id(tensor) not in self._values
        number = self.value(tensor)
        if (
            new
            and tensor.numel() == 1
            and tensor.layout is torch.strided
            and not tensor.is_meta
            and not tensor.is_complex()
        ):
            self.tape.constants[number] = tensor.item()
        return number

    def _made(self, tensor: Tensor) -> int:
        number = self._values[id(tensor)] = self.tape.new(tensor)
        self._alive.append(tensor)
        self._stored.setdefault(_memory(tensor), []).append(number)
        return number

    def _given(self, value: Any) -> Any:
        """An argument with `Ref` for tensors, and lists as tuples."""
        if isinstance(value, Tensor):
            return Ref(self._met(value))
        if isinstance(value, list | tuple):
            return tuple(self._given(part) for part in value)
        return value

    def _aliases(self, target: Tensor) -> tuple[int, ...]:
        return tuple(i for i in self._stored[_memory(target)] if self._alive[i] is not target)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is torch.ops.aten._sparse_addmm.default and kwargs.get("beta") == 0:
            return self._product(function, args, kwargs)
        given = self._given(args), {key: self._given(value) for key, value in kwargs.items()}
        aliases: tuple[int, ...] = ()
        name = function.__name__.split(".")[0]
        if name.endswith("_") and not name.endswith("__") and args and isinstance(args[0], Tensor):
            aliases = self._aliases(args[0])
        output = shortcut(function, args)
        if output is None:
            output = function(*args, **kwargs)
        outputs = tuple(self._made(tensor) for tensor in tensors_in(output))
        self.tape.calls.append(Call(name.strip("_"), given[0], given[1], outputs, self.module, aliases))
        return output

    def _product(self, function: Any, args: Any, kwargs: Any) -> Any:
        """Record a sparse product as `mm`: torch adds zeros to it, whose size no code of the model gives."""
        output = function(*args, **kwargs)
        factors = self._given(args[1:3])
        self.tape.calls.append(Call("mm", factors, {}, (self._made(output),), self.module))
        return output

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Keep track of the module that is running."""

        def enter(module: nn.Module, _: Any) -> None:
            self._running.append(self._names.get(id(module), self.module))

        def leave(_: nn.Module, __: Any, output: Any) -> None:
            name = self._running.pop()
            if isinstance(output, Tensor) and id(output) in self._values:
                self.tape.returned.setdefault(name, self._values[id(output)])

        with ExitStack() as stack:
            stack.callback(register_module_forward_pre_hook(enter).remove)
            stack.callback(register_module_forward_hook(leave).remove)
            yield
