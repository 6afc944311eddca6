"""Block influence: how far residual blocks turn what they are given."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from pruning.errors import ScoreError
from pruning.evidence import Evidence, Scores, untouched
from pruning.inputs import tensors_in
from pruning.parameters import unwrapped
from pruning.processes import sum_of


@torch.no_grad()
def block_influence(evidence: Evidence, blocks: Sequence[str], dim: int = -1) -> Scores:
    """Scores of whole blocks, for `Depth`: 1 - E[cos(x, y)], x the input of a block and y its output at a position.

    Men et al. 2024 (ShortGPT), equation 1, in [0, 2]. Every weight of a block has the block's score; weights elsewhere
    have none, so that these scores rank nothing but blocks. One forward pass of all batches, no gradient. All positions
    of all examples weigh the same, padding too.

    Args:
        evidence: with data and a loss, which runs the model.
        blocks: names of modules that give back something of the shape of their first argument, as from `find_blocks`,
            or the layers of a list, as from `pruning.sequential.blocks`.
        dim: the features of a position: the last dimension of tokens, 1 of images [examples, channels, height, width].

    Raises:
        ScoreError: no data; or a block that does not exist, does not run, has no weight that is prunable, or gives
            back something of another shape.
    """
    model = unwrapped(evidence.local)
    modules = dict(model.named_modules())
    totals = {name: [0.0, 0] for name in blocks}  # sum of cosines, positions
    for name in blocks:
        if name not in modules:
            raise ScoreError(f"{name}: is no module of the model: give names from find_blocks")

    entered: dict[str, Tensor | None] = {}

    def enter(name: str) -> Callable[..., None]:
        def hook(_: Any, args: Any, kwargs: Any) -> None:
            found = next(tensors_in((args, kwargs)), None)
            entered[name] = None if found is None else found.clone()  # a block may write into what it gets

        return hook

    def watch(name: str) -> Callable[..., None]:
        def hook(_: Any, args: Any, output: Any) -> None:
            before, after = entered.pop(name), next(tensors_in(output), None)
            if before is None or after is None or before.shape != after.shape:
                raise ScoreError(f"{name}: does not give back the shape of its input: name residual blocks alone")
            found = _cosines(before.double(), after.double(), dim)
            totals[name][0] += float(found.sum())
            totals[name][1] += found.numel()

        return hook

    if evidence.loss is None:
        raise ScoreError("block_influence: runs the loss on the data: give batches and a loss")
    with ExitStack() as stack:
        stack.enter_context(untouched(evidence.model))
        for name in blocks:
            first = modules[name].register_forward_pre_hook(enter(name), with_kwargs=True)
            last = modules[name].register_forward_hook(watch(name))
            stack.callback(first.remove)
            stack.callback(last.remove)
        for batch in evidence.batches:
            evidence.loss(evidence.local, batch)
    scores: Scores = {}
    for name in blocks:
        total, count = (sum_of(evidence.model, number) for number in totals[name])
        if not count:
            raise ScoreError(f"{name}: did not run: give batches that reach it, or leave it out")
        own = [key for key in evidence.parameters if key.startswith(f"{name}.")]
        if not own:
            raise ScoreError(f"{name}: has no prunable weight: include some, or leave it out")
        value = 1 - total / count
        for key in own:
            parameter = evidence.parameters[key]
            scores[key] = torch.full(parameter.shape, value, dtype=torch.float64, device=parameter.device)
    return scores


def _cosines(x: Tensor, y: Tensor, dim: int) -> Tensor:
    """Position by position; 1 where both are zero, 0 where one is."""
    sizes = x.norm(dim=dim) * y.norm(dim=dim)
    same = (x == y).all(dim).double()
    return torch.where(sizes > 0, (x * y).sum(dim) / sizes.clamp(min=torch.finfo(torch.float64).tiny), same)
