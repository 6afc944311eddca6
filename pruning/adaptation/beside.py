"""A sparse update beside layers whose weights cannot be written, as those in four bits: h + (m ⊙ D) x."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pruning.adaptation.freezing import check_free, freeze
from pruning.errors import AdaptationError
from pruning.execution.product import Pattern, product
from pruning.masks import Masks
from pruning.parameters import unwrapped

_OWN = "difference"


class Beside:
    """Differences at a support of linear layers, which is all that is trained of a model, until `detach()`.

    They stay beside the weights: where these can be written, `Tuning` costs less and leaves the layers as they are.
    They are parameters of the layers, named `difference`, so that a `state_dict` of the model has them.
    """

    def __init__(self, model: nn.Module, support: Mapping[str, Tensor]):
        """Put the differences, which begin at 0, beside the layers, and freeze all else.

        Args:
            support: name of a weight, `path.weight` -> bool tensor [outputs, inputs], True = trained. What is at `path`
                takes [..., inputs] and gives [..., outputs]: a Linear, a `FourBitLinear`, one of bitsandbytes.

        Raises:
            AdaptationError: there is no such layer, a mask is of another shape, all are empty, or the model has an
                adaptation already.
        """
        self.model = unwrapped(model)
        modules = dict(self.model.named_modules())
        chosen = {name: mask for name, mask in support.items() if bool(mask.any())}
        if not chosen:
            raise AdaptationError("support: trains nothing: give at least one place")
        for name, mask in chosen.items():
            path, _, own = name.rpartition(".")
            sizes = [getattr(modules.get(path), size, None) for size in ("out_features", "in_features")]
            if own != "weight" or None in sizes:
                raise AdaptationError(f"{name}: is not the weight of a linear layer: leave it out of the support")
            if list(mask.shape) != sizes or mask.dtype != torch.bool:
                raise AdaptationError(f"{name}: has a mask {list(mask.shape)} {mask.dtype}: give a bool tensor {sizes}")
        check_free(self.model)
        self.support = Masks(chosen)
        self.values: dict[str, nn.Parameter] = {}
        self._ends: list[Callable[[], Any]] = []
        for name, mask in chosen.items():
            module = modules[name.rpartition(".")[0]]
            weight: Tensor = module.weight
            kind = torch.promote_types(weight.dtype, torch.float32) if weight.is_floating_point() else torch.float32
            values = nn.Parameter(torch.zeros(int(mask.sum()), dtype=kind, device=weight.device))
            self.values[name] = values
            module.register_parameter(_OWN, values)
            self._ends.append(partial(module._parameters.pop, _OWN))
            hook = partial(_add, pattern=Pattern.of(mask.cpu()))
            self._ends.append(module.register_forward_hook(hook, with_kwargs=True).remove)
        self._ends.append(freeze(self.model, self.values.values(), "differences beside its weights"))

    def parameters(self) -> Iterator[nn.Parameter]:
        """What is trained: vectors of differences, in the order of the places."""
        yield from self.values.values()

    @property
    def count(self) -> int:
        """Number of differences."""
        return sum(values.numel() for values in self.values.values())

    def detach(self) -> None:
        """Take the differences away; the model is as before, and so is what may be trained of it."""
        while self._ends:
            self._ends.pop()()


def _add(
    module: nn.Module, inputs: tuple[Any, ...], named: Mapping[str, Any], outputs: Tensor, pattern: Pattern
) -> Tensor:
    """`outputs` and what the differences make of the input of `module`."""
    values, x = module._parameters[_OWN], (*inputs, *named.values())[0]
    assert values is not None
    rows = x.reshape(-1, x.shape[-1]).to(values.dtype)
    if x.is_cpu and x.numel():
        found = product(rows, values, None, pattern)
    else:
        flat = values.new_zeros(pattern.shape[0] * pattern.shape[1])
        found = F.linear(rows, flat.index_put((pattern.flat().to(values.device),), values).view(pattern.shape))
    return outputs + found.view(outputs.shape).to(outputs.dtype)
