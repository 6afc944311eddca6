"""Targets of configuration groups (`_target_`): checked before anything is computed, then instantiated."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from hydra.utils import get_object
from hydra.utils import instantiate as make

from pruning.errors import ConfigurationError, PruningError

COMPLETE = frozenset({"model", "task", "data.load", "tracker"})
"""Groups whose targets are called with all that is in their YAML; those of others may take more arguments later."""


def check_target(group: str, config: Any) -> None:
    """Raise `ConfigurationError` where the target cannot be imported, or has no option of a name that is given."""
    target = config.get("_target_") if isinstance(config, Mapping) else None
    if not isinstance(target, str):
        raise ConfigurationError(
            f"{group}: has no _target_; choose a file of experiments/conf/{group}/, or give {group}._target_"
        )
    try:
        function: Callable[..., Any] = get_object(target)
    except Exception as error:  # whatever importing a user's module may raise
        reason = str(error).strip().splitlines()[-1]
        raise ConfigurationError(f"{group}._target_={target}: cannot be imported ({reason}): check the path") from error
    keywords = [key for key in config if not key.startswith("_")]
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return
    known = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    for key in keywords:
        if isinstance(config[key], Mapping) and "_target_" in config[key]:
            check_target(f"{group}.{key}", config[key])
        if key not in known:
            raise ConfigurationError(f"{group}.{key}: {target} has no such option; it takes {', '.join(known)}")


def instantiate(group: str, config: Mapping[str, Any], **arguments: Any) -> Any:
    """Make the object that a group's `_target_` names. A failure of the target becomes a `ConfigurationError`."""
    try:
        return make(dict(config), _convert_="all", **arguments)
    except Exception as error:
        cause = error.__cause__
        if cause is None or type(error).__module__.split(".")[0] != "hydra":
            raise
        if isinstance(cause, PruningError | OSError):
            raise cause from None
        later = "_partial_" not in config and group not in COMPLETE and "missing" in str(cause)
        hint = " (is _partial_: true missing?)" if later else ""
        raise ConfigurationError(f"{group}={config.get('_target_')}: {type(cause).__name__}: {cause}{hint}") from error


def completed(group: str, config: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """A group's configuration, with those of `facts` (of the data) that its target has a parameter for.

    Raises `ConfigurationError` where the target needs what neither has.
    """
    target = config["_target_"]
    try:
        parameters = inspect.signature(get_object(target)).parameters
    except (TypeError, ValueError):
        return dict(config)
    found = {name: value for name, value in facts.items() if name in parameters} | dict(config)
    for name, parameter in parameters.items():
        needed = parameter.default is parameter.empty and parameter.kind in (
            parameter.POSITIONAL_OR_KEYWORD,
            parameter.KEYWORD_ONLY,
        )
        if needed and name not in found and not config.get("_partial_"):
            raise ConfigurationError(
                f"{group}.{name}: {target} needs it, and the data's YAML does not declare it: set {group}.{name}, or "
                f"data.{name}"
            )
    return found


def without_return_check(function: Any) -> Any:
    """Remove the check of return values that Hydra adds to a partial.

    The check takes about a millisecond a call, as long as a training step.
    """
    if isinstance(function, partial):
        return partial(function.func, *function.args, **function.keywords)
    return function


def short_name(config: Mapping[str, Any]) -> str:
    """The last part of a group's target: pruning.scorers.magnitude → magnitude."""
    return str(config["_target_"]).rsplit(".", 1)[-1]
