"""What an artefact depends on: parts of the configuration, and the code behind them."""

from typing import Any

from experiments.setting import Setting
from experiments.sources import digests


def part(setting: Setting, *names: str) -> dict[str, Any]:
    """These parts of the configuration, and the code behind them."""
    parts = {name: setting.config[name] for name in names}
    return {**parts, "sources of " + ", ".join(names): digests(parts)}


def data_part(setting: Setting, *names: str) -> dict[str, Any]:
    """The data, and the code that reads it; where its files lie does not matter."""
    parts: dict[str, Any] = {name: dict(setting.config["data"].get(name) or {}) for name in names}
    parts["load"].pop("folder", None)
    return {**parts, "sources": digests(parts)}
