"""What a network costs: parameters, multiply-accumulates, bytes, and milliseconds on this machine."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from pruning.decomposed import decomposed
from pruning.evidence import untouched
from pruning.inputs import Inputs, arguments_for
from pruning.masks import Masks
from pruning.parameters import named, prunable, storage, unwrapped


@dataclass(frozen=True)
class Cost:
    """Counts of a masked network.

    Attributes:
        prunable: weights that pruning may touch. `kept`: those that the masks keep.
        parameters: all parameters, each storage once. `nonzero`: those that are not removed; a weight that happens to
            be zero counts as there.
        dense_macs: multiply-accumulates of one forward pass of the example inputs, by torch's counter.
        macs: what remains of them: a removed weight saves one at every position at which it is used.
        stored_bytes: what all parameters and buffers take in a file, each storage once; zeros take as much as others.
    """

    prunable: int
    kept: int
    parameters: int
    nonzero: int
    dense_macs: int
    macs: int
    stored_bytes: int


def cost(model: nn.Module, masks: Masks | None, inputs: Inputs) -> Cost:
    """Count parameters, MACs and bytes of `model` under `masks`; None: with all of its weights, as after a removal.

    `inputs` are a tensor, a tuple of positional or a mapping of keyword arguments (one example for MACs of one).
    Counted are matrix products and convolutions, as torch counts them; additions, norms and activations are not, nor
    what happens inside a fused recurrent kernel or Bilinear. A removed weight is followed through views and slices of
    its tensor, so attention projections and tied weights count; not through copies, as a parametrization makes.
    """
    model = unwrapped(model)
    masks = Masks.dense(prunable(model)) if masks is None else masks
    masks.check(model)
    every = named(model)
    saved = _Saved({name: every[name] for name in masks}, masks)
    with untouched(model), decomposed(), torch.no_grad(), FlopCounterMode(display=False) as counter, saved:
        model.eval()
        args, kwargs = arguments_for(model, inputs)
        model(*args, **kwargs)
    dense = counter.get_total_flops() // 2
    parameters = sum({storage(p): p.numel() for p in model.parameters()}.values())
    stored = {storage(t): t.nbytes for t in (*model.parameters(), *model.buffers())}
    return Cost(
        prunable=masks.total,
        kept=masks.kept,
        parameters=parameters,
        nonzero=parameters - (masks.total - masks.kept),
        dense_macs=dense,
        macs=dense - saved.macs,
        stored_bytes=sum(stored.values()),
    )


def latency(model: nn.Module, inputs: Inputs, *, warmup: int = 3, repeats: int = 15, seconds: float = 0.0) -> float:
    """Milliseconds of one forward pass in eval mode without gradients: the median of `repeats`, after `warmup` more.

    With `seconds`, of as many more as it takes until they lasted so long: what a busy machine does to a small network
    in a few milliseconds is not what it does to it in half a second.

    On as many threads as torch is set to (`torch.get_num_threads()`), which belongs to every number that is reported.
    """
    args, kwargs = arguments_for(model, inputs)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    modes = [(module, module.training) for module in model.modules()]
    times: list[float] = []
    spent = 0.0
    try:
        model.eval()
        with torch.inference_mode():
            while len(times) < warmup + repeats or spent < seconds:
                start = perf_counter()
                model(*args, **kwargs)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                times.append(perf_counter() - start)
                spent += times[-1] if len(times) > warmup else 0.0
    finally:
        for module, training in modes:
            module.training = training
    return 1000 * median(times[warmup:])


class _Saved(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own
    """Adds up, over the products of a forward pass, the uses of removed weights."""

    def __init__(self, parameters: Mapping[str, Tensor], masks: Mapping[str, Tensor]):
        super().__init__()  # type: ignore[no-untyped-call]  # torch's own
        self.macs = 0
        self._removed: dict[int, list[tuple[int, Tensor]]] = {}
        for name, p in parameters.items():
            # laid out as the parameter is, so that a view of one is the same view of the other
            removed = torch.empty_strided(p.shape, p.stride(), dtype=torch.bool, device=p.device)
            removed.copy_(~masks[name].to(p.device))
            self._removed.setdefault(p.untyped_storage().data_ptr(), []).append((int(p.storage_offset()), removed))

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = function(*args, **(kwargs or {}))
        if function in _PRODUCTS:
            first = _PRODUCTS[function]
            left, right = args[first], args[first + 1]
            if function is torch.ops.aten.convolution.default:
                transposed = args[6]
                uses = left.numel() // left.shape[1] if transposed else output.numel() // output.shape[1]
                self.macs += uses * self._gone(right)
            else:
                self.macs += right.shape[-1] * self._gone(left) + left.shape[-2] * self._gone(right)
        return output

    def _gone(self, view: Tensor) -> int:
        """How many entries of `view` are removed weights."""
        for start, removed in self._removed.get(view.untyped_storage().data_ptr(), ()):
            offset = view.storage_offset() - start
            if 0 <= offset < removed.untyped_storage().nbytes():
                return int(removed.as_strided(view.shape, view.stride(), offset).sum())
        return 0


_aten = torch.ops.aten
_PRODUCTS = {
    _aten.mm.default: 0,
    _aten.bmm.default: 0,
    _aten.addmm.default: 1,
    _aten.baddbmm.default: 1,
    _aten.convolution.default: 0,
}
"""The products whose factors may be weights, and where in their arguments the first factor is."""
