"""What a paper's method stands for, so that a label with its name is of nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from omegaconf import OmegaConf

from experiments.configuration.schema import CONF, Configuration
from pruning.errors import ConfigurationError

_CHOSEN = ("scorer", "granularity", "allocation", "compensate", "calibration", "scoring.mode")
"""What makes masks and weights: a method stands for all of it, also for what its file leaves as it is."""


def check_method(config: Mapping[str, Any]) -> None:
    """Raise `ConfigurationError` where something that `config["method"]` stands for was set otherwise. What follows the
    pruning is free, and so are densities and data; of a method in a folder of one's own nothing is known.
    """
    file = CONF / "method" / f"{config['method']}.yaml"
    if config["method"] is None or not file.is_file():
        return
    own: Any = OmegaConf.to_container(OmegaConf.load(file))
    choices = dict(_overrides(OmegaConf.load(CONF / "config.yaml")) | _overrides(own))
    fields = asdict(Configuration())
    for name in _CHOSEN:
        group, *inner = name.split(".")
        wanted, found = fields[group], config[group]
        if group in choices:
            made: Any = OmegaConf.to_container(OmegaConf.load(CONF / group / f"{choices[group]}.yaml"))
            wanted = made.get(group, made) if isinstance(made, Mapping) else {}
        wanted = _merged(wanted, own.get(group, {}))
        for key in inner:
            wanted, found = wanted[key], found[key]
        _compare(config["method"], name, wanted, found, choices.get(group))


def _overrides(config: Any) -> dict[str, str]:
    """The choices of groups in the defaults of a file."""
    found: dict[str, str] = {}
    for entry in config["defaults"]:
        if isinstance(entry, Mapping):
            for group, choice in entry.items():
                found[str(group).removeprefix("override ").removeprefix("/")] = str(choice)
    return found


def _merged(base: Any, over: Any) -> Any:
    if isinstance(base, Mapping) and isinstance(over, Mapping):
        return {**base, **{key: _merged(base.get(key), value) for key, value in over.items()}}
    return base if isinstance(over, Mapping) and not over else over


def _compare(method: str, path: str, wanted: Any, found: Any, choice: str | None) -> None:
    """Refuse the first difference, by its path; that of a target by the file that has it."""
    if isinstance(wanted, Mapping) and isinstance(found, Mapping):
        if wanted.get("_target_") != found.get("_target_"):
            _refuse(method, path, choice or wanted.get("_target_"))
        for key in sorted(wanted.keys() | found.keys()):
            _compare(method, f"{path}.{key}", wanted.get(key), found.get(key), None)
    elif wanted != found:
        _refuse(method, path, choice or wanted)


def _refuse(method: str, field: str, choice: Any) -> None:
    raise ConfigurationError(
        f"method={method}: stands for {field}={choice}: leave {field} as it is, or method out and set what you want"
    )
