"""A replication by the project's own experiments: a configuration is composed as on the command line, and run."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from experiments import records
from experiments.configuration import CONF, validate
from experiments.run import run
from experiments.running.setting import Setting
from experiments.store import Store


def rows(folder: Path, name: str, overrides: Sequence[str]) -> pd.DataFrame:
    """The rows of one run, which lies in `folder`/`name` and shares `folder`/store; what is there is not done again."""
    run(setting(Store(folder / "store"), overrides), folder / name, name)
    return records.read(folder / name)


def setting(store: Store, overrides: Sequence[str]) -> Setting:
    """The setting of the command line's `overrides`; errors as there."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = validate(compose("config", overrides=list(overrides)))
    return Setting(config, store, alone=False)
