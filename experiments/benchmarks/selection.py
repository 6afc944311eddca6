"""python -m experiments.benchmarks.selection: a global mask over 108 M weights, beside PyTorch's own pruning.

Scores have the shapes of BERT-base. Peers: torch.nn.utils.prune.global_unstructured (which adds masks to the
modules), and concatenating all scores and asking kthvalue. Memory is what is needed beside scores and masks.
"""

import argparse
import statistics
from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from experiments.benchmarks.measuring import peak_bytes, show
from pruning import prune
from pruning.execution.timing import in_turn

_DENSITY = 0.1


def bert_base_shapes() -> "OrderedDict[str, tuple[int, int]]":
    """The weight matrices of BERT-base, embeddings included: 108 M weights."""
    shapes: OrderedDict[str, tuple[int, int]] = OrderedDict()
    shapes["embeddings.word"], shapes["embeddings.position"] = (30522, 768), (512, 768)
    for layer in range(12):
        for name in ("query", "key", "value", "output"):
            shapes[f"layer{layer}.{name}"] = (768, 768)
        shapes[f"layer{layer}.up"], shapes[f"layer{layer}.down"] = (3072, 768), (768, 3072)
    return shapes


def with_torch(scores: dict[str, Tensor]) -> list[Tensor]:
    """PyTorch's own way: a mask buffer on every module."""
    modules = []
    for score in scores.values():
        module = nn.Module()
        module.register_parameter("weight", nn.Parameter(score, requires_grad=False))
        modules.append(module)
    parameters = [(module, "weight") for module in modules]
    torch_prune.global_unstructured(parameters, torch_prune.L1Unstructured, amount=1 - _DENSITY)
    return [module.weight_mask for module in modules]


def with_kthvalue(scores: dict[str, Tensor]) -> list[Tensor]:
    """Concatenate, find the threshold, compare."""
    everything = torch.cat([score.view(-1) for score in scores.values()])
    removed = everything.numel() - round(_DENSITY * everything.numel())
    threshold = everything.kthvalue(removed).values
    return [score > threshold for score in scores.values()]


def main() -> None:
    """Run it; see the module's docstring."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3, help="turns of ours and kthvalue (torch's takes one)")
    rounds = parser.parse_args().rounds
    generator = torch.Generator().manual_seed(0)
    scores = {name: torch.randn(shape, generator=generator).abs_() for name, shape in bert_base_shapes().items()}
    total = sum(score.numel() for score in scores.values())
    largest = max(score.numel() for score in scores.values()) * 4

    masks, peak = peak_bytes(lambda: prune(scores, _DENSITY))
    extra = max(0, peak - total)  # a mask is one byte a weight
    exact = masks.kept == round(_DENSITY * total) and _is_top(scores, dict(masks))
    ours = in_turn({"ours": lambda: prune(scores, _DENSITY), "kthvalue": lambda: with_kthvalue(scores)}, rounds)
    theirs = in_turn({"torch": lambda: with_torch(scores)}, 1, warmup=0)
    median = {name: statistics.median(seconds) for name, seconds in (ours | theirs).items()}
    rows = [
        ("pruning.prune", f"{median['ours']:.2f}", "1.0"),
        ("concat + kthvalue", f"{median['kthvalue']:.2f}", f"{median['kthvalue'] / median['ours']:.1f}"),
        ("torch global_unstructured", f"{median['torch']:.2f}", f"{median['torch'] / median['ours']:.1f}"),
    ]
    show(
        f"global mask, {total:,} weights, density {_DENSITY}, {torch.get_num_threads()} threads; "
        f"extra memory {extra / 2**20:.1f} MiB, largest tensor {largest / 2**20:.1f} MiB",
        ("method", "seconds", "times ours"),
        rows,
        {"ratio": round(median["torch"] / median["ours"], 1), "extra_bytes": extra, "exact": exact},
    )


def _is_top(scores: dict[str, Tensor], masks: dict[str, Tensor]) -> bool:
    """Whether the smallest kept score is not below the largest removed one."""
    kept = min(float(score[masks[name]].min()) for name, score in scores.items() if masks[name].any())
    removed = max(float(score[~masks[name]].max()) for name, score in scores.items() if not masks[name].all())
    return kept >= removed


if __name__ == "__main__":
    main()
