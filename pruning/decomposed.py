"""Attention as the operators that it consists of, not as one fused kernel: for those who look at each operator."""

from collections.abc import Iterator
from contextlib import contextmanager

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
    """Within, attention takes place by matrix products and a softmax; torch's own choice is put back afterwards."""
    with module_by_module(), sdpa_kernel(SDPBackend.MATH):
        yield
