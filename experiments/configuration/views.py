"""Views of a configuration in which only some fields can be read: what a stage uses is what its identity holds."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any, NoReturn, cast

if TYPE_CHECKING:
    from experiments.configuration.schema import Configuration

FREE = frozenset({"device", "checkpoint", "threads"})
"""Fields that every view has and no identity: where and with how many threads something is computed stands beside
results, and a training that resumes from a checkpoint ends in the same bits.
"""


class UndeclaredFieldError(Exception):
    """A stage read a field that its identity does not hold: two runs that differ in it would share a result."""


def view(config: Configuration, fields: Collection[str]) -> Configuration:
    """`config` with `fields` alone ("seed", "recovery.factor", "data.load"); reading another one raises
    `UndeclaredFieldError`.
    """
    return cast("Configuration", _View(config, frozenset(fields) | FREE))


def covers(fields: Collection[str], path: str) -> bool:
    """Whether `fields` hold `path`, by itself or with the whole group that it is in."""
    return any(path == field or path.startswith(f"{field}.") for field in fields)


class _View:
    """A group of a configuration, or the whole, of which `fields` can be read."""

    def __init__(self, values: Any, fields: frozenset[str], prefix: str = "") -> None:
        self._values, self._fields, self._prefix = values, fields, prefix

    def __getattr__(self, name: str) -> Any:
        return self._read(name, getattr(self._values, name))

    def __getitem__(self, name: str) -> Any:
        return self._read(name, self._values[name])

    def get(self, name: str, default: Any = None) -> Any:
        """As of a mapping."""
        return self._read(name, self._values.get(name, default))

    def __iter__(self) -> NoReturn:
        raise self._undeclared("its names are")

    def __bool__(self) -> bool:
        raise self._undeclared("whether it is empty is")

    def _undeclared(self, what: str) -> UndeclaredFieldError:
        group = self._prefix.removesuffix(".") or "configuration"
        return UndeclaredFieldError(f"{group}: {what} read by a stage whose identity does not hold it: take it whole")

    def _read(self, name: str, value: Any) -> Any:
        path = f"{self._prefix}{name}"
        if covers(self._fields, path):
            return value
        if any(field.startswith(f"{path}.") for field in self._fields):
            return _View(value, self._fields, f"{path}.")
        raise UndeclaredFieldError(
            f"{path}: is read by a stage whose identity does not hold it; it has {', '.join(sorted(self._fields))}"
        )
