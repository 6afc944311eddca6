"""Networks of another run as models: what that run removed stays away, and densities are of its original network."""

from dataclasses import replace

import pytest

from experiments import records, report
from experiments import run as app
from experiments.results.figures.axes import TIMES
from experiments.running.models import model_of_run
from experiments.running.setting import Setting
from experiments.store import Store
from experiments.store.retrieval import masks_of, network_of
from pruning.errors import ConfigurationError
from tests.experiments.running import configured, own


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    """A run of weights to 40 %, in `weights`, and one of channels, in `channels`; artefacts in `store`."""
    folder = tmp_path_factory.mktemp("pruned")
    for name, more in (("weights", []), ("channels", ["granularity=channels"])):
        setting = Setting(configured("density=[0.4]", *more), Store(folder / "store"))
        app.run(setting, folder / name, name)
    return folder


ROUNDS = ("schedule=exponential", "schedule.rounds=2")


def again(folder, name: str, *more: str) -> list[dict]:
    """The rows of a run of the last level of the run `name`."""
    model = {"_target_": "experiments.running.models.model_of_run", "folder": str(folder / name), "level": None}
    model |= {"store": str(folder / "store")}
    config = replace(configured(f"store={folder}/store", *more), model=model)
    return app.run(Setting(config, Store(folder / "store")), folder / "again" / name, "again")


def last(folder, name: str) -> dict:
    return records.as_dicts(records.read(folder / name))[-1]


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("weights", ["when=pretrained"]),
        ("weights", ["when=trained", "recovery=rewind"]),
        ("weights", ["when=init", "scorer=snip"]),
        ("weights", ["when=pretrained", "dynamic=gradual", "dynamic.every=2"]),
        ("weights", ["when=pretrained", "granularity=channels"]),
        ("channels", ["when=pretrained", "granularity=channels"]),
        ("channels", ["when=pretrained", "execution=sparse"]),
    ],
)
def test_masks_stay_and_prunings_go_on_within_them(pruned, name, more):
    rows = again(pruned, name, "density=[0.1]", *more)
    before, store = masks_of(last(pruned, name), pruned / "store"), pruned / "store"
    start = masks_of(rows[0], store)
    assert start == before
    assert rows[0]["density"] == last(pruned, name)["density"] < 0.5
    assert (rows[0]["prunable"], rows[0]["dense_macs"]) == (1336, 1336)
    found = masks_of(rows[1], store)
    assert all(not (found[parameter] & ~mask).any() for parameter, mask in before.items())
    assert rows[1]["kept"] < rows[0]["kept"]
    model = network_of(rows[1], model_of_run(str(pruned / name), store=str(store)), store)
    for parameter, mask in found.items():
        assert not model.get_parameter(parameter)[~mask].any()


def test_the_network_is_that_of_the_run_and_of_the_run_after_it(pruned):
    """Nothing is done: pruned to what it has already, without recovery, it measures what it measured there."""
    there = last(pruned, "weights")
    rows = again(pruned, "weights", "density=[0.4]", "when=pretrained", "recovery.epochs=0")
    for row in rows:
        for column in ("density", "kept", "nonzero", "layers", "test_accuracy", "test_loss", "bytes"):
            assert row[column] == there[column], column
    model = model_of_run(str(pruned / "again" / "weights"), store=str(pruned / "store"))
    assert model.starting_masks == masks_of(there, pruned / "store")


def test_a_dense_level_brings_no_masks_and_the_report_says_what_a_pruned_one_has(pruned, tmp_path, capsys):
    assert model_of_run(str(pruned / "weights"), 0, str(pruned / "store")).starting_masks is None
    again(pruned, "weights", "density=[0.1]", "when=pretrained")
    folder = pruned / "again" / "weights"
    assert report.main([str(folder), "--store", str(pruned / "store"), "--output", str(tmp_path)]) == 0
    (line,) = [line.split() for line in capsys.readouterr().out.splitlines() if " dense " in line]
    assert line[:5] == ["1", "0.3997", "60", "%", f"2.5{TIMES}"]
    first = (tmp_path / "accuracy_macs.csv").read_text().splitlines()[1]
    assert first.startswith(f"dense,1.0,{534 / 1336}")


def test_in_rounds_from_where_it_stands(pruned):
    rows = again(pruned, "weights", "when=pretrained", "density=[0.1]", *ROUNDS, "+schedule.start=0.4")
    assert [row["kept"] for row in rows] == [534, 267, 134]


def test_a_density_above_what_is_left_is_refused_before_training(pruned):
    trained = set((pruned / "store" / "dense").iterdir())
    left = r"density=0\.{}: the network of that run keeps 0\.3997 of its weights: .* \+\+schedule\.start=0\.3997"
    for first, more in (("5", ["density=[0.5]"]), ("4472", ["density=[0.2]", *ROUNDS])):
        with pytest.raises(ConfigurationError, match=left.format(first)):
            again(pruned, "weights", *more)
    assert set((pruned / "store" / "dense").iterdir()) == trained


def test_what_cannot_be_is_refused(pruned, tmp_path):
    part = Setting(configured("density=[0.4]", "exclude=[fc2*]"), Store(pruned / "store"))
    app.run(part, pruned / "part", "part")
    with pytest.raises(ConfigurationError, match=r"fc2.weight: has no mask in the run .*: set include and exclude as"):
        again(pruned, "part", "density=[0.1]", "when=pretrained")
    assert len(again(pruned, "part", "density=[0.1]", "when=pretrained", "exclude=[fc2*]")) == 2
    for control in ("reinit", "random"):
        with pytest.raises(ConfigurationError, match=f"controls={control}: fc1.weight has the same weights at every"):
            again(pruned, "weights", "density=[0.1]", "when=trained", f"controls=[{control}]")


OWN = """
from pathlib import Path
import torch
from pruning import Masks

def pruned(file):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    torch.nn.init.zeros_(model[1].weight)
    kept = int(Path(file).read_text())
    model.starting_masks = Masks({"1.weight": torch.arange(640).view(10, 64) < kept})
    return model
"""


def test_other_masks_of_the_same_weights_are_another_start(tmp_path, monkeypatch):
    model = {"_target_": f"{own(tmp_path, monkeypatch, OWN)}.pruned", "file": str(tmp_path / "kept")}
    for kept in (160, 320):
        (tmp_path / "kept").write_text(str(kept))
        config = replace(configured("density=[0.1]", "when=pretrained", "scorer=random"), model=model)
        rows = app.run(Setting(config, Store(tmp_path / "store")), tmp_path / str(kept), "own")
        assert [row["kept"] for row in rows] == [kept, 64]
