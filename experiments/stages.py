"""Dense, prune, recover, evaluate: each idempotent, its artefact addressed by what determines it.

Every identity holds the key of what it starts from, so a chain of keys is the history of a network; scorers that share
a seed share the dense network, and a repeated command finds everything made.
"""

import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.configuration import built, short_name
from experiments.networks import MASKS, WEIGHTS, Network, finite, load, save
from experiments.records import FORMAT
from experiments.seeding import generator, seeded
from experiments.setting import Setting
from experiments.sources import digests
from experiments.store import Artefact
from experiments.training import evaluate as measured
from experiments.training import train
from pruning import Evidence, Masks
from pruning import prune as selected
from pruning.cost import cost
from pruning.errors import ScoreError
from pruning.evidence import Scores

log = logging.getLogger("experiments")
_ROW = "row.json"


@dataclass(frozen=True)
class Level:
    """Where in a run a network stands: its number, the round of its chain, the density of that round and of the end."""

    number: int
    round: int
    rounds: int
    density: float | None
    target: float | None


Scoring = Callable[[Network], Scores]


def initial(setting: Setting) -> Network:
    """The network at its initialisation."""
    identity = _part(setting, "model") | {"seed": setting.config["seed"]}

    def make(folder: Path) -> None:
        save(folder, setting.new_model(), None, [], 0.0, None)

    return Network(setting.store.obtain("initial", identity, make))


def dense(setting: Setting) -> Network:
    """The network trained without masks; all scorers of a sweep share it."""
    start = initial(setting)
    epochs = setting.config["training"]["epochs"]
    identity = {"from": start.key, "epochs": epochs} | _training_part(setting)
    recipe = setting.recipe(epochs, setting.learning_rate)
    return Network(_trained(setting, "dense", identity, start, None, recipe, "dense"))


def score(setting: Setting, network: Network) -> Scores:
    """The scores of `network` under its masks, for the weights that may be pruned."""
    scorer = built("scorer", setting.config["scorer"])
    evidence = _evidence(setting, _loaded(setting, network), network.load_masks())
    with seeded(setting.config["seed"], "scoring noise"):
        scores = scorer(evidence)
    _check_scores(setting.config["scorer"]["_target_"], scores, evidence.parameters)
    found: Scores = scores
    return found


def _evidence(setting: Setting, model: nn.Module, masks: Masks | None) -> Evidence:
    """`model`, of whose weights `masks` are alive, with the examples that scorers see."""
    config, device = setting.config["scoring"], setting.accelerator.device
    model.to(device).train(config["mode"] == "train")
    examples = setting.splits.train
    count = len(examples) if config["examples"] is None else min(config["examples"], len(examples))
    chosen = torch.randperm(len(examples), generator=generator(setting.config["seed"], "scoring"))[:count]
    batches = [
        (examples.inputs[part].to(device), examples.targets[part].to(device))
        for part in chosen.split(config["batch_size"])
    ]
    initial = setting.prunable(setting.new_model())
    alive = None if masks is None else masks.to(device)
    return Evidence(model, setting.prunable(model), batches, _cross_entropy, alive, initial)


def _check_scores(scorer: str, scores: Any, parameters: Mapping[str, Tensor]) -> None:
    """Exactly the prunable tensors: with fewer or more, "density" would speak of something else."""
    if not isinstance(scores, Mapping):
        raise ScoreError(f"{scorer}: returned a {type(scores).__name__}: return a dict, parameter name -> tensor")
    for name in scores.keys() ^ parameters.keys():
        which = "no score for" if name in parameters else "a score for something that is not prunable:"
        raise ScoreError(f"{scorer}: {which} {name}: score exactly evidence.parameters, or set include and exclude")
    for name, score in scores.items():
        if not isinstance(score, Tensor) or score.shape != parameters[name].shape:
            what = f"shape {list(score.shape)}" if isinstance(score, Tensor) else type(score).__name__
            raise ScoreError(
                f"{scorer}: the score of {name} has {what}: return a tensor of shape {list(parameters[name].shape)}"
            )


def prune(setting: Setting, network: Network, density: float | None, scoring: Scoring) -> Network:
    """`network` with masks of `density`, within those it has."""
    parts = _part(setting, "scorer", "scoring", "granularity", "allocation", "include", "exclude")
    seed = setting.config["seed"]
    identity = {"from": network.key, "density": density, "seed": seed, "data": _data(setting, "load")} | parts

    def make(folder: Path) -> None:
        granularity = built("granularity", setting.config["granularity"])
        allocation = built("allocation", setting.config["allocation"])
        masks = selected(scoring(network), density, granularity, allocation, within=network.load_masks())
        masks.to("cpu").save(folder / MASKS)

    return Network(network.weights, setting.store.obtain("masks", identity, make))


def recover(setting: Setting, network: Network) -> Network:
    """`network` under its masks: what stays is compensated if asked for, then trained as `recovery` says.

    Fine-tuned, retrained, or not at all (0 epochs).
    """
    config = setting.config["recovery"]
    how = {"epochs": config["epochs"], "learning_rate schedule": config["learning_rate"]}
    identity = {"from": network.key, "recovery": how} | _training_part(setting)
    if setting.config["compensate"]:
        identity |= _part(setting, "compensate", "scoring", "include", "exclude")
    last = config["learning_rate"] == "last"
    factor = setting.last_learning_rate if last else setting.learning_rate
    # fine-tuning goes on where the order of the data ended; a replay sees the data as training saw them
    first_epoch = network.history["total_epochs"] if last else 0
    recipe = setting.recipe(config["epochs"], factor, first_epoch)
    title = f"{short_name(setting.config['scorer'])}, recovery"
    weights = _trained(setting, "recovered", identity, network, network.load_masks(), recipe, title)
    return Network(weights, network.masks)


def evaluate(setting: Setting, network: Network, level: Level, dense_network: Network) -> dict[str, Any]:
    """The row of `network`: asked and got density, costs, validation and test. Test data are seen once a level."""
    identity = {"from": network.key, "format": FORMAT, "data": _data(setting, "load")}
    identity |= _part(setting, "include", "exclude")

    def make(folder: Path) -> None:
        model = _loaded(setting, network).to(setting.accelerator.device)
        held = network.load_masks()
        masks = Masks.dense(setting.prunable(model)).to("cpu") if held is None else held
        example = setting.splits.test.inputs[:1].to(setting.accelerator.device)
        counts = cost(model, masks, example)
        table = masks.table()
        smallest = min(table, key=lambda line: line.density)
        validation, test = measured(model, setting.splits.validation), measured(model, setting.splits.test)
        row = {
            "density": masks.density,
            "prunable": counts.prunable,
            "kept": counts.kept,
            "parameters": counts.parameters,
            "nonzero": counts.nonzero,
            "dense_macs": counts.dense_macs,
            "macs": counts.macs,
            "smallest_density": smallest.density,
            "smallest_layer": smallest.name,
            "emptied": list(masks.emptied),
            "layers": [asdict(line) for line in table],
            "bytes": sum(network.weights.size(name) for name in (WEIGHTS, MASKS) if network.weights.has(name)),
            "validation_accuracy": validation.accuracy,
            "validation_loss": finite(validation.loss),
            "test_accuracy": test.accuracy,
            "test_loss": finite(test.loss),
        }
        (folder / _ROW).write_text(json.dumps(row, allow_nan=False))

    row = setting.store.obtain("rows", identity, make).json(_ROW)
    history = network.history
    return {
        "scorer": short_name(setting.config["scorer"]),
        "model": short_name(setting.config["model"]),
        "data": setting.config["data"]["name"],
        "when": setting.config["when"],
        "seed": setting.config["seed"],
        "level": level.number,
        "round": level.round,
        "rounds": level.rounds,
        "requested_density": level.density if level.density is not None else row["density"],
        "target_density": level.target if level.target is not None else row["density"],
        **row,
        "epochs": history["epochs"],
        "total_epochs": history["total_epochs"],
        "seconds": history["seconds"],
        "total_seconds": history["total_seconds"],
        "threads": history["threads"],
        "versions": history["versions"],
        "dense": dense_network.key,
        "network": network.key,
    }


def _loaded(setting: Setting, network: Network) -> nn.Module:
    return load(setting.new_model(), network)


def _trained(
    setting: Setting, kind: str, identity: dict[str, Any], start: Network, masks: Masks | None, recipe: Any, title: str
) -> Artefact:
    def make(folder: Path) -> None:
        compensating = masks is not None and setting.config["compensate"]
        model = _compensated(setting, start, masks) if compensating else _loaded(setting, start)
        if kind == "dense":
            log.info("seed %s: training the dense network, %s epochs", setting.config["seed"], recipe.epochs)
        began = time.perf_counter()
        progress = setting.progress(f"seed {setting.config['seed']}, {title}")
        history = train(
            model, setting.splits.train, setting.splits.validation, recipe, setting.accelerator, masks, progress
        )
        seconds = time.perf_counter() - began
        save(folder, model.to("cpu"), masks, [asdict(epoch) for epoch in history], seconds, start)

    return setting.store.obtain(kind, identity, make)


def _compensated(setting: Setting, network: Network, masks: Masks) -> nn.Module:
    """The model after the removal, its other weights moved in closed form to make up for it."""
    before = Network(network.weights)
    held = Masks.load(before.weights.file(MASKS)) if before.weights.has(MASKS) else None
    evidence = _evidence(setting, _loaded(setting, before), held)
    with seeded(setting.config["seed"], "scoring noise"):
        built("compensate", setting.config["compensate"])(evidence, masks.to(setting.accelerator.device))
    return evidence.model


def _training_part(setting: Setting) -> dict[str, Any]:
    """What every training depends on, besides where it starts and how long it goes on."""
    training = {key: value for key, value in setting.config["training"].items() if key != "epochs"}
    data = _data(setting, "load", "augment")
    return {"training": training, "data": data, "seed": setting.config["seed"]} | _part(
        setting, "optimizer", "learning_rate"
    )


def _part(setting: Setting, *names: str) -> dict[str, Any]:
    """These parts of the configuration, and the code behind them."""
    parts = {name: setting.config[name] for name in names}
    return {**parts, "sources of " + ", ".join(names): digests(parts)}


def _data(setting: Setting, *names: str) -> dict[str, Any]:
    """The data, and the code that reads it; where its files lie does not matter."""
    parts: dict[str, Any] = {name: dict(setting.config["data"].get(name) or {}) for name in names}
    parts["load"].pop("folder", None)
    return {**parts, "sources": digests(parts)}


def _cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])
