"""What a network costs: parameters, multiply-accumulates, bytes, and milliseconds on this machine."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pruning.decomposed import decomposed
from pruning.evidence import untouched
from pruning.inputs import Inputs, arguments_for
from pruning.masks import Masks
from pruning.modes import eval_mode
from pruning.parameters import check_values, kernels, named, storage, unwrapped
from pruning.products import copied_mask, flop_formulas, saved


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
    Counted are matrix products and convolutions, those of recurrent layers, Bilinear and experts too; additions, norms
    and activations are not, nor what happens inside operators of other packages. A removed weight is followed through
    views, slices and plain copies of its tensor, so attention projections, tied weights and experts count; not through
    arithmetic, as a parametrization does.
    """
    from torch.utils.flop_counter import FlopCounterMode  # noqa: PLC0415  # slow to import, with triton

    model = unwrapped(model)
    check_values(named(model))
    if masks is not None:
        masks.check(model)
        weights, kept = masks.total, masks.kept
    else:
        weights = kept = sum(parameter.numel() for parameter in kernels(model).values())
    uses = _Saved(named(model), {} if masks is None else masks)
    counter = FlopCounterMode(display=False, custom_mapping=flop_formulas())
    with untouched(model), decomposed(), torch.no_grad(), counter, uses:
        model.eval()
        args, kwargs = arguments_for(model, inputs)
        model(*args, **kwargs)
    dense = counter.get_total_flops() // 2
    parameters = sum({storage(p): p.numel() for p in model.parameters()}.values())
    stored = {storage(t): _bytes(t) for t in (*model.parameters(), *model.buffers())}
    return Cost(
        prunable=weights,
        kept=kept,
        parameters=parameters,
        nonzero=parameters - (weights - kept),
        dense_macs=dense,
        macs=dense - uses.macs,
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
    times: list[float] = []
    spent = 0.0
    with eval_mode(model), torch.inference_mode():
        while len(times) < warmup + repeats or spent < seconds:
            start = perf_counter()
            model(*args, **kwargs)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(perf_counter() - start)
            spent += times[-1] if len(times) > warmup else 0.0
    return 1000 * median(times[warmup:])


def _bytes(tensor: Tensor) -> int:
    """What a tensor takes; of a sparse one its places too."""
    if tensor.layout is torch.strided:
        return tensor.nbytes
    if tensor.layout is torch.sparse_coo:
        return tensor._indices().nbytes + tensor._values().nbytes
    parts = ("crow_indices", "col_indices") if tensor.layout is torch.sparse_csr else ("ccol_indices", "row_indices")
    return tensor.values().nbytes + sum(int(getattr(tensor, part)().nbytes) for part in parts)


class _Saved(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own
    """Adds up, over the products of a forward pass, the uses of removed weights."""

    supports_higher_order_operators = True

    def __init__(self, parameters: Mapping[str, Tensor], masks: Mapping[str, Tensor]):
        super().__init__()  # type: ignore[no-untyped-call]  # torch's own
        self.macs = 0
        self._removed: dict[int, list[tuple[int, Tensor]]] = {}
        self._copies: list[Tensor] = []  # an address is unique only among the living
        for name, mask in masks.items():
            self._know(parameters[name], ~mask.to(parameters[name].device))

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = function(*args, **(kwargs or {}))
        self.macs += saved(function, args, output, self._gone)
        copied = copied_mask(function, args, kwargs or {}, self._gone)
        if copied is not None:
            self._copies.append(output)
            self._know(output, copied)
        return output

    def _know(self, tensor: Tensor, removed: Tensor) -> None:
        # laid out as the tensor is, so that a view of one is the same view of the other
        laid_out = torch.empty_strided(tensor.shape, tensor.stride(), dtype=torch.bool, device=tensor.device)
        laid_out.copy_(removed)
        known = self._removed.setdefault(tensor.untyped_storage().data_ptr(), [])
        known.append((int(tensor.storage_offset()), laid_out))

    def _gone(self, view: Tensor) -> Tensor | None:
        """Which entries of `view` are removed weights."""
        if view.layout is not torch.strided:
            return None
        for start, removed in self._removed.get(view.untyped_storage().data_ptr(), ()):
            offset = view.storage_offset() - start
            if 0 <= offset < removed.untyped_storage().nbytes():
                return removed.as_strided(view.shape, view.stride(), offset)
        return None
