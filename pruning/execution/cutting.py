"""Dead units of layers that stay dense: their products are left out, and nothing else changes.

A layer need not read a unit of which its mask keeps no weight, and need not work out a unit that has no weight left, or
from which no path leads to the output. It gives the bias for these, which still learns where it is read. Weights
stay whole, with gradients of zero where they lead nowhere, as under masks.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pruning.parameters import named, unwrapped, within
from pruning.structure.choosing.dead import unread
from pruning.structure.coupling.structure import Structure

SHARE = 0.5
"""Layers of which more of the products are left stay as they are: gathering what is left costs something too."""


class Cut(nn.Module):
    """What cut layers share: which of their outputs and inputs are left."""

    live_outputs: Tensor
    live_inputs: Tensor
    whole_class: type[nn.Module]

    def live_weight(self) -> Tensor:
        """The weights between what is left."""
        return self.get_parameter("weight").index_select(0, self.live_outputs).index_select(1, self.live_inputs)

    def placed(self, found: Tensor, dim: int, outputs: int) -> Tensor:
        """What was `found` of the outputs that are left, zeros for the others, and the bias for all."""
        shape = list(found.shape)
        shape[dim] = outputs
        whole = found.new_zeros(shape).index_copy(dim, self.live_outputs, found)
        bias = self._parameters["bias"]
        if bias is None:
            return whole
        added = bias if dim == -1 else bias[:, None, None]
        return whole + added.to(whole.dtype)  # which autocast may have chosen


class CutLinear(Cut, nn.Linear):
    """A Linear without the products of dead units."""

    whole_class = nn.Linear

    def forward(self, input: Tensor) -> Tensor:
        """Compute what the whole layer does, without the products of units that lead nowhere."""
        if input.is_nested or input.shape[-1:] != (self.in_features,):
            return super().forward(input)  # which says what is wrong, if anything is
        found = F.linear(input.index_select(-1, self.live_inputs), self.live_weight())
        return self.placed(found, -1, self.out_features)


class CutConv2d(Cut, nn.Conv2d):
    """A convolution without the products of dead channels."""

    whole_class = nn.Conv2d

    def forward(self, input: Tensor) -> Tensor:
        """Compute what the whole layer does, without the products of channels that lead nowhere."""
        if input.dim() not in (3, 4) or input.shape[-3] != self.in_channels:
            return super().forward(input)
        found = self._conv_forward(input.index_select(-3, self.live_inputs), self.live_weight(), None)
        whole = self.placed(found, -3, self.out_channels)
        if input.dim() == 4 and input.is_contiguous(memory_format=torch.channels_last) and not input.is_contiguous():
            whole = whole.contiguous(memory_format=torch.channels_last)  # as the dense layer's would lie
        return whole


def cut_dead(model: nn.Module, masks: Mapping[str, Tensor], structure: Structure | None = None) -> tuple[str, ...]:
    """Let dense Linear layers and convolutions leave out dead units, in place, where half of the products or more go.

    `restore_dead` undoes it. A unit over which a norm keeps statistics is worked out, so that these stay as they were.

    Args:
        model: its other layers may run sparsely.
        masks: of all its weights, those included that run sparsely.
        structure: by which units are known that no path leads from to an output. Give it only if nothing but the
            outputs of the traced pass is looked at: no hooks, no activations put aside, no outputs in training alone.
            None: what a layer's own mask says is left out, which is always right.

    Returns:
        The names of the weights of these layers.
    """
    model = unwrapped(model)
    parameters = named(model)
    live = {id(parameters[name]): mask for name, mask in masks.items() if name in parameters}
    rows = {} if structure is None else _read_rows(structure, masks)
    found = []
    for path, module in model.named_modules():
        name, kind = within(path, "weight"), _kind(module)
        if kind is None:
            continue
        weight = module._parameters["weight"]
        assert weight is not None
        left = live.get(id(weight), torch.ones_like(weight, dtype=torch.bool)).to(weight.device)
        left = left.flatten(2).any(2) if left.dim() > 2 else left
        if name in rows:
            left = left & rows[name].to(weight.device)[:, None]
        outputs, inputs = (left.any(dim).nonzero()[:, 0] for dim in (1, 0))
        if len(outputs) * len(inputs) == 0:
            outputs = inputs = torch.zeros(1, dtype=torch.long, device=weight.device)  # no kernel works on nothing
        if len(outputs) * len(inputs) <= SHARE * left.numel():
            module.__dict__["live_outputs"], module.__dict__["live_inputs"] = outputs, inputs
            module.__class__ = kind
            found.append(name)
    return tuple(found)


def restore_dead(model: nn.Module) -> None:
    """Let cut layers work out all of their units again, in place."""
    for module in unwrapped(model).modules():
        if isinstance(module, Cut):
            module.__class__ = module.whole_class  # type: ignore[assignment]  # it is a cut one no longer
            del module.__dict__["live_outputs"], module.__dict__["live_inputs"]


def _kind(module: nn.Module) -> type[Cut] | None:
    """What `module` becomes when it is cut; exact classes alone, as subclasses may do anything."""
    if module._parameters.get("weight") is None:  # parametrized, or normed in the old way
        return None
    if type(module) is nn.Linear:
        return CutLinear
    return CutConv2d if type(module) is nn.Conv2d and module.groups == 1 else None


def _read_rows(structure: Structure, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weight name -> bool [outputs], those that something reads; of all weights that make units."""
    dead = unread(structure, masks)
    rows = {}
    for name in structure.parameters:
        units = structure.axes[name][0] if structure.axes[name] else None
        if units is not None and (name, 0) in structure.writes:
            gone = np.zeros(len(units), bool)
            gone[units >= 0] = dead[units[units >= 0]]
            rows[name] = torch.from_numpy(~gone)
    return rows
