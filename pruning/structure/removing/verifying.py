"""Masked against removed: the largest difference, and the module at which it begins."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pruning.copying import cloned
from pruning.errors import PruningError, first_line
from pruning.evidence import untouched
from pruning.inputs import Inputs, copies_for, mapped, outputs_in
from pruning.masks import Masks
from pruning.parameters import unwrapped
from pruning.structure.coupling.cost_terms import Kept, left
from pruning.structure.coupling.structure import Structure
from pruning.structure.removing.deleting import Left, original_name

TOLERANCE = 1e-5
"""The largest relative difference between masked and removed that `remove` accepts."""


_ROUNDING = 1e-9
"""No rounding of float64 is larger."""


@dataclass(frozen=True)
class Verdict:
    """How far a smaller network is from the masked one.

    Attributes:
        difference: what was judged; see `verify`.
        double: whether in float64; else in the model's own precision, at least single.
        failure: why float64 could not decide, where it was asked.
    """

    difference: float
    double: bool = False
    failure: str | None = None


def verify(model: nn.Module, masks: Mapping[str, Tensor], small: nn.Module, inputs: Inputs) -> float:
    """The largest difference between outputs of the masked `model` and of `small`, relative to the largest output.

    Both run in eval mode, half precision in float32, and float32 without TF32. Where rounding of that size is more
    than `TOLERANCE`, as in language models whose hidden states are in the thousands, float64 decides: the difference
    is the one in float64, if both networks run in it. Infinite if the shapes differ, an output is not finite, or there
    is none. Random states are as before. Takes the memory of one copy, in float64 where that decides.
    """
    return judged(model, masks, small, inputs).difference


def judged(model: nn.Module, masks: Mapping[str, Tensor], small: nn.Module, inputs: Inputs) -> Verdict:
    """`verify`, and how it came to its number."""
    found = difference(model, masks, small, inputs)
    if found <= TOLERANCE or not np.isfinite(found):
        return Verdict(found)
    try:
        return Verdict(difference(model, masks, small, inputs, double=True), double=True)
    except (RuntimeError, TypeError, NotImplementedError) as error:  # float32 is written into its code: not accepted
        return Verdict(found, failure=first_line(error))


def difference(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    small: nn.Module,
    inputs: Inputs,
    *,
    double: bool = False,
) -> float:
    """What `verify` gives, in one precision: the model's own, at least single, or float64 (`double`)."""
    expected = _outputs(_masked(model, masks, double), inputs)
    found = _outputs(_copy(small, double), inputs)
    return _largest(expected, found)


def unchanged(before: nn.Module, after: nn.Module, inputs: Inputs) -> bool:
    """Whether `after` runs, with the outputs of `before`, within `TOLERANCE`."""
    expected = _outputs(_copy(before, double=False), inputs)
    try:
        found = _outputs(_copy(after, double=False), inputs)
    except PruningError:
        raise
    except Exception:  # whatever its own code raises: then it does not run
        return False
    return _largest(expected, found) <= TOLERANCE


def first_difference(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    small: nn.Module,
    structure: Structure,
    kept: Kept,
    left_blocks: Left,
    *,
    double: bool = False,
) -> str | None:
    """The first module, in the order in which they end, whose output differs where it is left; None if none does.

    In float64 on request, as in `difference`.
    """
    expected: dict[str, Tensor] = {}  # module name → its output at its first call
    found: dict[str, Tensor] = {}
    _outputs(_masked(model, masks, double), structure.inputs, expected)
    _outputs(_copy(small, double), structure.inputs, found)
    found = {original_name(name, left_blocks): output for name, output in found.items()}
    smaller: str | None = None  # a difference that others, which cancel each other, make a large one
    for name, whole in expected.items():
        value = structure.tape.returned.get(name)
        part = found.get(name)
        if value is None or part is None or not name or whole.is_nested or part.is_nested:
            continue
        for dim, axis in enumerate(structure.labels[value]):
            if axis is not None and part.dim() == whole.dim() and part.shape[dim] < whole.shape[dim]:
                stays = np.flatnonzero(left(structure.unit[axis.labels], kept))
                whole = whole.index_select(dim, torch.from_numpy(stays).to(whole.device))
        here = _difference(whole, part)
        if here > TOLERANCE:
            return name
        if double and here > _ROUNDING:
            smaller = smaller or name
    return smaller


def _masked(model: nn.Module, masks: Mapping[str, Tensor], double: bool) -> nn.Module:
    masked = _copy(model, double)
    Masks(masks).apply_(masked)
    return masked


def _copy(model: nn.Module, double: bool) -> nn.Module:
    """A copy in float64 (`double`) or in at least single precision, in eval mode."""
    found = cloned(unwrapped(model))
    found.eval()
    if double:
        return found.double()
    halves = any(p.dtype in (torch.float16, torch.bfloat16) for p in found.parameters())
    return found.float() if halves else found


def _outputs(model: nn.Module, inputs: Inputs, seen: dict[str, Tensor] | None = None) -> list[Tensor]:
    """Run the model; `seen` gets what each of its modules gave at its first call."""
    wide = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    narrow = (torch.float16, torch.bfloat16, *((torch.float32,) if wide == torch.float64 else ()))
    args, kwargs = mapped(copies_for(model, inputs), lambda x: x.to(wide) if x.dtype in narrow else x)

    def watch(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            if isinstance(output, Tensor) and seen is not None:
                seen.setdefault(name, output.detach().clone())

        return hook

    watched = [] if seen is None else model.named_modules()
    handles = [module.register_forward_hook(watch(name)) for name, module in watched]
    try:
        with torch.no_grad(), untouched(model), _without_tf32():
            torch.manual_seed(0)
            return [part.detach() for part in outputs_in(model(*args, **kwargs))]
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _without_tf32() -> Iterator[None]:
    """Switch TF32 off, which GPUs use for convolutions by default: its ten bits are no ground for a comparison."""
    products, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    if hasattr(cudnn, "conv"):  # torch ≥ 2.9
        settings: list[tuple[Any, str, Any]] = [
            (p, "fp32_precision", "ieee") for p in (products, cudnn.conv, cudnn.rnn)
        ]
    else:
        settings = [(part, "allow_tf32", False) for part in (products, cudnn)]
    before = [getattr(part, name) for part, name, _ in settings]
    try:
        for part, name, value in settings:
            setattr(part, name, value)
        yield
    finally:
        for (part, name, _), value in zip(settings, before, strict=True):
            setattr(part, name, value)


def _largest(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """The largest `_difference` of outputs; infinite if there are none, or not as many."""
    if not expected or len(expected) != len(found):
        return float("inf")
    return max(_difference(a, b) for a, b in zip(expected, found, strict=True))


def _difference(expected: Tensor, found: Tensor) -> float:
    if expected.shape != found.shape:
        return float("inf")
    if torch.equal(expected, found) or not expected.numel():
        return 0.0
    expected, found = expected.double(), found.double()
    largest = float(expected.abs().max())
    difference = float((expected - found).abs().max()) / max(largest, torch.finfo(torch.float32).tiny)
    return difference if np.isfinite(difference) else float("inf")
