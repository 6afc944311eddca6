"""Which layers run sparsely: none, all that can, or those where it was measured to be faster."""

from collections.abc import Callable, Collection, Mapping
from contextlib import suppress

import torch
from torch import Tensor, nn

from pruning.copying import cloned
from pruning.errors import StructureError
from pruning.evidence import untouched
from pruning.execution.crossover import Case, Crossover, fastest, of_this_machine
from pruning.execution.product import block_columns
from pruning.execution.switching import candidates
from pruning.inputs import Inputs, copies_for
from pruning.parameters import named, unwrapped

ExecutionPolicy = Callable[[nn.Module, Mapping[str, Tensor], Inputs], Collection[str]]
"""A choice of `layers` for `sparse_execution`: takes a dense model, its masks, and inputs like those it will see."""


def masked(model: nn.Module, masks: Mapping[str, Tensor], inputs: Inputs) -> tuple[str, ...]:
    """Choose no layer."""
    return ()


def sparse(model: nn.Module, masks: Mapping[str, Tensor], inputs: Inputs) -> tuple[str, ...]:
    """Choose every layer that can run sparsely; slower than dense ones where much is kept."""
    return candidates(model, masks)


def auto(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    inputs: Inputs,
    crossover: Crossover | None = None,
) -> dict[str, int]:
    """Choose the layers that run faster sparsely on this machine, by measurements of their shape, density and batch.

    One forward pass shows how many rows or images each layer sees; nothing of the model changes.

    Returns:
        Name of the weight -> up to how many columns MKL's CSR product is the faster one; see `Pattern.few`.

    Args:
        inputs: a batch as large as those to come.
        crossover: what was measured before; None: what this machine's file has, and what is missing is measured.
    """
    crossover = crossover or of_this_machine()
    sizes = _sizes(model, candidates(model, masks), inputs)
    parameters = named(model)
    chosen = {}
    for name, (rows, positions) in sizes.items():
        form = fastest(crossover.speedups(Case.of(masks[name], rows, positions, parameters[name].dtype)))
        if form != "dense":
            chosen[name] = block_columns(rows, positions) if form == "csr" else 0
    return chosen


def _sizes(model: nn.Module, names: tuple[str, ...], inputs: Inputs) -> dict[str, tuple[int, int]]:
    """Rows and no positions, or images and positions, that the layers of these weights multiply in a forward pass.

    The most of several calls; layers that are not called are left out.
    """
    model = unwrapped(model)
    with suppress(StructureError):  # of what cannot be copied, the model itself
        model = cloned(model)  # as it may count its calls, and draw from generators of its own
    parameters = named(model)
    weights = {id(parameters[name]): name for name in names}
    found: dict[str, tuple[int, int]] = {}

    def hook(module: nn.Module, _: object, output: Tensor) -> None:
        name = weights[id(module.weight)]
        outputs = parameters[name].shape[0]
        if isinstance(module, nn.Conv2d):
            positions = output.shape[-2:].numel()
            size = output.numel() // (outputs * positions), positions
        else:
            size = output.numel() // outputs, 0
        found[name] = max(found.get(name, size), size)

    users = [module for module in model.modules() if id(module._parameters.get("weight")) in weights]
    handles = [module.register_forward_hook(hook) for module in users]
    args, kwargs = copies_for(model, inputs)
    try:
        with untouched(model), torch.no_grad():
            model.train()  # in eval mode torch's encoder layers work past their linear modules
            model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return found
