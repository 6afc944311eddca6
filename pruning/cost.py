"""What a network costs: parameters and multiply-accumulates, dense and remaining."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pruning.evidence import untouched
from pruning.masks import Masks
from pruning.parameters import named, storage, unwrapped


@dataclass(frozen=True)
class Cost:
    """Counts of a masked network.

    Attributes:
        prunable: weights that pruning may touch. `kept`: those that the masks keep.
        parameters: all parameters, each storage once. `nonzero`: those that are not removed; a weight that happens to
            be zero counts as there.
        dense_macs: multiply-accumulates of one forward pass of the example inputs, by torch's counter.
        macs: what remains of them: a removed weight saves one at every position at which its layer uses it.
    """

    prunable: int
    kept: int
    parameters: int
    nonzero: int
    dense_macs: int
    macs: int


def cost(model: nn.Module, masks: Masks, *example_inputs: Tensor) -> Cost:
    """Count parameters and MACs of `model` under `masks`, for `example_inputs` (give one example for MACs of one).

    Counted are matrix products and convolutions, as torch counts them; additions, norms and activations are not.
    """
    model = unwrapped(model)
    masks.check(model)
    saved = 0
    every = named(model)
    removed = {storage(every[name]): mask for name, mask in masks.items()}
    handles = []

    def watch(uses: Callable[[nn.Module, Any, Any], int], names: tuple[str, ...]) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            nonlocal saved
            for name in names:
                parameter = module._parameters.get(name)
                mask = None if parameter is None else removed.get(storage(parameter))
                if mask is not None:
                    saved += uses(module, inputs, output) * int((~mask).sum())

        return hook

    for module in model.modules():
        for kind, names, uses in _USES:
            if isinstance(module, kind):
                handles.append(module.register_forward_hook(watch(uses, names)))
                break
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the counter cannot see into torch's fused attention
    try:
        with untouched(model), torch.no_grad(), FlopCounterMode(display=False) as counter:
            model.eval()
            model(*example_inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for handle in handles:
            handle.remove()
    dense = counter.get_total_flops() // 2
    parameters = sum({storage(p): p.numel() for p in model.parameters()}.values())
    kept = masks.kept
    gone = masks.total - kept
    return Cost(masks.total, kept, parameters, parameters - gone, dense, dense - saved)


def _rows_out(module: nn.Module, inputs: Any, output: Any) -> int:
    return int(output.numel() // max(1, output.shape[-1]))


def _positions_out(module: nn.Module, inputs: Any, output: Any) -> int:
    return int(output.numel() // max(1, int(module.out_channels)))  # type: ignore[arg-type]


def _positions_in(module: nn.Module, inputs: Any, output: Any) -> int:
    return int(inputs[0].numel() // max(1, int(module.in_channels)))  # type: ignore[arg-type]


_USES: tuple[tuple[Any, tuple[str, ...], Callable[[nn.Module, Any, Any], int]], ...] = (
    (nn.modules.conv._ConvTransposeNd, ("weight",), _positions_in),
    (nn.modules.conv._ConvNd, ("weight",), _positions_out),
    (nn.Linear, ("weight",), _rows_out),
)
"""How often a layer uses each of its weights in a pass. Attention projections and recurrent layers are not broken down,
so what torch counts of them counts as dense; Bilinear, fused attention products and fused recurrent kernels it does not
count at all."""
