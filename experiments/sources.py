"""The code behind an import path, as a digest: an artefact is only as good as the function that made it.

Editing a scorer, model or loader makes its artefacts anew. What counts is the file that defines the target; what that
file imports does not, and neither do installed packages, whose versions stand in every row.
"""

import hashlib
import inspect
import sysconfig
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from hydra.utils import get_object


def digests(config: Any) -> dict[str, str]:
    """Import path → digest of its file, for every `_target_` in `config`, at any depth, that is no installed code."""
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
        source = inspect.getsourcefile(inspect.unwrap(get_object(target)))
    except TypeError:  # built in, or an instance of something
        return None
    if source is None:
        return None
    path = Path(source).resolve()
    installed = [Path(sysconfig.get_path(kind)).resolve() for kind in ("purelib", "platlib", "stdlib")]
    if any(path.is_relative_to(folder) for folder in installed):
        return None
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
