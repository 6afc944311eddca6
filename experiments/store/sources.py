"""Digests of code: a result is only as good as the code that made it.

A file counts by what it does, so without comments, docstrings and layout, and with all that it imports, directly or
not, by import statements. Installed packages do not count, their versions stand in every row; our own two count
wherever they are installed. Digests are the same wherever the files lie and whatever version of Python reads them.
"""

import hashlib
import sys
import sysconfig
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from experiments.store.syntax import Import, read
from pruning.errors import ConfigurationError

OWN = frozenset({"experiments", "pruning"})


def digests(config: Any, without: Collection[str] = ()) -> dict[str, str]:
    """Import path → digest of its code, for every `_target_` in `config`, at any depth, that is no installed code.

    Raises `ConfigurationError` for a target whose code is in no file: a change of it would go unnoticed.
    """
    found = {target: _behind(target) for target in _targets(config)}
    return {target: _digest((start,), frozenset(without)) for target, start in found.items() if start is not None}


def digest(modules: Iterable[str], without: Collection[str] = ()) -> str:
    """16 hexadecimal digits for the code of `modules` and all that they import.

    Imports of what `without` names, modules or packages with all that is in them, are not followed.
    """
    return _digest(tuple((module, "") for module in modules), frozenset(without))


def reached(modules: Iterable[str], without: Collection[str] = ()) -> list[str]:
    """The modules that `digest` covers, sorted."""
    return sorted(_reached(tuple((module, "") for module in modules), frozenset(without))[0])


def libraries(config: Any) -> set[str]:
    """Top-level names of the installed packages that the code behind the `_target_`s of `config` imports."""
    found: set[str] = set()
    for target in _targets(config):
        start = _behind(target)
        found |= {target.partition(".")[0]} if start is None else _reached((start,), frozenset())[1]
    return found - sys.stdlib_module_names


def _targets(config: Any) -> Iterator[str]:
    if isinstance(config, Mapping):
        target = config.get("_target_")
        if isinstance(target, str):
            yield target
            if target.startswith("hydra.utils.get_") and isinstance(config.get("path"), str):
                yield config["path"]  # how Hydra names a function or a class without calling it
        config = list(config.values())
    if isinstance(config, list):
        for item in config:
            yield from _targets(item)


def _behind(target: str) -> Import | None:
    """The module of an import path, and what the path takes from it; None for installed code."""
    module, _, name = target.rpartition(".")
    while module and _counts(module):
        if _file(module) is not None:
            return module, name
        module, _, name = module.rpartition(".")
    if module:
        return None
    raise ConfigurationError(
        f"_target_={target}: its code is in no file, so that a change would go unnoticed: put it into a module"
    )


@cache
def _digest(starts: tuple[Import, ...], without: frozenset[str]) -> str:
    found, _ = _reached(starts, without)
    text = "\n".join(f"{module} {found[module]}" for module in sorted(found))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@cache
def _reached(starts: tuple[Import, ...], without: frozenset[str]) -> tuple[dict[str, str], frozenset[str]]:
    """Module → digest of its own file, for all that count; and the other packages that they import."""
    found: dict[str, str] = {}
    others = set()
    named = {module for module, _ in starts}
    waiting = list(starts)
    while waiting:
        module, name = waiting.pop()
        if not _counts(module):
            others.add(module.partition(".")[0])
            continue
        for origin in _origins(module, name):
            file = _file(origin)
            if file is not None and origin not in found and (origin in named or not _among(origin, without)):
                source = read(file, origin)
                found[origin] = source.digest
                waiting += source.imports
    return found, frozenset(others)


def _origins(module: str, name: str) -> Iterator[str]:
    """The modules that count where `name` is imported from `module`.

    The file of a package that does nothing but import hands on what it has: only the module where that is from counts.
    """
    file = _file(module)
    hands_on = {} if file is None else read(file, module).hands_on
    if hands_on is not None and hands_on.get(name, (module, name)) != (module, name):
        yield from _origins(*hands_on[name])
    elif name and _file(f"{module}.{name}") is not None:
        yield f"{module}.{name}"
        if hands_on is None:
            yield module
    else:
        yield module


def _among(module: str, packages: Collection[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


# Where modules lie


@cache
def _counts(module: str) -> bool:
    """Whether a module is ours or the user's, or cannot be found; not Python's or that of an installed package."""
    top = module.partition(".")[0]
    spec = _spec(top)
    if top in OWN or spec is None:
        return True
    places = [Path(place).resolve() for place in (*(spec.submodule_search_locations or ()), spec.origin) if place]
    python = Path(sysconfig.get_path("stdlib")).resolve()
    inside = (place.is_relative_to(python) or _PACKAGES & set(place.parts) for place in places)
    return bool(spec.has_location or spec.submodule_search_locations) and not any(inside)


_PACKAGES = frozenset({"site-packages", "dist-packages"})


@cache
def _file(module: str) -> Path | None:
    spec = _spec(module)
    if spec is not None and spec.has_location and spec.origin is not None:
        return Path(spec.origin)
    place = getattr(sys.modules.get(module), "__file__", None) if module == "__main__" else None
    return None if place is None else Path(place)


@cache
def _spec(module: str) -> ModuleSpec | None:
    """Where Python would load `module` from. Nothing is imported, as `find_spec` would import its package."""
    above, _, _ = module.rpartition(".")
    if not above:
        try:
            return find_spec(module)
        except ValueError:  # of a module that was not loaded from anywhere
            return None
    package = _spec(above)
    places = None if package is None else package.submodule_search_locations
    return None if places is None else PathFinder.find_spec(module, places)
