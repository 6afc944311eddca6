"""Dense, prune, recover, evaluate: each idempotent, its artefact addressed by what determines it.

Every identity holds the key of what it starts from, so a chain of keys is the history of a network; scorers that share
a seed share the dense network, and a repeated command finds everything made.
"""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from experiments.configuration import arrives, built, short_name
from experiments.evaluation import evaluate as measured
from experiments.networks import MASKS, NO_STEPS, POINT, WEIGHTS, Network, finite, load, save
from experiments.records import FORMAT
from experiments.seeding import generator, seeded
from experiments.setting import Setting
from experiments.sources import digests
from experiments.store import Artefact
from experiments.training import TRAINING_FORMAT, Recipe, Regime, batches, train
from pruning import Evidence, Masks
from pruning import prune as selected
from pruning.cost import cost, latency
from pruning.dynamic import Held
from pruning.errors import ScoreError
from pruning.evidence import Scores
from pruning.recovery import reestimate_batchnorm
from pruning.rewind import RewindPoint
from pruning.structure import TOLERANCE, remove, verify

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


def initial(setting: Setting, draw: str = "initial weights") -> Network:
    """The network at its initialisation; another `draw` is another initialisation with the same seed."""
    identity = _part(setting, "model") | {"seed": setting.config["seed"], "draw": draw}

    def make(folder: Path) -> None:
        save(folder, setting.new_model(draw), None, NO_STEPS, [], None)

    return Network(setting.store.obtain("initial", identity, make))


def dense(setting: Setting) -> Network:
    """The network trained without masks; all scorers of a sweep share it."""
    return _dense(setting, "dense", setting.total_steps)


def rewind_point(setting: Setting) -> Network:
    """The network of the dense training at step `recovery.to`, where its optimizer is kept too."""
    step = setting.rewind_step
    return initial(setting) if step == 0 else _dense(setting, "point", step)


def _dense(setting: Setting, kind: str, stop: int) -> Network:
    recipe = replace(setting.recipe(range(stop), setting.learning_rate, setting.total_steps), keep_end=kind == "point")
    return _plainly(setting, kind, initial(setting), recipe)


def train_whole(setting: Setting, start: Network, title: str) -> Network:
    """`start` under its masks, trained as the dense network was, from the first step to the last."""
    total = setting.total_steps
    recipe = setting.recipe(range(total), setting.learning_rate, total)
    return _plainly(setting, "recovered", start, recipe, title)


def _plainly(setting: Setting, kind: str, start: Network, recipe: Recipe, title: str = "dense") -> Network:
    identity = {"from": start.key} | _training_part(setting, recipe)
    return Network(_trained(setting, kind, identity, start, start, recipe, title), start.masks)


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
    config, device = setting.config["scoring"], setting.device
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
    for name in sorted(scores.keys() ^ parameters.keys()):
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
        within = network.load_masks()
        masks = selected(scoring(network), density, setting.granularity, setting.allocation, within=within)
        masks.to("cpu").save(folder / MASKS)

    return Network(network.weights, setting.store.obtain("masks", identity, make))


def recover(setting: Setting, network: Network, density: float | None, changing: bool = True) -> Network:
    """`network` under its masks: what stays is compensated if asked for, then trained as `recovery` says.

    Fine-tuned, rewound, retrained, or not at all (0 epochs). With `dynamic`, and if they are to be `changing`, the
    masks change meanwhile, until `density` if that is theirs to reach.
    """
    config = setting.config["recovery"]
    dynamic = changing and bool(setting.config["dynamic"])
    weights = rewind_point(setting) if config["weights"] == "rewind" else network
    if config["learning_rate"] == "replay":  # the data come as training saw them
        total = setting.total_steps
        recipe = setting.recipe(range(setting.rewind_step, total), setting.learning_rate, total)
    else:  # fine-tuning goes on where the order of the data ended
        ended = network.history["position"]
        steps = range(ended, ended + config["epochs"] * setting.epoch_steps)
        recipe = setting.recipe(steps, setting.last_learning_rate, total=0)
    identity = {"from": network.key, "weights": weights.key} | _training_part(setting, recipe)
    identity |= {"last learning rate": config["learning_rate"] == "last"}
    identity |= {"batchnorm_batches": config["batchnorm_batches"]}
    if dynamic:
        identity |= {"density": density} | _part(setting, "dynamic")
    if dynamic or setting.config["compensate"]:
        identity |= _part(setting, "compensate", "scoring", "include", "exclude")
    title = f"{short_name(setting.config['scorer'])}, recovery"
    regime = _regime(setting, network.load_masks(), len(recipe.steps), density) if dynamic else None
    trained = _trained(setting, "recovered", identity, network, weights, recipe, title, regime)
    return Network(trained, trained if dynamic else network.masks)


def _regime(setting: Setting, masks: Masks | None, steps: int, density: float | None) -> Regime:
    config = setting.config
    options: dict[str, Any] = {"steps": steps, "seed": config["seed"]}
    if arrives(config):
        options["density"] = density
    if "granularity" in config["dynamic"]:
        options["granularity"] = setting.granularity  # whole, also where it needs the structure of the model
    if "allocation" in config["dynamic"]:
        options["allocation"] = setting.allocation

    def regime(model: nn.Module, optimizer: Optimizer) -> Held:
        made: Held = built("dynamic", config["dynamic"])(_evidence(setting, model, masks), optimizer, **options)
        return made

    return regime


def evaluate(setting: Setting, network: Network, level: Level, dense_network: Network) -> dict[str, Any]:
    """The row of `network`: asked and got density, costs, validation and test. Test data are seen once a level."""
    identity = {"from": network.key, "format": FORMAT, "data": _data(setting, "load")}
    identity |= _part(setting, "include", "exclude")
    if setting.structured or setting.config["latency"]:
        identity |= {"structured": setting.structured, "latency": setting.config["latency"]}

    def make(folder: Path) -> None:
        model = _loaded(setting, network).to(setting.device)
        dense = Masks.dense(setting.prunable(model)).to("cpu")
        held = network.load_masks()
        masks = dense if held is None else held
        example = setting.splits.test.inputs[:1].to(setting.device)
        counts = cost(model, masks, example)
        masks = Masks({name: masks[name] for name in dense})  # of coupled channels, not biases and norms
        table = masks.table()
        smallest = min(table, key=lambda line: line.density)
        validation, test = measured(model, setting.splits.validation), measured(model, setting.splits.test)
        row = {
            "density": masks.density,
            "prunable": masks.total,
            "kept": masks.kept,
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
            **_removed(setting, model, held),
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
        "target_density": level.target,
        **dict.fromkeys(("removed_parameters", "removed_bytes", "removed_difference", "latency_ms")),
        **row,
        "epochs": history["epochs"],
        "total_epochs": history["total_epochs"],
        "seconds": history["seconds"],
        "total_seconds": history["total_seconds"],
        "threads": history["threads"],
        "versions": history["versions"],
        "control": None,
        "dense": dense_network.key,
        "network": network.key,
    }


def _removed(setting: Setting, model: nn.Module, masks: Masks | None) -> dict[str, Any]:
    """What the network is without its removed channels, proved equal to the masked one; and how fast."""
    found: dict[str, Any] = {}
    if setting.structured and masks is not None:
        model = model.cpu()
        small = remove(model, masks, setting.structure, verified=False)
        found["removed_difference"] = difference = verify(model, masks, small, setting.structure.inputs)
        if difference > TOLERANCE:
            remove(model, masks, setting.structure)  # says where
        model = small.to(setting.device)
        counts = cost(model, None, setting.splits.test.inputs[:1].to(setting.device))
        found |= {"removed_parameters": counts.parameters, "removed_bytes": counts.stored_bytes}
    batch = setting.config["latency"]
    if batch is not None:
        inputs = setting.splits.test.inputs[:batch].to(setting.device)
        found |= {"latency_ms": latency(model, inputs), "latency_batch": len(inputs)}
    return found


def _loaded(setting: Setting, network: Network) -> nn.Module:
    return load(setting.new_model(), network)


def _trained(
    setting: Setting,
    kind: str,
    identity: dict[str, Any],
    start: Network,
    weights: Network,
    recipe: Recipe,
    title: str,
    regime: Regime | None = None,
) -> Artefact:
    """What comes after `start`: the masks of `start`, with the `weights` of the same network or another, trained."""
    seed, masks = setting.config["seed"], start.load_masks()

    def make(folder: Path) -> None:
        if masks is not None and setting.config["compensate"]:
            model = _compensated(setting, start, masks)
        else:
            model = _loaded(setting, Network(weights.weights, start.masks))
        if setting.config["recovery"]["batchnorm_batches"] and masks is not None:
            _reestimate(setting, model, recipe)
        if kind == "dense":
            log.info("seed %s: training the dense network, %s steps", seed, len(recipe.steps))
        trained = train(
            model,
            setting.splits.train,
            setting.splits.validation,
            recipe,
            setting.new_accelerator(),
            masks=None if regime is not None else masks,
            regime=regime,
            begin=RewindPoint.load(weights.weights.file(POINT)) if weights.weights.has(POINT) else None,
            progress=setting.progress(f"seed {seed}, {title}"),
            checkpoints=setting.checkpoints(kind, identity),
        )
        if trained.end is not None:
            trained.end.save(folder / POINT)
        final = None if trained.masks is None else trained.masks.to("cpu")
        course = {"steps": len(recipe.steps), "position": recipe.steps.stop, "epoch_steps": setting.epoch_steps}
        save(folder, model.to("cpu"), final, course, trained.epochs, start)

    return setting.store.obtain(kind, identity, make)


def _reestimate(setting: Setting, model: nn.Module, recipe: Recipe) -> None:
    """Batch norm's statistics of the pruned network, from the batches that an epoch begins with."""
    first = recipe.steps.start // setting.epoch_steps
    found = batches(setting.splits.train, recipe.batch_size, recipe.seed, first)
    device = setting.device
    inputs = [part.to(device) for part, _ in islice(found, setting.config["recovery"]["batchnorm_batches"])]
    reestimate_batchnorm(model.to(device), inputs)


def _compensated(setting: Setting, network: Network, masks: Masks) -> nn.Module:
    """The model after the removal, its other weights moved in closed form to make up for it."""
    before = Network(network.weights)
    held = Masks.load(before.weights.file(MASKS)) if before.weights.has(MASKS) else None
    evidence = _evidence(setting, _loaded(setting, before), held)
    with seeded(setting.config["seed"], "scoring noise"):
        built("compensate", setting.config["compensate"])(evidence, masks.to(setting.device))
    return evidence.model


def _training_part(setting: Setting, recipe: Recipe) -> dict[str, Any]:
    """What every training depends on, besides where it starts."""
    steps = [recipe.steps.start, recipe.steps.stop, recipe.total]
    training = {key: value for key, value in setting.config["training"].items() if key != "epochs"}
    data = _data(setting, "load", "augment")
    own = {"format": TRAINING_FORMAT, "steps": steps, "training": training, "data": data}
    return own | {"seed": setting.config["seed"]} | _part(setting, "optimizer", "learning_rate")


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
