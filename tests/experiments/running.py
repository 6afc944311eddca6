"""Small runs for the tests: a tiny network on the digits of scikit-learn, in a folder of their own."""

import importlib
import shutil
import sys
from copy import deepcopy
from functools import cache
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from experiments import records
from experiments import run as app
from experiments.configuration import CONF, Configuration, validate
from experiments.running.setting import Setting
from experiments.store import Store, sources, syntax

ROOT = Path(__file__).parents[2]
SMALL = ("data=digits", "model=mlp", "model.hidden=[16,12]", "training.epochs=2", "recovery.epochs=1")


def configured(*overrides: str) -> Configuration:
    return validate(composed(*SMALL, *overrides))


def composed(*overrides: str) -> DictConfig:
    """What Hydra composes, which takes it most of a small run's time: once for the same choices of groups, which it
    composes first; then the fields, in their order.
    """
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    fields = [one for one in parsed if not (CONF / one.key_or_group).is_dir() or isinstance(one.value(), dict)]
    found = deepcopy(_chosen(*(one.input_line for one in parsed if one not in fields)))
    ConfigLoaderImpl._apply_overrides_to_config(fields, found)
    return found


@cache
def _chosen(*groups: str | None) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides=list(groups))


def setting_of(folder: Path, *overrides: str) -> Setting:
    return Setting(configured(*overrides), Store(folder / "store"))


def run(folder: Path, *overrides: str) -> list[dict]:
    rows = app.run(setting_of(folder, *overrides), folder / "run", "name")
    assert records.read(folder / "run").to_dict("list")["test_accuracy"] == [row["test_accuracy"] for row in rows]
    return rows


def unscored(evidence):
    """A scorer that forgets what it is asked for."""
    return {}


def timeless(rows: list[dict]) -> list[dict]:
    return [{key: value for key, value in row.items() if not key.endswith(("seconds", "_ms"))} for row in rows]


def own(folder: Path, monkeypatch: pytest.MonkeyPatch, code: str, name: str = "own_code") -> str:
    """A user's module with this code, importable, as if edited between two commands; its name."""
    (folder / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(str(folder))
    sys.modules.pop(name, None)
    forget()
    shutil.rmtree(folder / "__pycache__", ignore_errors=True)
    return name


def forget() -> None:
    """Read files again, as another process would."""
    for function in (*vars(sources).values(), *vars(syntax).values()):
        if hasattr(function, "cache_clear"):
            function.cache_clear()
    importlib.invalidate_caches()
