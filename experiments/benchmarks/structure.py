"""python -m experiments.benchmarks.structure: remove 30 % of the units of real architectures, and compare.

    python -m experiments.benchmarks.structure torchvision timm transformers --output structure.md
    python -m experiments.benchmarks.structure --models resnet50 vit_b_16

For every model, with random weights: the CPU seconds that `trace` takes (median of three), and those of all (tracing,
choosing, removing: once, without the check), the units that it finds and the share of all parameters in them, 30 % of
each family removed at random, and the relative difference between masked and removed. "right": below 1e-5, and
something could be removed. "refused": a typed error, or nothing to remove without a change. "wrong": anything else.

Beside it torch-pruning with its default arguments, which gets 30 % to remove too, the classifier spared, in a process
of its own with a time limit. Its seconds are of the same work: tracing, choosing, removing. It is held to the same
definition: the network in which all that it removed is zero must compute what the small one does. "right": below 1e-5.
"other values": not, without an error, as where statistics of a normalisation were over channels that are gone. "other
shapes": of the outputs. "runs": it cannot be compared, since weights were changed. Else the error that it raised.
"""

import argparse
import json
import multiprocessing
import signal
import statistics
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import torch
from torch import nn

from experiments.runtime.errors import report_error
from experiments.runtime.extras import missing
from pruning import Masks
from pruning.errors import PruningError
from pruning.structure import TOLERANCE, Structure, remove, trace, verify
from pruning.structure.choosing.channels import unit_masks

try:
    from experiments.benchmarks.structure_models import Maker, disturbed, models, warm_up
except ModuleNotFoundError as error:
    if __name__ == "__main__":
        raise SystemExit(report_error(missing(str(error.name)))) from None
    raise

_SHARE = 0.3
_COLUMNS = (
    *("model", "parameters", "trace s", "units", "heads", "in units", "s", "left", "difference", "verdict"),
    *("kept whole", "torch-pruning s", "torch-pruning left", "torch-pruning"),
)
_GROUPS = ("torchvision", "timm", "transformers")


def ours(make: Maker) -> dict[str, Any]:
    """One model, with us."""
    torch.manual_seed(0)
    model, inputs = make()
    model = disturbed(model)
    count = sum(p.numel() for p in model.parameters())
    row: dict[str, Any] = {"parameters": count}
    try:
        start = process_time()
        structure = trace(model, inputs)
        traced = [process_time() - start]
        row |= {"units": structure.size, "in units": structure.share}
        row |= {"heads": sum(family.kind == "heads" for family in structure.families)}
        row |= {"kept whole": ", ".join(sorted({_kind(model, name) for name in structure.frozen}))}
        if structure.size:
            start = process_time()
            masks = some_removed(structure)
            small = remove(model, masks, structure, verified=False)
            row["s"] = traced[0] + process_time() - start
        for _ in range(2):
            start = process_time()
            trace(model, inputs)
            traced.append(process_time() - start)
        row["trace s"] = statistics.median(traced)
        if not structure.size:
            return row | {"verdict": "refused"}
        difference = verify(model, masks, small, inputs)
    except PruningError as error:
        return row | {"verdict": "refused", "reason": str(error)}
    except Exception as error:  # a crash of ours is what this benchmark is to find
        return row | {"verdict": "wrong", "reason": f"{type(error).__name__}: {error}"}
    row |= {"left": sum(p.numel() for p in small.parameters()) / count, "difference": difference}
    return row | {"verdict": "right" if difference <= TOLERANCE else "wrong"}


def some_removed(structure: Structure) -> Masks:
    """Masks that remove the share of each family, at random, and leave one unit at least."""
    kept = np.ones(structure.size, bool)
    rng = np.random.default_rng(1)
    for family in structure.families:
        gone = min(max(1, round(_SHARE * family.size)), family.size - 1)
        kept[family.first + rng.choice(family.size, gone, replace=False)] = False
    return Masks(unit_masks(structure, kept))


def theirs(group: str, name: str, limit: float) -> dict[str, Any]:
    """The same model with torch-pruning, in a process of its own, that may prune for `limit` CPU seconds."""
    context = multiprocessing.get_context("forkserver")  # which imports all once, not for every model
    context.set_forkserver_preload(["experiments.benchmarks.structure_peer"])
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_judge, args=(group, name, limit, sending))
    process.start()
    sending.close()
    try:
        found: dict[str, Any] = receiving.recv()
    except EOFError:
        process.join()
        found = {"torch-pruning": f"not in {limit:g} s" if process.exitcode == -signal.SIGXCPU else "died"}
    process.join()
    return found


def _judge(group: str, name: str, limit: float, sending: Any) -> None:
    from experiments.benchmarks.structure_peer import judge  # noqa: PLC0415  # the peer alone needs torch-pruning

    judge(group, name, _SHARE, limit, sending)


def _kind(model: nn.Module, name: str) -> str:
    while type(model.get_submodule(name)).__module__.startswith("torch.nn.") and name:
        name = name.rpartition(".")[0]
    return type(model.get_submodule(name)).__name__


def _cells(name: str, row: dict[str, Any]) -> tuple[str, ...]:
    forms = {"parameters": ",", "units": ",", "heads": "d", "difference": ".1e"}
    forms |= dict.fromkeys(("trace s", "s", "torch-pruning s"), ".3f")
    forms |= dict.fromkeys(("in units", "left", "torch-pruning left"), ".1%")
    return (name, *(format(row[c], forms.get(c, "")) if row.get(c) is not None else "" for c in _COLUMNS[1:]))


def _markdown(rows: Sequence[tuple[str, ...]]) -> str:
    aligned = [":--" if c in ("model", "verdict", "kept whole", "torch-pruning") else "--:" for c in _COLUMNS]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (_COLUMNS, aligned, *rows)) + "\n"


def _heading(arguments: argparse.Namespace, counts: dict[str, dict[str, Any]]) -> str:
    """What ran where, and how it ended."""
    names = ("torch", "torchvision", "timm", "transformers", "torch-pruning")
    found = "; ".join(
        f"{group}: {count['right']} right, {count['refused']} refused, {count['wrong']} wrong, "
        f"median trace {count['seconds']} s" + (_peer_words(count["torch-pruning"]) if arguments.limit else "")
        for group, count in counts.items()
    )
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    chosen = [*arguments.groups, *(["--models", *arguments.models] if arguments.models else [])]
    command = " ".join(["python -m experiments.benchmarks.structure", *chosen, f"--limit {arguments.limit:g}"])
    return f"`{command}`, on one thread, with {versions}\n\n{found}\n\n"


def _peer_words(verdicts: Mapping[str, int]) -> str:
    return ", torch-pruning " + ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items())


def main(argv: Sequence[str] | None = None) -> None:
    """Run it; see the module's docstring."""
    parser = argparse.ArgumentParser()
    parser.add_argument("groups", nargs="*", help=f"among {', '.join(_GROUPS)} (default: all)")
    parser.add_argument("--models", nargs="*", help="only these")
    parser.add_argument("--limit", type=float, default=30.0, help="CPU seconds for torch-pruning; 0 leaves it out")
    parser.add_argument("--output", type=Path, help="a Markdown file for the table")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    ours(warm_up)
    rows, counts, reasons = [], {}, {}
    for group in arguments.groups or _GROUPS:
        found = []
        for name, make in models(group):
            if arguments.models and name not in arguments.models:
                continue
            row = (theirs(group, name, arguments.limit) if arguments.limit else {}) | ours(make)
            print(json.dumps({"model": name} | row, default=str), flush=True)
            found.append(row)
            rows.append(_cells(name, row))
            if "reason" in row:
                reasons[name] = row["reason"]
        if found:
            verdicts = [row["verdict"] for row in found]
            counts[group] = {verdict: verdicts.count(verdict) for verdict in ("right", "refused", "wrong")}
            counts[group]["torch-pruning"] = dict(
                Counter(row.get("torch-pruning", "left out") for row in found).most_common()
            )
            counts[group]["seconds"] = round(statistics.median(row.get("trace s", 0.0) for row in found), 3)
    table = _markdown(rows)
    print(table)
    if arguments.output:
        arguments.output.write_text(_heading(arguments, counts) + table)
    for name, reason in reasons.items():
        print(f"{name}: {reason}")
    total = {verdict: sum(count[verdict] for count in counts.values()) for verdict in ("right", "refused", "wrong")}
    print(json.dumps(total | {"seconds": {name: count["seconds"] for name, count in counts.items()}, "groups": counts}))


if __name__ == "__main__":
    main()
