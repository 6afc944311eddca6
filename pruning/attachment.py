"""A pruned weight does not exist: hold masks through training, whatever the optimizer does.

Gradients are masked as soon as they are accumulated, so clipping, scaling and all-reduce see what the removed network
would see. Where weight, gradient and state are zero, the element-wise optimizers of torch.optim leave them zero; so
weights and state are masked at the start, after loading, and where somebody else changed the weights. After steps of
any other optimizer, which may mix entries, weights and state are masked every time.

Masking is a bitwise AND with all ones or all zeros: as fast as a multiplication in the tensor's own dtype, and unlike
it right for infinities, NaN and minus zero.
"""

from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pruning.errors import MaskError

ELEMENTWISE = frozenset(
    getattr(torch.optim, name)
    for name in (
        *("SGD", "Adam", "AdamW", "RMSprop", "Adagrad", "Adadelta", "Adamax", "NAdam", "RAdam", "Rprop", "ASGD"),
        "Adafactor",  # sums over entries scale its updates, but an entry of zeros still gets zero
    )
    if hasattr(torch.optim, name)
)
"""Optimizers that leave an entry at zero while its weight, gradient and state are zero; subclasses are not trusted."""

SEPARATE = frozenset(kind for kind in ELEMENTWISE if kind.__name__ != "Adafactor")
"""Optimizers whose update of an entry depends on that entry alone, so that a vector of some entries trains as these
would in their matrix."""

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Attachment:
    """Masks held on a model's parameters and its optimizers' state until `detach()` or the end of a `with` block."""

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], masks: Mapping[str, Tensor], optimizers: Iterable[Optimizer]
    ):
        """`masks` must fit `parameters`, name by name; `Masks.attach` has checked it. If it fails, nothing is held."""
        self._held = [(parameters[name], _Bits(mask)) for name, mask in masks.items()]
        self._optimizers = tuple(inner for optimizer in optimizers for inner in optimizers_in(optimizer))
        self._removers: list[Callable[[], None]] = []
        try:
            for parameter, bits in self._held:
                self._removers.append(_on_gradient(parameter, bits))
            for optimizer in self._optimizers:
                if _is_watched(optimizer):
                    self._removers.append(optimizer.register_step_pre_hook(self._before_step).remove)
                    self._removers.append(optimizer.register_step_post_hook(self._after_step).remove)
                    self._removers.append(optimizer.register_load_state_dict_post_hook(self._mask_state).remove)
            self.apply_()
        except BaseException:
            self._remove_hooks()
            raise

    @torch.no_grad()
    def apply_(self) -> None:
        """Mask weights, gradients and optimizer state now; call it after writing through `parameter.data`.

        Other changes by hand (in-place operations, `load_state_dict`) are noticed, and masked, at the next step.
        """
        self._mask_weights()
        for parameter, bits in self._held:
            if parameter.grad is not None:
                bits.mask_(parameter.grad)
        for optimizer in self._optimizers:
            self._mask_state(optimizer)

    def detach(self) -> None:
        """Stop holding. Weights and state stay as they are, removed ones zero; calling it again does nothing."""
        if self._removers and self._versions() != self._seen:
            self._mask_weights()
        self._remove_hooks()

    def _remove_hooks(self) -> None:
        while self._removers:
            self._removers.pop()()

    def __enter__(self) -> "Attachment":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()

    def _before_step(self, *_: Any) -> None:
        if self._versions() != self._seen:
            self._mask_weights()
        for parameter, bits in self._held:
            if parameter.grad is not None and _state(parameter.grad) != bits.gradient:
                bits.mask_(parameter.grad)  # clipped or scaled since, or never accumulated but set by hand

    def _after_step(self, optimizer: Optimizer, *_: Any) -> None:
        if _keeps_zeros(optimizer):  # asked each time: hyper-parameters change while training
            self._seen = self._versions()
        else:
            self._mask_weights()
            self._mask_state(optimizer)

    def _versions(self) -> list[tuple[int, int]]:
        return [_state(parameter) for parameter, _ in self._held]

    def _mask_weights(self) -> None:
        for parameter, bits in self._held:
            bits.mask_(parameter.data)
        self._seen = self._versions()

    @torch.no_grad()
    def _mask_state(self, optimizer: Optimizer) -> None:
        """Zero what the optimizer remembers of removed weights: all its state tensors of the parameter's shape."""
        if isinstance(optimizer, torch.optim.LBFGS):
            self._forget_removed(optimizer)
            return
        for parameter, bits in self._held:
            for value in optimizer.state.get(parameter, {}).values():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    bits.mask_(value)

    def _forget_removed(self, optimizer: torch.optim.LBFGS) -> None:
        """Restart the history if it knows a removed weight: its curvatures cannot be taken apart."""
        masks = {id(parameter): bits.mask for parameter, bits in self._held}
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        kept = [masks.get(id(p), torch.ones(p.shape, dtype=torch.bool)) for p in parameters]
        removed = ~torch.cat([mask.reshape(-1).to(parameters[0].device) for mask in kept])
        state = optimizer.state.get(parameters[0], {})
        vectors = [state.get("d"), state.get("prev_flat_grad"), *state.get("old_dirs", ()), *state.get("old_stps", ())]
        if any(vector is not None and bool(vector[removed].any()) for vector in vectors):
            optimizer.state.clear()


def optimizers_in(optimizer: Optimizer) -> tuple[Optimizer, ...]:
    """`optimizer` and those that it wraps, as accelerate's, timm's Lookahead and SAM do, the outermost first.

    Raises:
        MaskError: none of them is a torch.optim.Optimizer whose steps can be watched.
    """
    found = [optimizer]
    for each in found:  # it grows meanwhile
        for inner in (vars(each).get(name) for name in _WRAPPED):
            if isinstance(inner, Optimizer) and all(inner is not known for known in found):
                found.append(inner)
    if not any(_is_watched(each) for each in found):
        raise MaskError(
            f"{type(optimizer).__name__}: its steps cannot be watched: give the torch.optim.Optimizer that it wraps"
        )
    return tuple(found)


_WRAPPED = ("optimizer", "_optimizer", "base_optimizer", "_base_optimizer", "optim")
"""Attributes under which optimizers keep the one that they wrap."""


def _is_watched(optimizer: Optimizer) -> bool:
    """Whether it was made as optimizers are, so that hooks on its steps run; some wrappers were not."""
    return getattr(type(optimizer).step, "hooked", False) and "_optimizer_load_state_dict_post_hooks" in vars(optimizer)


def _keeps_zeros(optimizer: Optimizer) -> bool:
    """Whether a step leaves an entry at zero that has no weight, gradient and state: not if it may divide 0 by 0."""
    if type(optimizer) not in ELEMENTWISE:
        return False
    for group in optimizer.param_groups:
        eps = group.get("eps", 1.0)
        if isinstance(eps, float | int) and eps < 1e-7:
            smallest = 1e-7 if any(p.dtype == torch.float16 for p in group["params"]) else 1e-37
            if eps < smallest:
                return False
    return True


def _state(tensor: Tensor) -> tuple[int, int]:
    """What changes when somebody writes to `tensor`: torch's counter of in-place operations, the address."""
    return tensor._version, tensor.data_ptr()


class _Bits:
    """A mask as integers, all ones or all zeros, as wide as what it is applied to; made again when that changes.

    `gradient` is the state of the parameter's gradient when it was last masked.
    """

    def __init__(self, mask: Tensor):
        self.mask = mask
        self.gradient = (-1, -1)
        self._dtype: torch.dtype | None = None
        self._integer = torch.int32
        self._bits = mask

    def mask_(self, tensor: Tensor) -> None:
        if tensor.dtype is not self._dtype or tensor.device != self._bits.device:
            if tensor.dtype.is_complex or tensor.layout is not torch.strided:
                tensor.mul_(self.mask.to(tensor.device))
                return
            self._dtype, self._integer = tensor.dtype, _INTEGERS[tensor.element_size()]
            self._bits = -self.mask.to(device=tensor.device, dtype=self._integer)
        tensor.view(self._integer).bitwise_and_(self._bits)


def _on_gradient(parameter: nn.Parameter, bits: _Bits) -> Callable[[], None]:
    """Mask the gradient whenever it has been accumulated; a frozen parameter is covered for when it thaws."""

    def hook(accumulated: Tensor) -> None:
        gradient = accumulated.grad
        if gradient is not None:
            bits.mask_(gradient)
            bits.gradient = _state(gradient)

    frozen = not parameter.requires_grad
    if frozen:
        parameter.requires_grad_(True)
    handle = parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]  # torch's own
    if frozen:
        parameter.requires_grad_(False)
    return handle.remove  # type: ignore[no-any-return]  # torch does not annotate its handle
