"""Identity of a result: fields of the configuration, the code behind their targets, and the code of its stage."""

from collections.abc import Collection, Mapping
from typing import Any

from experiments.store import sources

WITHOUT_EFFECT = (
    *(f"experiments.store.{name}" for name in ("identity", "sources", "syntax")),  # find keys
    *(f"experiments.configuration.{name}" for name in ("schema", "views")),  # values count, wherever they come from
    *(f"experiments.store.{name}" for name in ("artefacts", "manifest", "inventory")),  # their format is in every key
    *(f"experiments.records.{name}" for name in ("rows", "columns", "values", "runs", "fields")),  # as is that of rows
    "experiments.running.conditions",  # stands beside results
    *(f"experiments.runtime.{name}" for name in ("errors", "extras", "progress", "locks")),  # words, and waiting
    "pruning.errors",  # classes and words of what fails, and then has no result
)
"""Modules of ours that stages use and that change no result."""

EXECUTION = ("experiments.training.execution", "pruning.execution")
"""How masks are executed: counts for trainings under masks alone, by `execution` in the stage of trainings."""

STRUCTURE = ("pruning.structure",)
"""Coupled units: counts where they are pruned, or cut out of layers."""


def identity_of(config: Mapping[str, Any], *fields: str) -> dict[str, Any]:
    """Identity of `fields` ("model", "recovery.factor"): their values, nested as in `config`, and the code behind their
    targets.
    """
    found: dict[str, Any] = {}
    for name in fields:
        *groups, last = name.split(".")
        value, place = config, found
        for group in groups:
            value, place = value[group], place.setdefault(group, {})
        place[last] = _without_place(value[last]) if name == "data.load" else value.get(last)
    return found | {f"code of {target}": digest for target, digest in sources.digests(found, WITHOUT_EFFECT).items()}


def _without_place(load: Mapping[str, Any]) -> dict[str, Any]:
    """A loader without the folder of its files, where that does not matter: our own have a known set by its name."""
    known = str(load["_target_"]).startswith("experiments.data.")
    return {key: value for key, value in load.items() if not (known and key == "folder")}


def read_code(config: Mapping[str, Any], *modules: str) -> None:
    """Read the code of `modules`, of what they import and of the targets of `config`, as it has been loaded.

    Call it before the work begins: a file that is edited meanwhile counts as it was.
    """
    sources.digests(config)
    sources.digest(modules)


def code(*modules: str, without: Collection[str] = ()) -> dict[str, str]:
    """The code of a stage: these modules and all that they import, but `without` and what changes no result."""
    return {f"code of {', '.join(modules)}": sources.digest(modules, (*WITHOUT_EFFECT, *without))}
