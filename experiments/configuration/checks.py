"""The configuration: its schema, and the checks that a schema cannot make. Hydra composes it, nothing else reads YAML.

A field that is not here is an error on the command line, also with a plus sign. Groups whose options depend on their
target (scorer, model, …) are open: their targets' own signatures are checked instead, before anything is computed.
"""

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError

from experiments.configuration.schema import CONTROLS, Checkpoint, Configuration, Recovery, Scoring, Training
from experiments.configuration.targets import check_target, completed
from pruning.allocation import check_density
from pruning.errors import ConfigurationError, RewindError
from pruning.rewind import step_of

_GROUPS = (
    *("scorer", "granularity", "allocation", "schedule", "learning_rate", "model", "task", "optimizer", "tracker"),
    "execution",
)
_CHOICES = {
    "when": ("init", "trained", "pretrained"),
    "scoring.mode": ("train", "eval"),
    "recovery.weights": ("keep", "rewind"),
    "recovery.learning_rate": ("last", "replay"),
    "recovery.rounds": ("every", "last"),
    "training.precision": ("no", "bf16", "fp16"),
    "device": ("auto", "cpu"),
}
_AT_LEAST = {
    "training.epochs": 0,
    "training.batch_size": 1,
    "training.accumulate": 1,
    "scoring.examples": 1,
    "scoring.batch_size": 1,
    "recovery.epochs": 0,
    "recovery.batchnorm_batches": 0,
    "checkpoint.seconds": 0,
    "checkpoint.steps": 1,
    "latency": 1,
    "seed": 0,
}


def validate(config: DictConfig) -> dict[str, Any]:
    """Check `config` and return it as plain, resolved data. Raises `ConfigurationError`, naming the field."""
    try:
        plain: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except InterpolationKeyError as error:
        reason = str(error).splitlines()[0]
        raise ConfigurationError(f"{error.full_key}: {reason}; choose a scorer that has it, or set it here") from None
    assert isinstance(plain, dict)
    _check_fields(plain)
    _check_numbers(plain, "")
    for name, choices in _CHOICES.items():
        value = _at(plain, name)
        if value not in choices:
            raise ConfigurationError(f"{name}={value}: choose {' or '.join(choices)}")
    for name, least in _AT_LEAST.items():
        value = _at(plain, name)
        if value is not None and value < least:
            raise ConfigurationError(f"{name}={value}: give at least {least}")
    for group in _GROUPS:
        check_target(group, plain[group])
    for group in ("compensate", "dynamic"):
        if plain[group]:
            check_target(group, plain[group])
    check_target("data.load", plain["data"].get("load") or {})
    if plain["data"].get("augment") is not None:
        check_target("data.augment", plain["data"]["augment"])
    _check_values(plain)
    facts = {name: value for name, value in plain["data"].items() if name not in ("name", "load", "augment")}
    counted = next((facts[name] for name in ("classes", "labels") if name in facts), None)
    facts = ({} if counted is None else {"outputs": counted}) | facts
    found: dict[str, Any] = plain | {group: completed(group, plain[group], facts) for group in ("model", "task")}
    return found


def _check_values(plain: Mapping[str, Any]) -> None:
    clip = plain["training"]["clip"]
    if clip is not None and clip <= 0:
        raise ConfigurationError(f"training.clip={clip}: give the largest gradient norm, above 0, or null")
    if plain["threads"] != "auto" and not (plain["threads"].isdigit() and int(plain["threads"]) > 0):
        raise ConfigurationError(f"threads={plain['threads']}: give a number of at least 1, or auto")
    if not isinstance(plain["data"].get("name"), str):
        raise ConfigurationError(f"data.name={plain['data'].get('name')}: give the data set a name, for its rows")
    _check_recovery(plain)
    _check_pretrained(plain)
    for name in ("include", "exclude"):
        globs = plain[name] if isinstance(plain[name], list) else [plain[name]]
        if plain[name] is not None and not all(isinstance(glob, str) for glob in globs):
            raise ConfigurationError(f"{name}={plain[name]}: give a glob or a list of them, as in {name}=[fc1.*]")


def _check_recovery(plain: Mapping[str, Any]) -> None:
    """Raise `ConfigurationError` for options of recovery that have no effect or contradict each other."""
    recovery, dynamic = plain["recovery"], plain["dynamic"]
    try:
        later = step_of(recovery["to"], 1) > 0
    except RewindError as error:
        raise ConfigurationError(f"recovery.to: {error}") from None
    if recovery["learning_rate"] == "last" and recovery["epochs"] is None:
        raise ConfigurationError("recovery.epochs=null: say how many follow at the last learning rate, 0 for none")
    if recovery["learning_rate"] == "last" and (recovery["weights"] == "rewind" or later):
        raise ConfigurationError(
            "recovery: rewinding goes with the schedule of the learning rate: set recovery.learning_rate=replay"
        )
    if recovery["factor"] <= 0:
        raise ConfigurationError(f"recovery.factor={recovery['factor']}: give a factor of the last rate, above 0")
    if recovery["learning_rate"] == "replay" and recovery["factor"] != 1.0:
        raise ConfigurationError("recovery.factor: is of the last learning rate, and this recovery replays: leave it 1")
    if recovery["weights"] == "rewind" and plain["compensate"]:
        raise ConfigurationError("compensate: what it moves is rewound: set compensate=none, or recovery=lr_rewind")
    for name in ("granularity", "allocation"):
        if dynamic.get(name, plain[name]) != plain[name]:
            raise ConfigurationError(f"dynamic.{name}: masks that change have that of the run: set {name}= instead")
    if dynamic and plain["training"]["best_on_validation"]:
        raise ConfigurationError("training.best_on_validation: the best epoch may have other masks: unset it")
    if dynamic and plain["training"]["precision"] == "fp16":
        raise ConfigurationError("training.precision=fp16: dynamic masks read gradients unscaled: choose no or bf16")
    for control in plain["controls"]:
        if control not in CONTROLS:
            raise ConfigurationError(f"controls={control}: choose among {', '.join(CONTROLS)}")


def _check_pretrained(plain: Mapping[str, Any]) -> None:
    """Raise `ConfigurationError` for options that need a trained dense network, with when=pretrained."""
    if plain["when"] != "pretrained":
        return
    if plain["recovery"]["learning_rate"] == "replay":
        raise ConfigurationError(
            "recovery: there is no training to replay with when=pretrained: set recovery=finetune or none"
        )
    for control in plain["controls"]:
        if control != "shuffle":
            raise ConfigurationError(
                f"controls={control}: is trained as the dense network was, and with when=pretrained it was not: "
                "leave it out"
            )


def densities(config: Mapping[str, Any]) -> tuple[float | None, ...]:
    """The densities asked for, highest first; (None,) for an allocation with a density of its own."""
    asked = config["density"]
    if asked is None:
        return (None,)
    many = asked if isinstance(asked, list) else [asked]
    if not many:
        raise ConfigurationError("density=[]: give at least one density")
    found = [check_density(value) for value in many]
    if len(set(found)) < len(found):
        raise ConfigurationError(f"density={asked}: a density comes twice; give each once")
    return tuple(sorted(found, reverse=True))


def _check_fields(config: Mapping[str, Any]) -> None:
    """Raise `ConfigurationError` for an unknown field: a misspelt one would be silently without effect."""
    parts = {"": (config, Configuration), "training.": (config["training"], Training)}
    parts |= {"scoring.": (config["scoring"], Scoring), "recovery.": (config["recovery"], Recovery)}
    parts |= {"checkpoint.": (config["checkpoint"], Checkpoint)}
    for prefix, (part, schema) in parts.items():
        known = [entry.name for entry in fields(schema)]
        for key in part:
            if key not in known:
                raise ConfigurationError(
                    f"{prefix}{key}: is no field of the configuration; there are {', '.join(known)}"
                )


def _check_numbers(value: Any, name: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigurationError(f"{name}={value}: give a finite number (null where there is to be no limit)")
    if isinstance(value, Mapping):
        for key, item in value.items():
            _check_numbers(item, f"{name}.{key}" if name else str(key))
    if isinstance(value, list):
        for item in value:
            _check_numbers(item, name)


def _at(config: Mapping[str, Any], name: str) -> Any:
    value: Any = config
    for part in name.split("."):
        value = value[part]
    return value
