"""Synaptic flow: which weights carry the paths through the network, whatever the data."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _NormBase

from pruning.errors import ScoreError, first_line
from pruning.evidence import Evidence, Scores, check_real, laid_out, output_tensor, untouched
from pruning.gradients import check_graph, read_without_graph, refuse_hidden
from pruning.parameters import unwrapped

_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm)


@laid_out
def synflow(evidence: Evidence) -> Scores:
    """|w|·∂R/∂|w| with R = 1ᵀ Π_l |W_l| 1, the output's sum for an input of ones. Tanaka et al. 2020, equation 3.

    float64, never negative. Normalisation layers pass their input on, biases are zero and dropout is off, so without
    other branches every layer's scores add up to R (conservation, theorem 1). Only the shape of the first batch's
    inputs is used. Meant for many rounds (100, exponential): in one it collapses layers as others do.

    Raises:
        ScoreError: no batch to take the shape of the inputs from, inputs that are not floating point, or a flow beyond
            float64.
    """
    model = unwrapped(evidence.model)
    check_real(evidence.parameters, "SynFlow")
    weights = {name: p.detach().abs().double().requires_grad_(True) for name, p in evidence.parameters.items()}
    others = (entry for entry in (*model.named_parameters(), *model.named_buffers()) if entry[0] not in weights)
    state = {name: _positive(name, value) for name, value in others}
    handles = [m.register_forward_hook(_passed_on) for m in model.modules() if isinstance(m, _NORMS)]
    try:
        with untouched(model), torch.enable_grad():
            model.eval()
            run = partial(_run, model, weights, state, _ones(evidence))
            flow, found = run()
            missing = {name: w for (name, w), g in zip(weights.items(), found, strict=True) if g is None}
            if missing:
                with read_without_graph(missing) as hidden:
                    run()
                refuse_hidden(hidden)
    finally:
        for handle in handles:
            handle.remove()
    if not bool(torch.isfinite(flow)):
        raise ScoreError("synflow: the flow through this network is beyond float64: use a narrower or shallower one")
    return {
        name: torch.zeros_like(w).detach() if g is None else g.mul_(w.detach())
        for (name, w), g in zip(weights.items(), found, strict=True)
    }


class _Flow(nn.Module):
    """The sum of a model's outputs and its gradient; within one call, as checkpoints run the model again for it."""

    def __init__(self, inner: nn.Module, weights: list[Tensor]):
        super().__init__()
        self.inner, self._weights = inner, weights

    def forward(self, ones: Tensor) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        flow = output_tensor(self.inner(ones)).sum()
        check_graph(flow)
        return flow, torch.autograd.grad(flow, self._weights, allow_unused=True)


def _run(
    model: nn.Module, weights: dict[str, Tensor], state: dict[str, Tensor], ones: Tensor
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    others = {f"inner.{name}": value for name, value in (state | weights).items()}
    flow = _Flow(model, list(weights.values()))
    try:
        found: tuple[Tensor, tuple[Tensor | None, ...]] = functional_call(flow, others, (ones,))
        return found
    except (RuntimeError, TypeError) as error:
        raise ScoreError(
            f"synflow: the model does not run on one float64 input of shape {list(ones.shape)} ({first_line(error)}): "
            "wrap it in one that does"
        ) from error


def _positive(name: str, value: Tensor) -> Tensor:
    if not value.is_floating_point():
        return value
    value = value.detach().double()
    return torch.zeros_like(value) if "bias" in name.rsplit(".", 1)[-1] else value.abs()


def _passed_on(module: nn.Module, inputs: Any, outputs: Any) -> Any:
    return inputs[0]


def _ones(evidence: Evidence) -> Tensor:
    for batch in evidence.batches:
        parts = [batch] if isinstance(batch, Tensor) else batch.values() if isinstance(batch, dict) else batch
        first = next(iter(parts), None)
        if not isinstance(first, Tensor) or not first.is_floating_point():
            raise ScoreError(
                "synflow: needs floating-point inputs, first in the batch: embeddings have no flow of ones"
            )
        return torch.ones(1, *first.shape[1:], dtype=torch.float64, device=first.device)
    raise ScoreError("synflow: needs one batch for the shape of the inputs: give Evidence batches")
