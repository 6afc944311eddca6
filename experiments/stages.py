"""Dense, prune, recover: each idempotent, its artefact addressed by what determines it.

Every identity holds the key of what it starts from, so a chain of keys is the history of a network; scorers that share
a seed share the dense network, and a repeated command finds everything made.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from experiments.configuration import arrives
from experiments.identity import data_part, part
from experiments.networks import MASKS, NO_STEPS, POINT, Network, load, save
from experiments.seeding import generator, seeded
from experiments.setting import Setting
from experiments.store import Artefact
from experiments.targets import built, short_name
from experiments.training import TRAINING_FORMAT, Recipe, Regime, batches, train
from pruning import Evidence, Masks
from pruning import prune as selected
from pruning.dynamic import Held
from pruning.errors import ScoreError
from pruning.evidence import Scores
from pruning.execution import masked
from pruning.recovery import reestimate_batchnorm
from pruning.rewind import RewindPoint

log = logging.getLogger("experiments")


Scoring = Callable[[Network], Scores]


def initial(setting: Setting, draw: str = "initial weights") -> Network:
    """The network at its initialisation; another `draw` is another initialisation with the same seed."""
    identity = part(setting, "model") | {"seed": setting.config["seed"], "draw": draw}

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
    parts = part(setting, "scorer", "scoring", "granularity", "allocation", "include", "exclude")
    seed = setting.config["seed"]
    identity = {"from": network.key, "density": density, "seed": seed, "data": data_part(setting, "load")} | parts

    def make(folder: Path) -> None:
        within = network.load_masks()
        masks = selected(scoring(network), density, setting.granularity, setting.allocation, within=within)
        masks.to("cpu").save(folder / MASKS)

    return Network(network.weights, setting.store.obtain("masks", identity, make))


def recover(
    setting: Setting, network: Network, density: float | None, changing: bool = True, title: str = "recovery"
) -> Network:
    """`network` under its masks: what stays is compensated if asked for, then trained as `recovery` says.

    Fine-tuned, rewound, retrained, or not at all (0 epochs). With `dynamic`, and if they are to be `changing`, the
    masks change meanwhile, until `density` if that is theirs to reach. `title` is what its progress says of it.
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
        recipe = setting.recipe(steps, setting.recovery_rate, total=0)
    identity = {"from": network.key, "weights": weights.key} | _training_part(setting, recipe)
    identity |= {"last learning rate": config["factor"] if config["learning_rate"] == "last" else None}
    identity |= {"batchnorm_batches": config["batchnorm_batches"]}
    if dynamic:
        identity |= {"density": density} | part(setting, "dynamic")
    if dynamic or setting.config["compensate"]:
        identity |= part(setting, "compensate", "scoring", "include", "exclude")
    regime = _regime(setting, network.load_masks(), len(recipe.steps), density) if dynamic else None
    trained = _trained(setting, "recovered", identity, network, weights, recipe, title, regime)
    return Network(trained, trained if dynamic else network.masks)


def check_dynamic(setting: Setting, density: float | None) -> None:
    """Make what changes the masks once, for a network that is thrown away: whatever it refuses, it refuses now."""
    recovery = setting.config["recovery"]
    replayed = setting.total_steps - setting.rewind_step
    steps = replayed if recovery["learning_rate"] == "replay" else recovery["epochs"] * setting.epoch_steps
    model = setting.new_model()
    masks = None if arrives(setting.config) else Masks.dense(setting.prunable(model))
    optimizer = built("optimizer", setting.config["optimizer"])(model.parameters())
    _regime(setting, masks, steps, density)(model, optimizer).finish()


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
    choose = setting.execution if masks is not None or regime is not None else masked
    if choose is not masked:
        identity = identity | part(setting, "execution")

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
            progress=setting.progress(f"{short_name(setting.config['scorer'])}, seed {seed}, {title}"),
            checkpoints=setting.checkpoints(kind, identity),
            choose=choose,
        )
        if choose is not masked:
            log.info("weights that ran sparsely: %s", ", ".join(trained.sparse) or "none")
        if trained.end is not None:
            trained.end.save(folder / POINT)
        final = None if trained.masks is None else trained.masks.to("cpu")
        course = {"steps": len(recipe.steps), "position": recipe.steps.stop, "epoch_steps": setting.epoch_steps}
        save(folder, model.to("cpu"), final, course, trained.epochs, start, trained.sparse)

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
    data = data_part(setting, "load", "augment")
    own = {"format": TRAINING_FORMAT, "steps": steps, "training": training, "data": data}
    return own | {"seed": setting.config["seed"]} | part(setting, "optimizer", "learning_rate")


def _cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])
