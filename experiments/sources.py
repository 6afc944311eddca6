"""The code behind an import path, as a digest: an artefact is only as good as the function that made it.

Editing a scorer, model or loader, or what it imports, makes its artefacts anew. What counts is the file that defines
the target and all that it imports, directly or not, by import statements; not installed packages, whose versions stand
in every row.
"""

import ast
import hashlib
import inspect
import sysconfig
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.util import find_spec, resolve_name
from pathlib import Path
from typing import Any

from hydra.utils import get_object


def digests(config: Any) -> dict[str, str]:
    """Import path → digest of its code, for every `_target_` in `config`, at any depth, that is no installed code."""
    found = {target: _digest(target) for target in _targets(config)}
    return {target: digest for target, digest in found.items() if digest is not None}


def _targets(config: Any) -> Iterator[str]:
    if isinstance(config, Mapping):
        if isinstance(config.get("_target_"), str):
            yield config["_target_"]
        config = list(config.values())
    if isinstance(config, list):
        for item in config:
            yield from _targets(item)


@cache
def _digest(target: str) -> str | None:
    try:
        function = inspect.unwrap(get_object(target))
        source = inspect.getsourcefile(function)
    except TypeError:  # built in, or an instance of something
        return None
    if source is None or _installed(Path(source)):
        return None
    digest = hashlib.sha256()
    for path in _reached(Path(source).resolve(), function.__module__):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _reached(path: Path, module: str) -> list[Path]:
    """`path`, the file of `module`, and the files that it imports, and those that they import, in a fixed order."""
    found = {path: module}
    waiting = [path]
    while waiting:
        for name, imported in _imports(waiting.pop(), found):
            if imported not in found:
                found[imported] = name
                waiting.append(imported)
    return sorted(found, key=lambda file: (found[file], file.name))  # a checkout elsewhere has the same order


def _imports(path: Path, names: Mapping[Path, str]) -> Iterator[tuple[str, Path]]:
    package = names[path] if path.name == "__init__.py" else names[path].rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and (package or not node.level):
            start = resolve_name("." * node.level + (node.module or ""), package)
            modules = [start, *(f"{start}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in modules:
            file = _file(name)
            if file is not None and not _installed(file):
                yield name, file


@cache
def _file(module: str) -> Path | None:
    try:
        spec = find_spec(module)
    except (ImportError, ValueError):  # a function of a module, say
        return None
    return Path(spec.origin).resolve() if spec and spec.origin and spec.origin.endswith(".py") else None


@cache
def _installed(path: Path) -> bool:
    folders = [Path(sysconfig.get_path(kind)).resolve() for kind in ("purelib", "platlib", "stdlib")]
    return any(path.resolve().is_relative_to(folder) for folder in folders)
