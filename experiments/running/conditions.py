"""Conditions of a training: what the rounding of its sums depends on. They are in every row, but in no key."""

import platform
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import torch

from experiments.runtime.processes import world_size
from experiments.store.sources import libraries

_LIBRARIES = frozenset({"accelerate", "numpy", "scipy", "torch"})
"""The packages with which our own code computes."""

_DISTRIBUTIONS = {"sklearn": "scikit-learn", "PIL": "pillow", "yaml": "pyyaml"}
"""Names by which packages are installed, where they are imported by others."""


def conditions(
    config: Mapping[str, Any], device: torch.device | None = None, sparse: Sequence[str] = ()
) -> dict[str, Any]:
    """The device (None: the CPU), threads, processes, the weights that ran sparsely, and versions."""
    return {
        "device": "cpu" if device is None else device_name(device),
        "threads": torch.get_num_threads(),
        "processes": world_size(),
        "sparse": list(sparse),
        "versions": versions(config),
    }


def device_name(device: torch.device) -> str:
    """Product name of a CUDA device; the type of any other."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def versions(config: Mapping[str, Any]) -> dict[str, str]:
    """The versions of Python and of the packages that compute: those of our own code, and of the code behind the
    targets of `config`, loaded already or not.
    """
    behind = libraries({group: value for group, value in config.items() if group != "tracker"})
    known = {name: _version(name) for name in sorted(_LIBRARIES | behind)}
    return {"python": platform.python_version()} | {name: text for name, text in known.items() if text is not None}


def _version(name: str) -> str | None:
    """The version of a package by its import name; None where it is unknown."""
    found = getattr(sys.modules.get(name), "__version__", None)
    if found is not None:
        return str(found)
    try:
        return metadata.version(_DISTRIBUTIONS.get(name, name))
    except metadata.PackageNotFoundError:
        return None
