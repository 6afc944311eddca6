"""Configurations: what YAML may say, checked before anything is computed."""

from experiments.configuration.checks import densities, validate
from experiments.configuration.schema import CONF, CONTROLS, Configuration

__all__ = ["CONF", "CONTROLS", "Configuration", "densities", "validate"]
