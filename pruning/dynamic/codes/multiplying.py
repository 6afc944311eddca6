"""Hooks on a model in training: layers read units times their codes, and codes get the gradient of a penalty too."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pruning.dynamic.codes.coding import Coding
from pruning.dynamic.codes.reading import Reader
from pruning.errors import ScheduleError
from pruning.parameters import unwrapped

Codes = Mapping[str, Tensor]
"""Family → the code of each of its units, in [0, 1]."""


class CodedReads:
    """Multiplies what layers read of families by the families' codes, in forward passes of the model itself.

    In training mode, with gradients, they are made by the coding layers of this batch; elsewhere they are `fixed()`.
    The first reader of a family makes its code, and those after it take it. Copies of the model are without codes.
    """

    def __init__(
        self,
        model: nn.Module,
        readers: Sequence[Reader],
        codings: Mapping[str, Coding],
        slices: Mapping[str, slice],
        slope: Callable[[str, Codes], Tensor],
        fixed: Callable[[], Codes | None],
    ):
        """Take part in nothing before `listen`.

        Args:
            model: that of `readers`.
            readers: in the order in which they run.
            codings: by family.
            slices: the units of each family.
            slope: of a penalty by the codes of a family, given all codes of a pass; added to their gradients.
            fixed: codes of passes that do not learn; None: all 1.
        """
        self._model, self._codings, self._slope, self._fixed = unwrapped(model), codings, slope, fixed
        self._readers = [(reader, _Places(reader, slices)) for reader in readers]
        self._removers: list[Callable[[], None]] = []
        self._running: dict[str, Tensor] | None = None  # codes of the pass that is under way, in its graph
        self._values: dict[str, Tensor] = {}  # and out of it: what a graph's hooks hold must not hold the graph
        self._reached: dict[str, Tensor] = {}  # those whose gradients have come since the step before

    def listen(self) -> None:
        """Multiply from now on."""
        self.stop()
        self._removers.append(self._model.register_forward_pre_hook(self._begins()).remove)
        self._removers.append(self._model.register_forward_hook(self._ends()).remove)
        for reader, places in self._readers:
            layer = self._model.get_submodule(reader.layer)
            self._removers.append(layer.register_forward_pre_hook(self._multiplies(layer, reader, places)).remove)

    def stop(self) -> None:
        """Multiply no more."""
        while self._removers:
            self._removers.pop()()
        self._running, self._values, self._reached = None, {}, {}

    def take(self) -> dict[str, Tensor]:
        """The codes of the step, by family, once the loss has been differentiated.

        Raises:
            ScheduleError: no forward pass in training mode went before, or the loss does not depend on a family.
        """
        missing = [name for name in self._codings if name not in self._reached]
        if len(missing) == len(self._codings):
            raise ScheduleError(
                "auto_pruner: no code was made in this step: train the model in training mode, as codes do"
            )
        if missing:
            raise ScheduleError(
                f"auto_pruner: {missing[0]}: the loss of this step does not depend on its units, so their codes cannot "
                "learn: leave the family out (granularity.exclude)"
            )
        found, self._reached = {name: self._reached[name] for name in self._codings}, {}
        return found

    # closures, not methods: a copy of the model has the same hooks, which find that it is not theirs

    def _begins(self) -> Callable[..., None]:
        def hook(module: nn.Module, _: Any) -> None:
            if module is not self._model:
                return
            self._running = None  # of a pass that an error ended
            if not (module.training and torch.is_grad_enabled()):
                return
            if self._reached:
                raise ScheduleError(
                    "auto_pruner: a second forward pass before the optimizer's step: a code is made of the whole "
                    "batch, so do not accumulate gradients over parts of it (training.accumulate=1)"
                )
            self._running, self._values = {}, {}

        return hook

    def _ends(self) -> Callable[..., None]:
        def hook(module: nn.Module, *_: Any) -> None:
            if module is not self._model or self._running is None:
                return
            found, self._running = self._running, None
            for name, coding in self._codings.items():
                if name not in found:
                    raise ScheduleError(
                        f"auto_pruner: {name}: {coding.reader.layer}, of whose inputs its code is made, did not run in "
                        "this forward pass: leave the family out (granularity.exclude)"
                    )

        return hook

    def _multiplies(self, layer: nn.Module, reader: Reader, places: "_Places") -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> Any:
            if module is not layer:
                return None
            codes = self._codes_for(reader, places, args)
            if codes is None:
                return None
            inputs, *others = args
            factors = places.factors(codes).to(inputs.dtype)
            shape = [1] * inputs.dim()
            shape[reader.dim] = -1
            return (inputs * factors.view(shape), *others)

        return hook

    def _codes_for(self, reader: Reader, places: "_Places", args: tuple[Any, ...]) -> Codes | None:
        if not args:
            raise ScheduleError(
                f"auto_pruner: {reader.layer}: called with its inputs by keyword: give them by position"
            )
        learns = self._model.training and torch.is_grad_enabled()
        if self._running is None and not learns:
            return self._fixed()
        if self._running is None or not learns:
            raise ScheduleError(
                f"auto_pruner: {reader.layer}: runs outside of the model's own forward pass, or there without "
                "gradients: call the model itself, and switch gradient checkpointing off"
            )
        for name in places.families:
            if name not in self._running:
                self._make(name, reader, args[0])
        return self._running

    def _make(self, name: str, reader: Reader, inputs: Tensor) -> None:
        coding, codes = self._codings[name], self._running
        assert codes is not None
        if coding.reader is not reader:
            raise ScheduleError(
                f"auto_pruner: {name}: {reader.layer} reads it before {coding.reader.layer}, of whose inputs its code "
                "is made: the forward pass is not the traced one, so leave the family out (granularity.exclude)"
            )
        code, values = coding(inputs), self._values
        codes[name], values[name] = code, code.detach()

        def hook(gradient: Tensor) -> Tensor:
            if name in self._reached:  # a loss that is differentiated in parts has one penalty
                return gradient
            self._reached[name] = values[name]
            return gradient + self._slope(name, values)

        code.register_hook(hook)  # type: ignore[no-untyped-call]  # torch's own


class _Places:
    """Where the codes of families lie along a reader's inputs; what is of none is multiplied by 1."""

    def __init__(self, reader: Reader, slices: Mapping[str, slice]):
        self.families: list[str] = []
        index = torch.full_like(reader.units, -1)
        begin = 0
        for name, units in slices.items():
            own = reader.reads(units)
            if bool(own.any()):
                self.families.append(name)
                index[own] = reader.units[own] - units.start + begin
                begin += units.stop - units.start
        self._index = torch.where(index < 0, begin, index)

    def factors(self, codes: Codes) -> Tensor:
        """[inputs], differentiable by the codes."""
        found = [codes[name] for name in self.families]
        self._index = self._index.to(found[0].device)
        return torch.cat([*found, found[0].new_ones(1)])[self._index]


def check_unwrapped(model: nn.Module) -> None:
    """Raise `ScheduleError` for a model in a wrapper, or compiled: hooks on its layers may not run, or see parts."""
    wrappers = [module for module in model.modules() if unwrapped(module) is not module]
    compiled = [module for module in model.modules() if module._compiled_call_impl is not None]
    for module in (*wrappers, *compiled):
        kind = "torch.compile" if module in compiled or "_orig_mod" in module._modules else type(module).__name__
        raise ScheduleError(
            f"auto_pruner: the model is in {kind}: codes are of whole batches and multiply by hooks on its layers: "
            "train it without"
        )
