"""What a paper's method stands for, so that a label with its name is of nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import OmegaConf

from experiments.configuration.schema import CONF
from pruning.errors import ConfigurationError


def check_method(config: Mapping[str, Any]) -> None:
    """Raise `ConfigurationError` where something that `config["method"]` stands for was set otherwise. What follows the
    pruning is free, and so are densities; of a method in a folder of one's own nothing is known.
    """
    file = CONF / "method" / f"{config['method']}.yaml"
    if config["method"] is None or not file.is_file():
        return
    wanted: Any = OmegaConf.to_container(OmegaConf.load(file))
    for entry in wanted.pop("defaults"):
        ((override, choice),) = entry.items()
        group = override.removeprefix("override /")
        made: Any = OmegaConf.load(CONF / group / f"{choice}.yaml")
        target = made.get(group, made).get("_target_")
        if target is not None and config[group].get("_target_") != target:
            _refuse(config["method"], group, choice)
    for path, value in _leaves({key: value for key, value in wanted.items() if key not in ("method", "density")}):
        found: Any = config
        for name in path:
            found = found.get(name)
        if found != value:
            _refuse(config["method"], ".".join(path), value)


def _leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, (*path, str(key)))
    else:
        yield path, value


def _refuse(method: str, field: str, choice: Any) -> None:
    raise ConfigurationError(
        f"method={method}: stands for {field}={choice}: leave {field} as it is, or method out and set what you want"
    )
