"""Checks of a configuration that its schema cannot make. Hydra composes it, nothing else reads YAML.

Groups whose options depend on their target (scorer, model, …) are open in the schema: the signatures of their targets
are checked instead, before anything is computed.
"""

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError

from experiments.configuration.distillation import check_distillation
from experiments.configuration.methods import check_method
from experiments.configuration.schema import CONTROLS, Configuration
from experiments.configuration.targets import check_target, completed
from pruning.allocation import ERK, Densities, Global, Rates, check_density
from pruning.errors import ConfigurationError, RewindError
from pruning.rewind import step_of

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_GROUPS = (
    *("scorer", "granularity", "allocation", "schedule", "learning_rate", "model", "task", "optimizer", "tracker"),
    *("execution",),
)
"""Groups that always have a target."""

T = TypeVar("T", bound="DataclassInstance")


def validate(config: DictConfig) -> Configuration:
    """Check `config` and return it, resolved. Facts of the data (shape, classes, …) complete model and task where these
    have a parameter of that name.

    Raises `ConfigurationError`, naming the field.
    """
    try:
        plain: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except InterpolationKeyError as error:
        reason = str(error).splitlines()[0]
        group = str(reason).partition("'")[2].partition(".")[0] or "choice"
        raise ConfigurationError(f"{error.full_key}: {reason}; choose a {group} that has it, or set it here") from None
    _check_numbers(plain, "")
    found = _typed(Configuration, plain)
    check_method(plain)
    for group in _GROUPS:
        check_target(group, getattr(found, group))
    for group in ("compensate", "dynamic", "adaptation"):
        if getattr(found, group):
            check_target(group, getattr(found, group))
    if found.distillation:
        check_distillation(found)
    check_target("data.load", found.data.get("load") or {})
    if found.data.get("augment") is not None:
        check_target("data.augment", found.data["augment"])
    _check_values(found)
    facts = {name: value for name, value in found.data.items() if name not in ("name", "load", "augment")}
    counted = next((facts[name] for name in ("classes", "labels") if name in facts), None)
    facts = ({} if counted is None else {"outputs": counted}) | facts
    model, task = completed("model", found.model, facts), completed("task", found.task, facts)
    return replace(found, model=model, task=task)


def _typed(schema: type[T], values: Mapping[str, Any], prefix: str = "") -> T:
    """`values` as a dataclass. Raises `ConfigurationError` for an unknown field, which would be without effect, and
    for a value that a field does not take.
    """
    known = {entry.name: entry for entry in fields(schema)}
    found = {}
    for name, value in values.items():
        path = f"{prefix}{name}"
        if name not in known:
            raise ConfigurationError(f"{path}: is no field of the configuration; there are {', '.join(known)}")
        entry = known[name]
        choices, least = entry.metadata.get("choices"), entry.metadata.get("least")
        if choices is not None and value not in choices:
            raise ConfigurationError(f"{path}={value}: choose {' or '.join(choices)}")
        if least is not None and value is not None and value < least:
            raise ConfigurationError(f"{path}={value}: give at least {least}")
        kind: Any = entry.type
        found[name] = _typed(kind, value, f"{path}.") if isinstance(kind, type) and is_dataclass(kind) else value
    return schema(**found)


def _check_values(config: Configuration) -> None:
    """Raise `ConfigurationError` for a value that no run could use."""
    clip = config.training.clip
    if clip is not None and clip <= 0:
        raise ConfigurationError(f"training.clip={clip}: give the largest gradient norm, above 0, or null")
    if config.threads != "auto" and not (config.threads.isdigit() and int(config.threads) > 0):
        raise ConfigurationError(f"threads={config.threads}: give a number of at least 1, or auto")
    if not isinstance(config.data.get("name"), str):
        raise ConfigurationError(f"data.name={config.data.get('name')}: give the data set a name, for its rows")
    layers = [group.get("first_layer", 0) for group in (config.data.get("load") or {}, config.model)]
    if "first_layer" in (config.data.get("load") or {}) and layers[0] != layers[1]:
        raise ConfigurationError(
            f"data.load.first_layer={layers[0]}: the model begins at layer {layers[1]}: set model.first_layer for both"
        )
    _check_recovery(config)
    _check_pretrained(config)
    _check_calibration(config)
    for name, given in (("include", config.include), ("exclude", config.exclude)):
        globs = given if isinstance(given, list) else [given]
        if given is not None and not all(isinstance(glob, str) for glob in globs):
            raise ConfigurationError(f"{name}={given}: give a glob or a list of them, as in {name}=[fc1.*]")


def _check_recovery(config: Configuration) -> None:
    """Raise `ConfigurationError` for options of recovery that have no effect or contradict each other."""
    recovery, dynamic = config.recovery, config.dynamic
    try:
        later = step_of(recovery.to, 1) > 0
    except RewindError as error:
        raise ConfigurationError(f"recovery.to: {error}") from None
    if recovery.learning_rate != "replay" and recovery.epochs is None:
        raise ConfigurationError("recovery.epochs=null: say how many follow, 0 for none")
    if recovery.learning_rate != "replay" and (recovery.weights == "rewind" or later):
        raise ConfigurationError(
            "recovery: rewinding goes with the schedule of the learning rate: set recovery.learning_rate=replay"
        )
    if recovery.factor <= 0:
        raise ConfigurationError(f"recovery.factor={recovery.factor}: give a factor of the last rate, above 0")
    if recovery.learning_rate == "replay" and recovery.factor != 1.0:
        raise ConfigurationError("recovery.factor: is of the last learning rate, and this recovery replays: leave it 1")
    if recovery.weights == "rewind" and config.compensate:
        raise ConfigurationError("compensate: what it moves is rewound: set compensate=none, or recovery=lr_rewind")
    _check_adaptation(config)
    if dynamic:
        _check_dynamic(config)
    for control in config.controls:
        if control not in CONTROLS:
            raise ConfigurationError(f"controls={control}: choose among {', '.join(CONTROLS)}")


def _check_dynamic(config: Configuration) -> None:
    """Raise `ConfigurationError` for options that masks that change do not go with."""
    dynamic = config.dynamic
    for name, shared in (("granularity", config.granularity), ("allocation", config.allocation)):
        if dynamic.get(name, shared) != shared:
            raise ConfigurationError(f"dynamic.{name}: masks that change have that of the run: set {name}= instead")
    if config.training.best_on_validation:
        raise ConfigurationError("training.best_on_validation: the best epoch may have other masks: unset it")
    if config.training.trainable is not None:
        raise ConfigurationError("training.trainable: masks that change are of weights that train: set it to null")
    if config.training.precision == "fp16":
        raise ConfigurationError("training.precision=fp16: dynamic masks read gradients unscaled: choose no or bf16")


def _check_adaptation(config: Configuration) -> None:
    """Raise `ConfigurationError` for options that an adaptation does not go with."""
    if not config.adaptation:
        return
    if config.dynamic:
        raise ConfigurationError("adaptation: masks that change are of all weights: set dynamic=none")
    if config.controls:
        raise ConfigurationError("adaptation: controls are trained as whole networks: set controls=[]")
    if config.recovery.weights == "rewind":
        raise ConfigurationError("adaptation: begins with the network that was pruned: set recovery.weights=keep")
    if not str(config.execution["_target_"]).endswith(".masked"):
        raise ConfigurationError("adaptation: runs on dense layers: set execution=masked")
    if config.recovery.learning_rate != "replay" and config.recovery.epochs == 0:
        raise ConfigurationError("adaptation: is a training: set recovery.epochs to at least 1")


def _check_pretrained(config: Configuration) -> None:
    """Raise `ConfigurationError` for options that need a trained dense network, with when=pretrained."""
    if config.when != "pretrained":
        return
    if config.recovery.learning_rate == "replay":
        raise ConfigurationError(
            "recovery: there is no training to replay with when=pretrained: set recovery=finetune or none"
        )
    for control in config.controls:
        if control != "shuffle":
            raise ConfigurationError(
                f"controls={control}: is trained as the dense network was, and with when=pretrained it was not: "
                "leave it out"
            )


def _check_calibration(config: Configuration) -> None:
    """Raise `ConfigurationError` for options that do not go with the order in which masks and weights are made."""
    choose, m = config.compensate.get("choose", "given"), config.allocation.get("m")
    whole = isinstance(choose, int) and not isinstance(choose, bool)
    if choose not in ("given", "block", "row") and not whole:
        raise ConfigurationError(f"compensate.choose={choose}: give given, block, row, or m of allocation=n_of_m")
    if choose != "given" and (whole or m is not None) and choose != m:
        raise ConfigurationError(
            f"compensate.choose={choose}: masks would not be those of the allocation: give given, or m of n_of_m with "
            "allocation=n_of_m"
        )
    if config.calibration == "whole":
        if choose != "given":
            raise ConfigurationError(
                f"compensate.choose={choose}: chooses masks while weights move: set calibration=sequential"
            )
        return
    if config.scoring.mode == "train":
        raise ConfigurationError("scoring.mode=train: blocks are calibrated in eval mode: set scoring.mode=eval")
    if "shuffle" in config.controls:
        raise ConfigurationError(
            "controls=shuffle: calibration=sequential moves weights together with the ticket's masks: leave it out"
        )
    kind = get_object(config.allocation["_target_"])
    if kind in (Global, ERK, Densities, Rates):
        raise ConfigurationError(
            f"allocation={kind.__name__}: shares a density out among all layers, and calibration=sequential sees one "
            "block at a time: choose uniform, per_row, n_of_m or owl, or set calibration=whole"
        )


def densities(asked: Any) -> tuple[float | None, ...]:
    """The densities asked for, highest first; (None,) for an allocation with a density of its own."""
    if asked is None:
        return (None,)
    many = asked if isinstance(asked, list) else [asked]
    if not many:
        raise ConfigurationError("density=[]: give at least one density")
    found = [check_density(value) for value in many]
    if len(set(found)) < len(found):
        raise ConfigurationError(f"density={asked}: a density comes twice; give each once")
    return tuple(sorted(found, reverse=True))


def _check_numbers(value: Any, name: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigurationError(f"{name}={value}: give a finite number (null where there is to be no limit)")
    if isinstance(value, Mapping):
        for key, item in value.items():
            _check_numbers(item, f"{name}.{key}" if name else str(key))
    if isinstance(value, list):
        for item in value:
            _check_numbers(item, name)
