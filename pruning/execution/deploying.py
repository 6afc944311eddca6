"""The fastest exact form of a pruned network on this machine: smaller where units are dead, sparse where that pays."""

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from statistics import median

import torch
from torch import Tensor, nn

from pruning.copying import cloned
from pruning.errors import ExecutionError, StructureError
from pruning.execution.forms import FORMS, NOISE, Layer, call, in_forms, timed
from pruning.execution.saving import save
from pruning.execution.timing import in_turn
from pruning.inputs import Inputs
from pruning.masks import Masks
from pruning.parameters import unwrapped
from pruning.structure import remove, trace, without_dead
from pruning.structure.removing.verifying import difference

log = logging.getLogger("pruning")

TOLERANCE = 1e-4
"""The largest difference from the masked network, relative to its largest output, that is taken for rounding."""
_ROUNDS = 15
_TOGETHER = 1.2  # by how much one form for all layers may be slower by their single times, and be tried


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
        lines = [f"{'layer':<{width}}  {'matrix':>11}  {'density':>7}" + "".join(f"  {n + ' ms':>9}" for n in FORMS)]
        lines += [
            f"{layer.name:<{width}}  {f'{layer.outputs}x{layer.inputs}':>11}  {layer.density:>7.4f}"
            + "".join(f"  {_shown(layer.milliseconds.get(form)):>9}" for form in FORMS)
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
    convolution is timed in each of its forms (`Layer`) in passes of the network; last, the masked, the smaller, and the
    networks of layers in their fastest forms, or all in one, are timed in turn, and the fastest is it. `model` stays as
    it is. Call what is found without gradients: with them, packed layers run as ordinary ones.

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
    call(masked, example_inputs)  # what is wrong with the inputs is said here
    small, reason = _smaller(masked, masks, example_inputs)
    layers = timed(small, masks, example_inputs)
    choices = _choices(layers)
    forms = {"masked": masked}  # what is smaller goes before it; what is equal is timed once
    if _count(small) < _count(masked):
        forms = {"removed": small} | forms
    columns = {layer.name: layer.columns for layer in layers}
    forms = {name: in_forms(small, masks, choice, columns) for name, choice in choices.items()} | forms
    calls = {name: partial(call, form, example_inputs) for name, form in forms.items()}
    seconds = in_turn(calls, _ROUNDS)
    times = {name: 1000 * median(found) for name, found in seconds.items()}
    best = next(name for name in forms if times[name] <= NOISE * min(times.values()))
    chosen = choices.get(best, {})
    layers = tuple(replace(layer, chosen=chosen.get(layer.name, "dense")) for layer in layers)
    found = difference(model, masks, forms[best], example_inputs)
    if not found <= TOLERANCE:
        raise ExecutionError(
            f"{type(model).__name__}: outputs of the {best} form differ by {found:.2g} of the largest: give "
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
        difference=found,
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


def _choices(layers: Collection[Layer]) -> dict[str, dict[str, str]]:
    """Forms to try together: of each layer the one that was chosen, and one for all where that may be as fast.

    Kernels of one kind find their own code in the caches, which the times of single layers do not show.
    """
    found = {"sparse": {layer.name: layer.chosen for layer in layers if layer.chosen != "dense"}}
    least = sum(min(layer.milliseconds.values()) for layer in layers)
    for form in FORMS[1:]:
        of = {layer.name: form for layer in layers if form in layer.milliseconds}
        if sum(layer.milliseconds.get(form, layer.dense) for layer in layers) <= _TOGETHER * least:
            found[f"all {form}"] = of
    return {name: of for name, of in found.items() if of and (name == "sparse" or of != found["sparse"])}


def _shown(milliseconds: float | None) -> str:
    return "-" if milliseconds is None else f"{milliseconds:.3f}"


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
