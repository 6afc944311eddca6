"""A pruned weight does not exist: hold masks through training, whatever the optimizer does.

Gradients are masked as soon as they are accumulated, so clipping, scaling and all-reduce see what the removed network
would see; after every step the weights are masked, so nothing that mixes entries brings one back; optimizer state is
masked when it could remember a removed weight: at the start, after loading, and, for optimizers other than torch's
own, after every step. (torch's own keep a zero moment at zero while weight and gradient are zero.)

Masking is a bitwise AND with all ones or all zeros: as fast as a multiplication in the tensor's own dtype, and unlike
it right for infinities, NaN and minus zero.
"""

from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Attachment:
    """Masks held on a model's parameters and its optimizers' state until `detach()` or the end of a `with` block."""

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], masks: Mapping[str, Tensor], optimizers: Iterable[Optimizer]
    ):
        """`masks` must fit `parameters`, name by name; `Masks.attach` has checked it."""
        self._held = [(parameters[name], _Bits(mask)) for name, mask in masks.items()]
        self._optimizers = tuple(optimizers)
        self._removers: list[Callable[[], None]] = []
        for parameter, bits in self._held:
            self._removers.append(_on_gradient(parameter, bits))
        for optimizer in self._optimizers:
            self._removers.append(optimizer.register_step_post_hook(self._after_step).remove)
            self._removers.append(optimizer.register_load_state_dict_post_hook(self._mask_state).remove)
        self.apply_()

    @torch.no_grad()
    def apply_(self) -> None:
        """Mask weights, gradients and optimizer state now; call it after changing weights by hand."""
        self._mask_weights()
        for parameter, bits in self._held:
            if parameter.grad is not None:
                bits.mask_(parameter.grad)
        for optimizer in self._optimizers:
            self._mask_state(optimizer)

    def detach(self) -> None:
        """Stop holding. Weights and state stay as they are; calling it again does nothing."""
        while self._removers:
            self._removers.pop()()

    def __enter__(self) -> "Attachment":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, *_: Any) -> None:
        self._mask_weights()
        if not type(optimizer).__module__.startswith("torch.optim."):
            self._mask_state(optimizer)

    def _mask_weights(self) -> None:
        for parameter, bits in self._held:
            bits.mask_(parameter.data)

    @torch.no_grad()
    def _mask_state(self, optimizer: Optimizer) -> None:
        """Zero what the optimizer remembers of removed weights: all its state tensors of the parameter's shape."""
        for parameter, bits in self._held:
            for value in optimizer.state.get(parameter, {}).values():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    bits.mask_(value)


class _Bits:
    """A mask as integers, all ones or all zeros, as wide as what it is applied to; made once per width and device."""

    def __init__(self, mask: Tensor):
        self._mask = mask
        self._made: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def mask_(self, tensor: Tensor) -> None:
        if tensor.layout != torch.strided or tensor.dtype.is_complex:
            tensor.mul_(self._mask.to(tensor.device))
            return
        integer = _INTEGERS[tensor.element_size()]
        bits = self._made.get((integer, tensor.device))
        if bits is None:
            bits = -self._mask.to(device=tensor.device, dtype=integer)
            self._made[(integer, tensor.device)] = bits
        tensor.view(integer).bitwise_and_(bits)


def _on_gradient(parameter: nn.Parameter, bits: _Bits) -> Callable[[], None]:
    """Mask the gradient whenever it has been accumulated; a frozen parameter is covered for when it thaws."""

    def hook(accumulated: Tensor) -> None:
        if accumulated.grad is not None:
            bits.mask_(accumulated.grad)

    frozen = not parameter.requires_grad
    if frozen:
        parameter.requires_grad_(True)
    handle = parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]  # torch's own
    if frozen:
        parameter.requires_grad_(False)
    return handle.remove  # type: ignore[no-any-return]  # torch does not annotate its handle
