"""Configurations: what YAML may say, checked before anything is computed."""

from experiments.configuration.checks import CONF, CONTROLS, Configuration, checked, densities

__all__ = ["CONF", "CONTROLS", "Configuration", "checked", "densities"]
