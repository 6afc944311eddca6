"""Which layers read units: where a factor for each unit does to a network what removing units does in the end.

Whatever lies between the layers that make a unit and those that read it (norms, activations, pooling, residual sums,
depthwise convolutions), a unit whose inputs to all its readers are zero is gone: masks zero the same weights.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from pruning.errors import GranularityError
from pruning.parameters import is_conv1d
from pruning.structure.coupling.families import Family
from pruning.structure.coupling.labels import Array
from pruning.structure.coupling.structure import Structure
from pruning.structure.recording.tape import Tape

_SPACE = {nn.Conv1d: 1, nn.ConvTranspose1d: 1, nn.Conv2d: 2, nn.ConvTranspose2d: 2, nn.Conv3d: 3, nn.ConvTranspose3d: 3}
_SAME_ORDER = ("view", "unsafe_view", "clone", "alias", "detach")


@dataclass(frozen=True)
class Reader:
    """A Linear or a convolution, and what its inputs are.

    Attributes:
        layer: its name.
        dim: the dimension of its inputs along which units lie: 1 of convolutions, -1 of Linear.
        units: [inputs], int64: the unit of each, -1 where it is none of the chosen families; of a Linear whose inputs
            were flattened, one channel after the other.
        shape: [channels, *space] of one example; of a Linear's inputs as they were before they were flattened.
    """

    layer: str
    dim: int
    units: Tensor
    shape: tuple[int, ...]

    def reads(self, units: slice) -> Tensor:
        """[inputs]: which of its inputs are one of `units`."""
        found: Tensor = (self.units >= units.start) & (self.units < units.stop)
        return found

    def examples(self, inputs: Tensor) -> Tensor:
        """`inputs` as [examples, *shape]; all positions of a Linear's inputs that were not flattened are examples.

        Raises:
            GranularityError: they have other sizes than those with which the model was traced.
        """
        flat = self.dim == -1
        found = tuple(inputs.shape[-1:] if flat else inputs.shape[1:])
        if found != ((math.prod(self.shape),) if flat else self.shape):
            raise GranularityError(
                f"{self.layer}: its inputs are {list(inputs.shape)}, those traced had {list(self.shape)} an example: a "
                "code is made of inputs of one size, so crop, pad or resize them to that of the traced ones"
            )
        return inputs.reshape(-1, *self.shape)


def readers(model: nn.Module, structure: Structure, families: Sequence[Family]) -> list[Reader]:
    """The layers that read units of `families`, in the order in which they run.

    Raises:
        GranularityError: units that something else than a Linear or a convolution reads, or that nothing does.
    """
    wanted = np.zeros(structure.size, bool)
    for family in families:
        wanted[family.units] = True
    found: dict[str, tuple[int, Reader]] = {}
    for family in families:
        slots = [slot for slot in family.members if slot in structure.reads]
        if not slots or bool(structure.summed_elsewhere[family.units].any()):
            why = "other operators than layers sum over its units" if slots else "no layer reads its units"
            raise GranularityError(_refused(family.name, why))
        for name, dim in slots:
            layer = name.partition(".parametrizations.")[0] if ".parametrizations." in name else name.rpartition(".")[0]
            if layer not in found:
                found[layer] = _reader(model, structure, family.name, layer, wanted)
            units = structure.axes[name][dim]
            own = found[layer][1].units.numpy()
            assert units is not None
            if not np.isin(units[(units >= family.first) & (units < family.units.stop)], own).all():
                raise GranularityError(_refused(family.name, f"{layer} reads it otherwise than as its inputs"))
    return [reader for _, reader in sorted(found.values(), key=lambda entry: entry[0])]


def _reader(model: nn.Module, structure: Structure, family: str, layer: str, wanted: Array) -> tuple[int, Reader]:
    """When `layer` runs for the first time, as the number of a call; and what it reads there."""
    module = model.get_submodule(layer)
    space = next((dims for kind, dims in _SPACE.items() if isinstance(module, kind)), None)
    if space is None and not (isinstance(module, nn.Linear) or is_conv1d(module)):
        raise GranularityError(_refused(family, f"{layer}, a {type(module).__name__}, reads it"))
    source = _source(structure.tape, layer)
    if source is None:
        raise GranularityError(_refused(family, f"{layer} reads it, but is not called as a module"))
    number, value = source
    shape = structure.tape.shapes[value]
    if space is not None and len(shape) != space + 2:
        raise GranularityError(_refused(family, f"{layer} reads it in inputs without a dimension of examples"))
    dim = -1 if space is None else 1
    axis = structure.labels[value][dim]
    units = np.full(shape[dim], -1, np.int64) if axis is None else structure.unit[axis.labels]
    example = shape[1:] if space is not None else _before_flattening(structure, value, units)
    chosen = np.where((units >= 0) & wanted[units], units, -1)
    return number, Reader(layer, dim, torch.from_numpy(chosen), tuple(example))


def _source(tape: Tape, layer: str) -> tuple[int, int] | None:
    """The first call of `layer`, and the first value in it that is neither a tensor of the model nor made within."""
    known = set(tape.tensors.values())
    for number, call in enumerate(tape.calls):
        if call.module == layer:
            for ref in call.refs:
                if ref.value not in known:
                    return number, ref.value
        if call.module == layer or call.module.startswith(f"{layer}."):
            known.update(call.outputs)
    return None


def _before_flattening(structure: Structure, value: int, units: Array) -> tuple[int, ...]:
    """[channels, *space] of which the last dimension of `value` is made; [features] if it is of nothing."""
    tape, shape = structure.tape, structure.tape.shapes[value]
    makers = {output: call for call in tape.calls for output in call.outputs}
    source = value
    while len(shape) == 2 and (call := makers.get(source)) is not None and call.operator in _SAME_ORDER:
        source = call.refs[0].value
        before, axes = tape.shapes[source], structure.labels[source]
        if 3 <= len(before) <= 5 and before[0] == shape[0] and axes[1] is not None:
            repeated = np.repeat(structure.unit[axes[1].labels], math.prod(before[2:]))
            if np.array_equal(repeated, units):
                return before[1:]
    return shape[-1:]


def _refused(family: str, why: str) -> str:
    return (
        f"{family}: {why}, and codes multiply the inputs of Linear layers and convolutions: leave it out "
        f"(Channels(exclude='{family}'), granularity.exclude=[{family}])"
    )
