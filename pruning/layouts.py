"""Layouts: which dimensions of a weight number its outputs, and which the inputs of one output.

Most weights are [outputs, inputs, kernel]. The Conv1D of transformers is [inputs, outputs], experts are stacks of
matrices, transposed convolutions begin with their inputs. What competes along the inputs of an output (`PerRow`,
`NofM`, `Blocks`) goes by the layout, which scores bring along as `LaidOut`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from pruning.parameters import experts_in, is_conv1d, storage, unwrapped


@dataclass(frozen=True)
class Layout:
    """How a weight is seen as matrices, one below the other.

    Attributes:
        outputs: the dimensions that number outputs; empty if that is not known. The others, in their order, are the
            inputs of an output.
        stacked: the dimensions that number matrices of their own, as experts are; they count among the outputs.
        groups: into which dimension 0 is split first, a new dimension before it; 0: not at all.
    """

    outputs: tuple[int, ...] = (0,)
    stacked: tuple[int, ...] = ()
    groups: int = 0

    def rows(self, tensor: Tensor) -> Tensor:
        """[outputs, *inputs]: a view of `tensor` where possible."""
        split = self._split(tensor)
        order = self._order(split.dim())
        count = torch.Size(split.shape[dim] for dim in self._outputs).numel()
        return split.permute(order).reshape(count, *(split.shape[dim] for dim in order[len(self._outputs) :]))

    def restored(self, rows: Tensor, shape: torch.Size) -> Tensor:
        """`rows` undone: of the weight's own `shape`, contiguous."""
        split = self._split(torch.empty(shape, device="meta"))
        order = self._order(split.dim())
        whole = rows.reshape([split.shape[dim] for dim in order])
        return whole.permute([order.index(dim) for dim in range(split.dim())]).reshape(shape).contiguous()

    def shape(self, shape: torch.Size) -> torch.Size:
        """The shape of `rows` of a tensor of this `shape`."""
        return self.rows(torch.empty(shape, device="meta")).shape

    def matrix(self, shape: torch.Size) -> torch.Size:
        """The shape of one of the matrices that are stacked."""
        return torch.Size(size for dim, size in enumerate(shape) if dim not in self.stacked)

    @property
    def _outputs(self) -> tuple[int, ...]:
        return (*self.stacked, *self.outputs)

    @property
    def known(self) -> bool:
        """Whether it is known which dimensions are outputs."""
        return bool(self.outputs)

    def _split(self, tensor: Tensor) -> Tensor:
        return tensor.view(self.groups, -1, *tensor.shape[1:]) if self.groups else tensor

    def _order(self, dims: int) -> list[int]:
        return [*self._outputs, *(dim for dim in range(dims) if dim not in self._outputs)]


STANDARD = Layout()


class LaidOut(dict[str, Tensor]):
    """Scores by name, with the layouts of the weights that have another than the standard one."""

    def __init__(self, scores: Mapping[str, Tensor], layouts: Mapping[str, Layout]):
        super().__init__(scores)
        self.layouts = layouts


def layout_of(scores: Mapping[str, Tensor], name: str) -> Layout:
    """The layout that `scores` bring along for a weight; the standard one if they bring none."""
    known: Mapping[str, Layout] = getattr(scores, "layouts", {})
    return known.get(name, STANDARD)


def layouts(model: nn.Module, parameters: Mapping[str, Tensor]) -> dict[str, Layout]:
    """The layouts of those `parameters` of `model` that have another than the standard one."""
    names = {storage(parameter): name for name, parameter in parameters.items()}
    found = {}
    for module in unwrapped(model).modules():
        for own, layout in _layouts_in(module):
            name = names.get(storage(own))
            if name is not None:
                found[name] = layout
    return found


def _layouts_in(module: nn.Module) -> Iterator[tuple[Tensor, Layout]]:
    if isinstance(module, _ConvTransposeNd):
        kernels = (
            p for name, p in module.named_parameters() if "weight" in name and p.dim() == len(module.kernel_size) + 2
        )
        yield from ((kernel, Layout(outputs=(0, 2), groups=module.groups)) for kernel in kernels)
    elif is_conv1d(module):
        yield module._parameters["weight"], Layout(outputs=(1,))  # type: ignore[misc]  # it is there
    else:
        for name, parameter in experts_in(module):
            yield parameter, Layout(outputs=_outputs_of_experts(module, name, parameter), stacked=(0,))


def _outputs_of_experts(module: nn.Module, name: str, parameter: Tensor) -> tuple[int, ...]:
    """(1,) for [experts, outputs, inputs], (2,) for [experts, inputs, outputs], () where the module does not say."""
    attributes: dict[str, Any] = vars(module)
    transposed = attributes.get("is_transposed")
    if isinstance(transposed, bool):
        return (2,) if transposed else (1,)
    sizes = parameter.shape[1], parameter.shape[2]
    if (attributes.get("output_size"), attributes.get("input_size")) == sizes:
        return (1,)
    hidden = attributes.get("hidden_size")
    reads, writes = (any(part in name for part in parts) for parts in (_READING, _WRITING))
    if sizes.count(hidden) != 1 or reads == writes:
        return ()
    return (2,) if (sizes[0] == hidden) == reads else (1,)


_READING, _WRITING = ("gate", "up", "w1", "w3", "wi", "fc1"), ("down", "w2", "wo", "fc2")
"""Parts of the names of matrices that read the hidden states, and of those whose outputs are hidden states."""
