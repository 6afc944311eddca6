"""The fastest exact form of a pruned network on this machine: smaller where units are dead, sparse where that pays."""

import copy
import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from pruning.errors import ExecutionError, StructureError
from pruning.execution.crossover import fastest
from pruning.execution.modules import Sparse, sparsify_
from pruning.execution.packing import pack_, packable
from pruning.execution.product import Pattern, has_csr
from pruning.execution.saving import save
from pruning.execution.switching import candidates, sparse_execution
from pruning.execution.timing import in_turn
from pruning.inputs import Inputs, copies_for
from pruning.masks import Masks
from pruning.parameters import named, unwrapped
from pruning.structure import remove, trace, verify, without_dead
from pruning.structure.tape import cloned

log = logging.getLogger("pruning")

TOLERANCE = 1e-4
"""The largest difference from the masked network, relative to its largest output, that is taken for rounding."""
_FORMS = ("dense", "packed", "sparse", "csr")  # of a layer, the simplest first
_ROUNDS, _LAYER_ROUNDS = 15, 7
_NOISE = 1.02  # of forms that are as fast as each other but for this, the smallest is taken


@dataclass(frozen=True)
class Layer:
    """A layer that can run sparsely, as it was found.

    Attributes:
        name: of its weight.
        outputs, inputs: that are left of the matrix.
        kept: how many of its weights are not zero.
        columns: that each of its sparse products has; see `Pattern.few`.
        dense, packed, sparse, csr: milliseconds of a forward pass on the inputs that it has in the network: dense,
            dense with its weight packed, sparse with products that are bags, and with MKL's. None: there is no such
            form.
        chosen: the name of one of these.
    """

    name: str
    outputs: int
    inputs: int
    kept: int
    columns: int
    dense: float
    packed: float | None
    sparse: float
    csr: float | None
    chosen: str

    @property
    def density(self) -> float:
        """Kept / all that are left."""
        return self.kept / (self.outputs * self.inputs)


@dataclass(frozen=True)
class Deployed:
    """A network in its fastest form, and how that was found.

    Attributes:
        model: in eval mode; an ordinary module.
        layers: those that can run sparsely.
        others: the names of the masked weights that cannot, or that are not used.
        parameters: how many there were, and how many are left with dead units removed.
        kept_structure: why nothing was removed; None if that was possible.
        masked, removed, final: milliseconds of a forward pass: of the masked network, of the smaller one, of `model`.
        speedup: masked / final, the median over turns in which one ran beside the other.
        difference: of the outputs of `model` from the masked ones, relative to the largest.
        threads: on how many threads it was measured.
    """

    model: nn.Module
    layers: tuple[Layer, ...]
    others: tuple[str, ...]
    parameters: tuple[int, int]
    kept_structure: str | None
    masked: float
    removed: float
    final: float
    speedup: float
    difference: float
    threads: int

    def save(self, path: str | PathLike[str]) -> None:
        """Write `model` to a safetensors file, for `pruning.execution.load`."""
        save(self.model, path)

    def __str__(self) -> str:
        """A table of the layers, and the times."""
        width = max([len("layer"), *(len(layer.name) for layer in self.layers)])
        lines = [f"{'layer':<{width}}  {'matrix':>11}  {'density':>7}" + "".join(f"  {n + ' ms':>9}" for n in _FORMS)]
        lines += [
            f"{layer.name:<{width}}  {f'{layer.outputs}x{layer.inputs}':>11}  {layer.density:>7.4f}"
            + "".join(f"  {_shown(getattr(layer, form)):>9}" for form in _FORMS)
            + f"  {layer.chosen}"
            for layer in self.layers
        ]
        lines[0] += "  chosen"
        if self.others:
            few = ", ".join(self.others[:3]) + (", …" if len(self.others) > 3 else "")
            lines.append(f"dense, with zeros: {len(self.others)} other masked weights ({few})")
        before, after = self.parameters
        gone = f"{before - after:,} of {before:,} parameters were of dead units and are removed"
        lines.append(f"structure: {self.kept_structure or gone}")
        lines.append(
            f"milliseconds: masked {self.masked:.2f}, dead units removed {self.removed:.2f}, "
            f"as chosen {self.final:.2f}: {self.speedup:.2f} times faster on {self.threads} thread(s)"
        )
        return "\n".join(lines)


def deploy(model: nn.Module, masks: Mapping[str, Tensor], example_inputs: Inputs) -> Deployed:
    """The form of the masked `model` that is fastest on inputs like these, with the same outputs.

    Units that masks leave without a reader, or without anything to say, are removed; then every masked Linear and 1x1
    convolution is timed in each of its forms (`Layer`) on the inputs that it has in the network, and runs in the
    fastest; last, the masked, the smaller and the network of these layers are timed in turn, and the fastest is it.
    `model` stays as it is. Call what is found without gradients: with them, packed layers run as ordinary ones.

    Args:
        example_inputs: of the size that it is to be fast on.

    Raises:
        MaskError: the masks do not fit.
        ExecutionError: outputs would differ by more than 1e-4 of the largest, or are not finite.
    """
    model = unwrapped(model)
    masks = Masks(masks).joined(model)
    masked = cloned(model).eval()
    masks.apply_(masked)
    _call(masked, example_inputs)  # what is wrong with the inputs is said here
    small, reason = _smaller(masked, masks, example_inputs)
    layers = _timed(small, masks, example_inputs)
    chosen = [layer for layer in layers if layer.chosen != "dense"]
    forms = {"masked": masked}  # what is smaller goes before it; what is equal is timed once
    if _count(small) < _count(masked):
        forms = {"removed": small} | forms
    if chosen:
        forms = {"sparse": _in_forms(small, masks, chosen)} | forms
    calls = {name: partial(_call, form, example_inputs) for name, form in forms.items()}
    seconds = in_turn(calls, _ROUNDS)
    times = {name: 1000 * median(found) for name, found in seconds.items()}
    best = next(name for name in forms if times[name] <= _NOISE * min(times.values()))
    if best != "sparse":
        layers = tuple(replace(layer, chosen="dense") for layer in layers)
    difference = verify(model, masks, forms[best], example_inputs)
    if not difference <= TOLERANCE:
        raise ExecutionError(
            f"{type(model).__name__}: outputs of the {best} form differ by {difference:.2g} of the largest: give "
            "inputs on which the masked network is finite, and in which no two runs differ"
        )
    return Deployed(
        model=forms[best],
        layers=layers,
        others=tuple(name for name in masks if name not in {layer.name for layer in layers}),
        parameters=(_count(masked), _count(masked if best == "masked" else small)),
        kept_structure=reason
        or ("dead units stay: nothing is faster without them" if best == "masked" and "removed" in forms else None),
        masked=times["masked"],
        removed=times.get("removed", times["masked"]),
        final=times[best],
        speedup=median(a / b for a, b in zip(seconds["masked"], seconds[best], strict=True)),
        difference=difference,
        threads=torch.get_num_threads(),
    )


def _smaller(masked: nn.Module, masks: Mapping[str, Tensor], inputs: Inputs) -> tuple[nn.Module, str | None]:
    """The network without dead units, and why there is none."""
    try:
        structure = trace(masked, inputs)
        return remove(masked, without_dead(masked, masks, structure), structure).eval(), None
    except StructureError as error:
        log.warning("dead units stay: %s", error)
        return cloned(masked), f"dead units stay: {error}"


@torch.inference_mode()
def _timed(model: nn.Module, masks: Mapping[str, Tensor], inputs: Inputs) -> tuple[Layer, ...]:
    """Every layer that can run sparsely, timed in each of its forms at its first call."""
    found: dict[str, Layer] = {}
    parameters = named(model)
    if not any(name in parameters for name in masks):  # they went with a whole block
        return ()
    kept = _nonzero(model, masks)
    weights = {id(parameters[name]): name for name in candidates(model, kept)}

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        name = weights[id(module._parameters["weight"])]
        if name not in found:
            found[name] = _measured(name, module, kept[name], args, kwargs)

    users = [module for module in model.modules() if id(module._parameters.get("weight")) in weights]
    handles = [module.register_forward_pre_hook(hook, with_kwargs=True) for module in users]
    try:
        args, kwargs = copies_for(model, inputs)
        model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return tuple(found.values())


def _measured(name: str, module: nn.Module, mask: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Layer:
    inputs = args[0] if args else kwargs["input"]
    weight, outputs = module.get_parameter("weight"), mask.shape[0]
    values = nn.Parameter(weight[mask], requires_grad=False)
    twins = {form: copy.copy(module) for form in _FORMS[1:]}
    if packable(module):
        pack_(twins["packed"])
    else:
        del twins["packed"]
    sparse, csr = twins["sparse"], twins["csr"]
    sparsify_(sparse, values, Pattern.of(mask.flatten(1)))
    assert isinstance(sparse, Sparse)
    columns = sparse.columns(inputs)
    sparsify_(csr, values, Pattern.of(mask.flatten(1), columns))
    if not has_csr():
        del twins["csr"]
    calls = {form: partial(layer.forward, *args, **kwargs) for form, layer in ({"dense": module} | twins).items()}
    seconds = in_turn(calls, _LAYER_ROUNDS)
    gains = {form: median(a / b for a, b in zip(seconds["dense"], seconds[form], strict=True)) for form in twins}
    times = {form: 1000 * median(found) for form, found in seconds.items()}
    return Layer(
        name=name,
        outputs=outputs,
        inputs=mask[0].numel(),
        kept=int(mask.sum()),
        columns=columns,
        dense=times["dense"],
        packed=times.get("packed"),
        sparse=times["sparse"],
        csr=times.get("csr"),
        chosen=fastest(gains),
    )


def _in_forms(model: nn.Module, masks: Mapping[str, Tensor], layers: Collection[Layer]) -> nn.Module:
    """A copy of `model` in which these layers have the forms that were chosen for them."""
    model = cloned(model)
    packed = {id(model.get_parameter(layer.name)) for layer in layers if layer.chosen == "packed"}
    for module in model.modules():
        if id(module._parameters.get("weight")) in packed:
            pack_(module)
    few = {layer.name: layer.columns if layer.chosen == "csr" else 0 for layer in layers if layer.chosen != "packed"}
    if few:
        sparse_execution(model, _nonzero(model, masks), layers=few)
    return model


def _shown(milliseconds: float | None) -> str:
    return "-" if milliseconds is None else f"{milliseconds:.3f}"


def _nonzero(model: nn.Module, names: Collection[str]) -> Masks:
    """What is left in the weights that were masked."""
    return Masks({name: weight.detach() != 0 for name, weight in named(model).items() if name in names})


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _call(model: nn.Module, inputs: Inputs) -> None:
    args, kwargs = copies_for(model, inputs)
    with torch.inference_mode():
        model(*args, **kwargs)
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    if device.type == "cuda":
        torch.cuda.synchronize(device)
