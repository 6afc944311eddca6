"""python -m experiments.benchmarks.selection: 10⁴ to 10⁸ weights, in 1 to 10,000 tensors, beside the usual ways.

The peers of global selection concatenate all scores and ask torch.topk, or np.partition, for the smallest that stays;
their masks must be equal to ours. Tensors of one line have sizes as 1 : 2 : 4, in random order. In the shapes of
BERT-base the peers are torch.nn.utils.prune.global_unstructured, torch.topk of rows and of groups of four, and LAMP by
a stable sort. Medians of turns, the garbage collector off as in timeit, each line printed when it is measured. Memory
is what is needed beside scores and results.
"""

import argparse
import gc
import json
import statistics
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from experiments.benchmarks.measuring import peak_bytes, rounded
from pruning import Evidence, prune, scorers
from pruning.allocation import NofM, PerRow
from pruning.execution.timing import in_turn

_DENSITY = 0.1

Scores = dict[str, Tensor]


def bert_base_shapes(width: int = 768) -> dict[str, tuple[int, int]]:
    """The weight matrices of BERT-base, embeddings included: 109 M weights; or of a narrower one."""
    shapes = {"embeddings.word": (30522 * width // 768, width), "embeddings.position": (512 * width // 768, width)}
    for layer in range(12):
        for name in ("query", "key", "value", "output"):
            shapes[f"layer{layer}.{name}"] = (width, width)
        shapes[f"layer{layer}.up"], shapes[f"layer{layer}.down"] = (4 * width, width), (width, 4 * width)
    return shapes


def grid_shapes(size: int, tensors: int) -> dict[str, tuple[int, int]]:
    """`tensors` matrices, of about `size` weights together."""
    weights = np.random.default_rng(0).permutation(np.resize([1, 2, 4], tensors))
    shapes = {}
    for i, elements in enumerate(np.maximum(1, size * weights // weights.sum()).tolist()):
        rows = next(rows for rows in (64, 16, 4, 1) if elements >= rows * rows)
        shapes[f"layer{i}.weight"] = (rows, elements // rows)
    return shapes


def drawn(shapes: Mapping[str, tuple[int, int]]) -> Scores:
    """Normal weights of those shapes, without their sign."""
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator).abs_() for name, shape in shapes.items()}


def with_topk(scores: Scores) -> Scores:
    """Concatenate, and ask torch for those that stay."""
    flat = torch.cat([score.reshape(-1) for score in scores.values()])
    keep = round(_DENSITY * flat.numel())
    threshold = flat.topk(keep, sorted=False).values.min()
    mask = flat >= threshold
    if int(mask.sum()) > keep:  # of equal scores the first stay
        mask = flat > threshold
        mask[(flat == threshold).nonzero().view(-1)[: keep - int(mask.sum())]] = True
    return _cut(mask, scores)


def with_partition(scores: Scores) -> Scores:
    """Concatenate, and ask NumPy for the smallest that stays."""
    flat = torch.cat([score.reshape(-1) for score in scores.values()]).numpy()
    keep = round(_DENSITY * flat.size)
    threshold = np.partition(flat, flat.size - keep)[flat.size - keep]
    mask = flat >= threshold
    if np.count_nonzero(mask) > keep:
        mask = flat > threshold
        mask[np.flatnonzero(flat == threshold)[: keep - np.count_nonzero(mask)]] = True
    return _cut(torch.from_numpy(mask), scores)


def _cut(mask: Tensor, scores: Scores) -> Scores:
    parts = mask.split([score.numel() for score in scores.values()])
    return {name: part.view_as(score) for (name, score), part in zip(scores.items(), parts, strict=True)}


def with_torch(scores: Scores) -> Scores:
    """PyTorch's own way: a mask buffer on every module."""
    modules = {}
    for name, score in scores.items():
        modules[name] = nn.Module()
        modules[name].register_parameter("weight", nn.Parameter(score, requires_grad=False))
    parameters = [(module, "weight") for module in modules.values()]
    torch_prune.global_unstructured(parameters, torch_prune.L1Unstructured, amount=1 - _DENSITY)
    return {name: module.weight_mask for name, module in modules.items()}


def topk_of_rows(scores: Scores, keep: Callable[[int], int], length: int | None) -> Scores:
    """`keep` of the length of a row stay in each; equal scores in any order."""
    masks = {}
    for name, score in scores.items():
        rows = score.view(-1, length or score.shape[1])
        kept = rows.topk(keep(rows.shape[1]), dim=1, sorted=False).indices
        masks[name] = torch.zeros_like(rows, dtype=torch.bool).scatter_(1, kept, True).view_as(score)
    return masks


def lamp_by_sort(weights: Scores) -> Scores:
    """Its definition: a stable sort of the squares of each tensor, and their sums."""
    scores = {}
    for name, weight in weights.items():
        ordered, order = weight.view(-1).double().square().sort(descending=True, stable=True)
        scores[name] = torch.empty_like(ordered).scatter_(0, order, ordered / ordered.cumsum(0)).view_as(weight)
    return scores


def main() -> None:
    """Run it; see the module's docstring."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", type=int, nargs="*", default=[10**4, 10**5, 10**6, 10**7, 10**8])
    parser.add_argument("--tensors", type=int, nargs="*", default=[1, 10, 100, 1000, 10_000])
    parser.add_argument("--width", type=int, default=768, help="of the BERT")
    parser.add_argument("--rounds", type=int, default=3, help="turns; more where one is short")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(
        f"global masks, density {_DENSITY}, {arguments.threads} threads; milliseconds, ratio to the best peer",
        flush=True,
    )
    _line("weights", "tensors", "prune", "cat + topk", "np.partition", "ratio", "extra MiB", "equal")
    grid = [
        _grid_row(size, tensors, arguments.rounds)
        for size in arguments.sizes
        for tensors in arguments.tensors
        if tensors <= size
    ]
    shapes = bert_base_shapes(arguments.width)
    print(f"\nshapes of BERT-base, {sum(a * b for a, b in shapes.values()):,} weights; seconds, ratio to the peer")
    _line("selection", "", "ours", "peer", "", "ratio", "extra MiB", "exact")
    bert = _bert_rows(drawn(shapes), arguments.rounds)
    rows = [*grid, *bert.values()]
    print(
        json.dumps(
            {
                "largest_ratio": max((row["ratio"] for row in grid), default=None),
                "ratio": {name: row["ratio"] for name, row in bert.items()},
                "seconds": {name: row["ours"] for name, row in bert.items()},
                "extra_bytes": bert["global"]["extra"],
                "exact": all(row["exact"] for row in rows),
            }
        )
    )


def _grid_row(size: int, tensors: int, rounds: int) -> dict[str, Any]:
    scores = drawn(grid_shapes(size, tensors))
    total = sum(score.numel() for score in scores.values())
    masks, extra = _peak(lambda: prune(scores, _DENSITY), total)
    equal = _equal(with_topk(scores), masks) and _equal(with_partition(scores), masks)
    del masks
    calls = {
        "ours": lambda: prune(scores, _DENSITY), "topk": lambda: with_topk(scores),
        "partition": lambda: with_partition(scores),
    }  # fmt: skip
    median = _medians(calls, rounds * max(1, min(40, 2 * 10**6 // (total + 100 * tensors))))
    ratio = median["ours"] / min(median["topk"], median["partition"])
    milliseconds = [f"{seconds * 1e3:,.3f}" for seconds in median.values()]
    _line(f"{total:,}", f"{tensors:,}", *milliseconds, f"{ratio:.2f}", f"{extra / 2**20:.1f}", str(equal))
    return {"ratio": rounded(ratio), "exact": equal}


def _bert_rows(scores: Scores, rounds: int) -> dict[str, dict[str, Any]]:
    parameters = {name: nn.Parameter(score, requires_grad=False) for name, score in scores.items()}
    evidence = Evidence(nn.Module(), parameters)
    total = sum(score.numel() for score in scores.values())

    def half(masks: Mapping[str, Tensor], length: int | None) -> bool:
        return all(_is_top_of_rows(score, masks[name], length) for name, score in scores.items())

    cases: dict[str, tuple[Any, Any, Any, int]] = {
        "global": (
            lambda: prune(scores, _DENSITY), lambda: with_torch(scores),
            lambda masks: _equal(with_partition(scores), masks), 1,
        ),
        "half of each row": (
            lambda: prune(scores, 0.5, allocation=PerRow()), lambda: topk_of_rows(scores, lambda n: n // 2, None),
            lambda masks: half(masks, None), 1,
        ),
        "2 of every 4": (
            lambda: prune(scores, None, allocation=NofM(2, 4)), lambda: topk_of_rows(scores, lambda n: n // 2, 4),
            lambda masks: half(masks, 4), 1,
        ),
        "LAMP scores": (
            lambda: scorers.lamp(evidence), lambda: lamp_by_sort(scores),
            lambda found: _equal(lamp_by_sort(scores), found), 8,
        ),
    }  # fmt: skip
    found = {}
    for name, (ours, peer, check, result_bytes) in cases.items():
        result, extra = _peak(ours, result_bytes * total)
        exact = check(result)
        del result
        median = _medians({"ours": ours, "peer": peer}, rounds)
        ratio = median["ours"] / median["peer"]
        seconds = [f"{value:.2f}" for value in median.values()]
        _line(name, "", *seconds, "", f"{ratio:.3f}", f"{extra / 2**20:.1f}", str(exact))
        found[name] = {"ratio": rounded(ratio), "ours": rounded(median["ours"]), "extra": extra, "exact": exact}
    return found


def _medians(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    gc.disable()
    try:
        return {name: statistics.median(seconds) for name, seconds in in_turn(calls, rounds, warmup=1).items()}
    finally:
        gc.enable()


def _peak(call: Callable[[], Any], result_bytes: int) -> tuple[Any, int]:
    """The result, and the bytes needed beside it."""
    result, peak = peak_bytes(call)
    return result, max(0, peak - result_bytes)


def _line(first: str, *others: str) -> None:
    print(f"{first:>16}" + "".join(f"{other:>13}" for other in others), flush=True)


def _equal(expected: Scores, found: Mapping[str, Tensor]) -> bool:
    return expected.keys() == found.keys() and all(
        torch.equal(tensor, found[name]) for name, tensor in expected.items()
    )


def _is_top_of_rows(score: Tensor, mask: Tensor, length: int | None) -> bool:
    """Whether half of each row is kept, and no removed score is above a kept one."""
    rows, kept = (tensor.view(-1, length or score.shape[1]) for tensor in (score, mask))
    smallest, largest = rows.masked_fill(~kept, torch.inf).amin(1), rows.masked_fill(kept, -torch.inf).amax(1)
    return bool((smallest >= largest).all()) and bool((kept.sum(1) == rows.shape[1] // 2).all())


if __name__ == "__main__":
    main()
