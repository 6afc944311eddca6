"""Attention and recurrent layers as the operators that they consist of, for those who look at each operator."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def module_by_module() -> Iterator[None]:
    """Within, torch's transformer layers call the modules that they consist of, in eval mode too."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


@contextmanager
def decomposed() -> Iterator[None]:
    """Within, attention takes place by matrix products and a softmax, and so do recurrent layers step by step.

    Neither by one fused kernel, nor by one of oneDNN or cuDNN; torch's own choices are put back afterwards.
    """
    kernels: list[Any] = [torch.backends.mkldnn, torch.backends.cudnn]
    before = [kernel.enabled for kernel in kernels]
    try:
        for kernel in kernels:
            kernel.enabled = False
        with module_by_module(), sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        for kernel, enabled in zip(kernels, before, strict=True):
            kernel.enabled = enabled
