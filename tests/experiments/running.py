"""Small runs for the tests: a tiny network on the digits of scikit-learn, in a folder of their own."""

from pathlib import Path

from hydra import compose, initialize_config_dir

from experiments import records
from experiments import run as app
from experiments.configuration import checked
from experiments.setting import Setting
from experiments.store import Store

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
SMALL = ("data=digits", "model=mlp", "model.hidden=[16,12]", "training.epochs=2", "recovery.epochs=1")


def configured(*overrides: str) -> dict:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return checked(compose("config", overrides=[*SMALL, *overrides]))


def setting_of(folder: Path, *overrides: str) -> Setting:
    return Setting(configured(*overrides), Store(folder / "store"))


def run(folder: Path, *overrides: str) -> list[dict]:
    rows = app.run(setting_of(folder, *overrides), folder / "run", "name")
    assert records.read(folder / "run").to_dict("list")["test_accuracy"] == [row["test_accuracy"] for row in rows]
    return rows


def timeless(rows: list[dict]) -> list[dict]:
    return [{key: value for key, value in row.items() if not key.endswith("seconds")} for row in rows]
