"""Evaluation of a network at a level of its run: a row, made once and kept in the store."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from experiments.configuration.targets import short_name
from experiments.data.examples import take
from experiments.evaluation import AnswerCollector, describe_answers
from experiments.records import FORMAT
from experiments.running.conditions import device_name
from experiments.running.setting import Setting
from experiments.store.identity import EXECUTION, STRUCTURE, code
from experiments.store.networks import Network, finite, load, load_weights
from experiments.tasks import evaluate as evaluate_task
from pruning import Masks
from pruning.cost import cost, latency
from pruning.execution.crossover import processor
from pruning.inputs import Inputs
from pruning.structure import TOLERANCE, remove, verify

_ROW = "row.json"


@dataclass(frozen=True)
class Level:
    """Place of a network in its run: number, round of its chain, density of that round and of the last one."""

    number: int
    round: int
    rounds: int
    density: float | None
    target: float | None

    def __str__(self) -> str:
        rounds = f"round {self.round} of {self.rounds}, " if self.rounds > 1 else ""
        return rounds + ("own density" if self.density is None else f"density {self.density:.4g}")


def evaluate(setting: Setting, network: Network, level: Level, dense_network: Network) -> dict[str, Any]:
    """The row of `network`: asked and got density, costs, validation and test. Test data are seen once a level."""
    removed = network.masks is not None and setting.structured
    seen = setting.only("data.load", "task", "include", "exclude", "latency", after=network.fields)
    identity = {"from": network.key, "format": FORMAT, "removed": removed}
    identity |= code(__name__, without=EXECUTION if removed else (*EXECUTION, *STRUCTURE))
    if setting.config.latency is not None:
        identity |= {"timed on": [processor(), device_name(setting.device), torch.get_num_threads()]}

    def make(folder: Path) -> None:
        (folder / _ROW).write_text(json.dumps(_measure(seen, network, removed), allow_nan=False))

    row = seen.obtain("rows", identity, make).json(_ROW)
    history = network.history
    return {
        "scorer": short_name(setting.config.scorer),
        "model": short_name(setting.config.model),
        "data": setting.config.data["name"],
        "when": setting.config.when,
        "seed": setting.config.seed,
        "level": level.number,
        "round": level.round,
        "rounds": level.rounds,
        "requested_density": level.density if level.density is not None else row["density"],
        "target_density": level.target,
        **dict.fromkeys(("removed_parameters", "removed_bytes", "removed_difference", "latency_ms", "adaptation_ms")),
        **row,
        "epochs": history["epochs"],
        "total_epochs": history["total_epochs"],
        "losses": _losses(history, setting.epoch_steps),
        "seconds": history["seconds"],
        "total_seconds": history["total_seconds"],
        "device": history["device"],
        "threads": history["threads"],
        "processes": history["processes"],
        "sparse": history["sparse"],
        "versions": history["versions"],
        "diverged": history["diverged"],
        "first_loss": history["first_loss"],
        **_adaptation(network),
        "metrics": [metric.as_dict() for metric in setting.task.all_metrics()],
        "control": None,
        "dense": dense_network.key,
        "network": network.key,
    }


def _adaptation(network: Network) -> dict[str, Any]:
    """The columns of an adaptation; null for a network that was trained otherwise."""
    adapted, search = network.adapted or {}, network.search
    columns = ("budget", "trained", "dense", "bytes", "optimizer_bytes", "step_ms", "rate", "filled")
    return {
        **{f"adaptation_{name}": adapted.get(name) for name in columns},
        "adaptation_rates": None if search is None else [list(pair) for pair in search.rates],
        "adaptation_others": list(search.others) or None if search is not None else None,
        "adaptation_search_seconds": None if search is None else search.seconds,
        "adaptation_support_seconds": None if search is None else search.support_seconds,
    }


def _measure(setting: Setting, network: Network, removed: bool) -> dict[str, Any]:
    """Densities, costs and metrics of `network`; also those of the smaller one, where its channels are `removed`.

    Costs are those of the weights, without what is beside them: their macs are not known then.
    """
    adapted = network.adapted
    unmerged = adapted is not None and adapted["method"] is not None
    model = load_weights(setting.new_model(), network).to(setting.device)
    whole = load(setting.new_model(), network).to(setting.device) if unmerged else model
    dense = Masks.dense(setting.prunable(model)).to("cpu")
    held = network.load_masks()
    masks = dense if held is None else held
    counts = cost(model, masks, _inputs(setting, 1))
    masks = Masks({name: masks[name] for name in dense})  # of coupled channels, not biases and norms
    table = masks.table()
    smallest = min(table, key=lambda line: line.density)
    answers = AnswerCollector()
    parts = {"validation": (setting.splits.validation, None), "test": (setting.splits.test, answers.add)}
    metrics = {
        f"{part}_{metric}": finite(value)
        for part, (data, watch) in parts.items()
        for metric, value in evaluate_task(setting.task, whole, data, watch).items()
    }
    return {
        "density": masks.density,
        "prunable": masks.total,
        "kept": masks.kept,
        "parameters": counts.parameters,
        "nonzero": counts.nonzero,
        "dense_macs": counts.dense_macs,
        "macs": None if unmerged else counts.macs,
        "smallest_density": smallest.density,
        "smallest_layer": smallest.name,
        "emptied": list(masks.emptied),
        "layers": [asdict(line) for line in table],
        "bytes": network.stored_bytes(model),
        **metrics,
        **describe_answers(answers.together()),
        # Of a network that diverged no outputs can be compared
        **_measure_small(setting, model, held if removed and network.history["diverged"] is None else None),
        **(_measure_unmerged(setting, model, whole) if unmerged else {}),
    }


def _inputs(setting: Setting, count: int) -> Inputs:
    """The inputs of the model for the first examples of the test part."""
    return setting.task.inputs(take(setting.splits.test, count, setting.device))


def _losses(history: dict[str, Any], epoch_steps: int) -> list[list[float | None]]:
    """Pairs per epoch of this training: its end, in epochs since the initialisation, and its mean loss."""
    end = history["position"] / epoch_steps  # in the order of the data, where a replay begins again
    before = history["total_epochs"] - end
    return [[before + min(epoch["number"] + 1, end), epoch["loss"]] for epoch in history["history"]]


def _measure_small(setting: Setting, model: nn.Module, masks: Masks | None) -> dict[str, Any]:
    """Remove the channels that `masks` removes (None: none), verify the result against the masked network, and measure
    its costs.
    """
    found: dict[str, Any] = {}
    if masks is not None:
        model = model.cpu()
        small = remove(model, masks, setting.structure, verified=False)
        found["removed_difference"] = difference = verify(model, masks, small, setting.structure.inputs)
        if difference > TOLERANCE:
            remove(model, masks, setting.structure)  # raises, and names the place
        model = small.to(setting.device)
        counts = cost(model, None, _inputs(setting, 1))
        found |= {"removed_parameters": counts.parameters, "removed_bytes": counts.stored_bytes}
        found |= {"macs": counts.macs}  # masks do not show what heads that are gone save in products of activations
    batch = setting.config.latency
    if batch is not None:
        found |= {"latency_ms": latency(model, _inputs(setting, batch), seconds=0.5)}
        found |= {"latency_batch": min(batch, len(setting.splits.test))}
    return found


def _measure_unmerged(setting: Setting, model: nn.Module, whole: nn.Module) -> dict[str, Any]:
    """Milliseconds of a forward pass of `whole`, and how many more they are than without what is beside the weights."""
    batch = setting.config.latency
    if batch is None:
        return {}
    inputs = _inputs(setting, batch)
    model, whole = model.to(setting.device), whole.to(setting.device)
    without, together = (latency(each.eval(), inputs, seconds=0.5) for each in (model, whole))
    return {"latency_ms": together, "adaptation_ms": together - without}
