"""Recovery after a pruning, from a closed form to a whole training, under masks that hold or that change."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from hydra.utils import get_object
from torch import nn
from torch.optim import Optimizer

from experiments.configuration.targets import instantiate, short_name
from experiments.running.setting import Setting
from experiments.running.stages.scoring import SEEN, evidence_of
from experiments.running.stages.teaching import teaching
from experiments.running.stages.trained import Adapting, is_distilled, rewind_point, trained, training_view
from experiments.runtime.processes import world_size
from experiments.runtime.seeding import seeded
from experiments.store import Artefact
from experiments.store.identity import EXECUTION, STRUCTURE, code
from experiments.store.networks import MASKS, Network, load
from experiments.training.batches import batches
from experiments.training.loop import MakeRegime
from experiments.training.recipe import Recipe
from pruning import Masks
from pruning.dynamic import Regime
from pruning.errors import ConfigurationError
from pruning.recovery import reestimate_batchnorm

if TYPE_CHECKING:
    from experiments.configuration import Configuration


def recover(
    setting: Setting, network: Network, density: float | None, changing: bool = True, title: str = "recovery"
) -> Network:
    """`network` under its masks: what stays is compensated if asked for, then trained as `recovery` says.

    Fine-tuned, rewound, retrained, or not at all (0 epochs). With `dynamic`, and if they are to be `changing`, the
    masks change meanwhile, until `density` if that is theirs to reach. `title` is what its progress says of it.
    """
    changes = changing and bool(setting.config.dynamic)
    weights = rewind_point(setting) if setting.config.recovery.weights == "rewind" else network
    if not (changes or trains(setting, network)):
        return Network(weights.weights, network.masks, untrained=True)
    found = retrain(setting, network, title, weights, density, changes)
    return Network(found, found if changes else network.masks)


def trains(setting: Setting, network: Network) -> bool:
    """Whether anything follows the masks of `network`: a training, a compensation, or an estimate of batch norm's."""
    recovery = setting.config.recovery
    return bool(_steps(setting, network) or _compensates(setting) or recovery.batchnorm_batches)


def retrain(
    setting: Setting,
    network: Network,
    title: str,
    weights: Network,
    density: float | None = None,
    changes: bool = False,
    adapting: Adapting | None = None,
) -> Artefact:
    """`network` under its masks with these `weights`, trained as `recovery` says.

    With `changes` the masks change meanwhile, until `density`; with `adapting` something else than all weights is
    trained.
    """
    steps = _steps(setting, network)
    masks = network.load_masks()
    identity = {"weights": weights.key, **({"density": density} if changes else {}), **_code(setting, changes)}
    fields = _taken(setting, changes)
    if adapting is not None:
        identity, fields = {**identity, **adapting.identity}, [*fields, "adaptation"]
    taught = teaching(setting) if steps and is_distilled(setting.config) else None
    if taught is not None:
        identity, fields = {**identity, **taught.identity}, [*fields, *taught.fields]
    start = Network(weights.weights, network.masks)
    view = training_view(setting, start, *fields, changing=changes, adapting=adapting)
    rate, total = _rate(view, steps, adapting is not None)
    recipe = view.recipe(steps, rate, setting.total_steps if total is None else total)
    begin = partial(_begun, view, network, weights, masks, recipe)
    regime = _regime(view, masks, len(steps), density) if changes else None
    objective = None if taught is None else taught.objective
    return trained(view, "recovered", identity, network, recipe, title, begin, weights, regime, adapting, objective)


def _steps(setting: Setting, network: Network) -> range:
    """The steps of the recovery, in the order of the data."""
    config = setting.config.recovery
    if config.learning_rate == "replay":  # the data come as training saw them
        return range(setting.rewind_step, setting.total_steps)
    ended = network.history["position"]  # fine-tuning goes on where the order of the data ended
    assert config.epochs is not None
    return range(ended, ended + config.epochs * setting.epoch_steps)


def _rate(setting: Setting, steps: range, adapting: bool) -> tuple[Callable[[float], float], int | None]:
    """The factor of the learning rate, and the steps over which it is spread; None: those of the whole training."""
    config = setting.config.recovery
    if config.learning_rate == "replay":
        return setting.learning_rate, None
    if config.learning_rate == "restart":
        return partial(_restarted, setting.learning_rate, config.factor, steps.start / max(1, len(steps))), len(steps)
    if adapting:  # it has rates of its own, of which the end of the schedule is no part
        return partial(_constant, config.factor), 0
    return setting.recovery_rate, 0


def _constant(value: float, progress: float) -> float:
    return value


def _restarted(rate: Callable[[float], float], factor: float, start: float, progress: float) -> float:
    """The schedule from its beginning, which is at the progress `start`."""
    return factor * rate(min(1.0, progress - start))


def _compensates(setting: Setting) -> bool:
    """Whether what stays is compensated after the pruning, and not by it, block by block."""
    return setting.config.calibration == "whole" and bool(setting.config.compensate)


def reaches_density_while_training(config: Configuration) -> bool:
    """Whether masks that change reach the density by themselves: then nothing is pruned before the training."""
    if not config.dynamic:
        return False
    return "density" in inspect.signature(get_object(config.dynamic["_target_"])).parameters


def check_dynamic(setting: Setting, density: float | None) -> None:
    """Make the dynamic masks once, for a throw-away network, so that they raise their errors before any training."""
    recovery = setting.config.recovery
    steps = setting.total_steps - setting.rewind_step
    if recovery.learning_rate == "last":
        assert recovery.epochs is not None
        steps = recovery.epochs * setting.epoch_steps
    model = setting.new_model()
    masks = None if reaches_density_while_training(setting.config) else Masks.dense(setting.prunable(model))
    optimizer = instantiate("optimizer", setting.config.optimizer)(model.parameters())
    regime = _regime(setting, masks, steps, density)(model, optimizer)
    regime.finish()
    if regime.whole_batches:
        _check_whole_batches(setting)


def _check_whole_batches(setting: Setting) -> None:
    """Raise `ConfigurationError` where batches are cut, for a regime that takes them whole."""
    name = short_name(setting.config.dynamic)
    if setting.config.training.accumulate > 1:
        raise ConfigurationError(
            f"training.accumulate={setting.config.training.accumulate}: dynamic={name} takes batches whole: set it to 1"
        )
    if world_size() > 1:
        raise ConfigurationError(
            f"dynamic={name}: takes batches whole, and {world_size()} processes share them: use one"
        )


def _taken(setting: Setting, changing: bool) -> list[str]:
    """Fields of the configuration that a recovery depends on, besides its start and its training."""
    config = setting.config
    fields = ["recovery.learning_rate", "recovery.factor", "recovery.batchnorm_batches", "calibration"]
    fields += ["compensate"] if config.calibration == "whole" else []
    fields += ["dynamic", *_shared(config)] if changing else []
    return fields + (list(SEEN) if changing or _compensates(setting) else [])


def _code(setting: Setting, changing: bool) -> dict[str, str]:
    """A compensation counts with its own code, and a teaching; the curvature behind the one, and the losses of the
    other, are nothing to other recoveries.
    """
    units = changing and "granularity" in _shared(setting.config) and setting.structured
    others = ("experiments.running.stages.teaching", "pruning.curvature")
    return code(__name__, without=(*EXECUTION, *others, *([] if units else STRUCTURE)))


def _shared(config: Configuration) -> list[str]:
    """The groups of the run's configuration that its dynamic masks share."""
    return [name for name in ("granularity", "allocation") if name in config.dynamic]


def _regime(setting: Setting, masks: Masks | None, steps: int, density: float | None) -> MakeRegime:
    config = setting.config
    options: dict[str, Any] = {"steps": steps, "seed": config.seed}
    options |= {name: getattr(setting, name) for name in _shared(config)}
    if reaches_density_while_training(config):
        options["density"] = density

    def regime(model: nn.Module, optimizer: Optimizer) -> Regime:
        made: Regime = instantiate("dynamic", config.dynamic)(evidence_of(setting, model, masks), optimizer, **options)
        return made

    return regime


def _begun(setting: Setting, network: Network, weights: Network, masks: Masks | None, recipe: Recipe) -> nn.Module:
    """The model with which the recovery of `network` begins: compensated where that is configured."""
    config = setting.config
    if masks is not None and _compensates(setting):
        model = _compensated(setting, network, masks)
    else:
        model = load(setting.new_model(), Network(weights.weights, network.masks))
    if masks is not None and config.recovery.batchnorm_batches:
        _reestimate(setting, model, recipe)
    return model


def _compensated(setting: Setting, network: Network, masks: Masks) -> nn.Module:
    """The pruned model, its kept weights updated in closed form to compensate for the removed ones."""
    before = Network(network.weights)
    held = Masks.load(before.weights.file(MASKS)) if before.weights.has(MASKS) else None
    evidence = evidence_of(setting, load(setting.new_model(), before), held)
    with seeded(setting.config.seed, "scoring noise"):
        here = masks.to(setting.device)
        weights = Masks({name: here[name] for name in evidence.parameters})  # of coupled channels, not biases and norms
        instantiate("compensate", setting.config.compensate)(evidence, weights)
    here.apply_(evidence.model)  # also the biases of units that are gone
    return evidence.model


def _reestimate(setting: Setting, model: nn.Module, recipe: Recipe) -> None:
    """Estimate the statistics of batch norm in the pruned network, from the first batches of an epoch."""
    epoch = recipe.steps.start // setting.epoch_steps
    device, numbers = setting.device, slice(setting.config.recovery.batchnorm_batches)
    found = batches(setting.splits.train.to(device), recipe.batch_size, recipe.seed, epoch, numbers)
    reestimate_batchnorm(model.to(device), [setting.task.inputs(batch) for batch in found])
