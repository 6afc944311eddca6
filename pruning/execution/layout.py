"""Which sparse layers may hand on their outputs features first, which saves copies: found by trying it."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from pruning.copying import cloned
from pruning.errors import StructureError
from pruning.evidence import untouched
from pruning.execution.modules import SparseLinear
from pruning.inputs import Inputs, copies_for, outputs_in
from pruning.parameters import unwrapped


def features_first(model: nn.Module, inputs: Inputs) -> tuple[str, ...]:
    """The paths of the sparse layers whose outputs of small batches another sparse layer takes features first.

    None if the model does not run so, as where a `view` needs an output row by row; nor if it gives other outputs
    so, as with dropout, whose noise follows the layout; nor if its outputs would lie in another way than they do. Tried
    on a copy, in training and in eval mode.
    """
    try:
        copy = cloned(unwrapped(model))
    except StructureError:  # it cannot be copied, and a trial of the model itself might leave traces
        return ()
    layers = {name: module for name, module in copy.named_modules() if isinstance(module, SparseLinear)}
    if not layers or any(isinstance(module, _DropoutNd) for module in copy.modules()):
        return ()
    wanted = _handed_on(copy, layers, inputs)
    if wanted and _alike(copy, [layers[name] for name in wanted], inputs):
        return tuple(sorted(wanted))
    return ()


def _handed_on(model: nn.Module, layers: dict[str, SparseLinear], inputs: Inputs) -> set[str]:
    """The layers whose output comes to the next one as it was left, but for element-wise operations."""
    calls: list[tuple[str, bool]] = []  # and whether the input lies features first
    names = {module: name for name, module in layers.items()}

    def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        assert isinstance(module, SparseLinear)
        lies_so = bool(args) and args[0].dim() == 2 and not args[0].is_contiguous() and args[0].t().is_contiguous()
        calls.append((names[module], lies_so))

    for layer in layers.values():
        layer.row_major = False
    handles = [layer.register_forward_pre_hook(hook) for layer in layers.values()]
    try:
        _outputs(model, inputs, training=True)
    except RuntimeError:  # torch's word for a view that cannot be
        return set()
    finally:
        for handle in handles:
            handle.remove()
        for layer in layers.values():
            layer.row_major = True
    others = {name for (name, _), (_, lies_so) in pairwise(calls) if not lies_so} | {name for name, _ in calls[-1:]}
    return {name for name, _ in calls} - others


def _alike(model: nn.Module, layers: list[SparseLinear], inputs: Inputs) -> bool:
    """Whether outputs are the same, and lie the same way, when these layers hand theirs on features first."""
    for training in (True, False):
        expected = _outputs(model, inputs, training)
        for layer in layers:
            layer.row_major = False
        try:
            found = _outputs(model, inputs, training)
        except RuntimeError:
            return False
        finally:
            for layer in layers:
                layer.row_major = True
        if not all(
            a.stride() == b.stride() and torch.allclose(a.float(), b.float(), rtol=1e-3, atol=1e-4)
            for a, b in zip(expected, found, strict=True)
        ):
            return False
    return True


def _outputs(model: nn.Module, inputs: Inputs, training: bool) -> list[Tensor]:
    """Run the model with a fixed seed, as dropout draws random numbers."""
    args, kwargs = copies_for(model, inputs)
    with untouched(model), torch.no_grad():
        torch.manual_seed(0)
        return outputs_in(model.train(training)(*args, **kwargs))
