"""Runs in sparse form: the same masks, weights within rounding, and rows that say what ran how."""

import logging

import pytest
import torch

from experiments.store import Artefact
from experiments.store.networks import Network, load
from pruning.execution import crossover
from tests.experiments.running import run, setting_of

LAYERS = ["fc1.weight", "fc2.weight", "fc3.weight"]


def weights(setting, row) -> dict[str, torch.Tensor]:
    key = row["network"].split("+")[0]
    return load(
        setting.new_model(), Network(Artefact("recovered", key, setting.store.root / "recovered" / key))
    ).state_dict()


@pytest.mark.parametrize(
    "options",
    [
        ("scorer=taylor", "density=[0.5,0.1]"),
        ("recovery=rewind", "recovery.to=7it", "density=0.1", "training.clip=0.5", "optimizer=adamw"),
        ("density=0.2", "training.clip=0.05", "optimizer=sgd"),  # which a clip that misses weights would change
        ("dynamic=rigl", "dynamic.every=5", "density=0.2"),
        ("dynamic=gradual", "dynamic.every=5", "density=0.2", "recovery.epochs=3"),
    ],
    ids=lambda options: options[0],
)
def test_sparse_runs_are_as_masked_ones(tmp_path, options):
    one = run(tmp_path / "masked", *options)
    other = run(tmp_path / "sparse", "execution=sparse", *options)
    assert [row["kept"] for row in other] == [row["kept"] for row in one]
    assert [row["sparse"] for row in one] == [[]] * len(one)
    assert [row["sparse"] for row in other] == [[]] + [LAYERS] * (len(one) - 1)
    for a, b in zip(one, other, strict=True):
        assert b["test_loss"] == pytest.approx(a["test_loss"], rel=2e-3)
    a = weights(setting_of(tmp_path / "masked", *options), one[-1])
    b = weights(setting_of(tmp_path / "sparse", "execution=sparse", *options), other[-1])
    for name, value in a.items():
        assert torch.allclose(value, b[name], rtol=1e-3, atol=1e-4), name
        assert torch.equal(value == 0, b[name] == 0), name


def test_masked_and_sparse_are_other_artefacts_and_share_the_rest(tmp_path):
    run(tmp_path, "density=0.1")
    run(tmp_path, "density=0.1", "execution=sparse")
    run(tmp_path, "density=0.1", "execution=masked")
    count = {kind: len(list((tmp_path / "store" / kind).iterdir())) for kind in ("dense", "masks", "recovered")}
    assert count == {"dense": 1, "masks": 1, "recovered": 2}


def test_auto_goes_by_what_is_measured_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    asked = []

    def measured(case):
        asked.append(case)
        return {"sparse": 5.0 if case.inputs == 64 else 0.5}

    monkeypatch.setattr(crossover, "measured", measured)
    rows = run(tmp_path / "one", "execution=auto", "density=[0.5,0.1]")
    assert [row["sparse"] for row in rows] == [[], ["fc1.weight"], ["fc1.weight"]]
    assert {case.rows for case in asked} == {64}  # batches of 60
    assert len(asked) == len(set(asked))
    before = len(asked)
    run(tmp_path / "two", "execution=auto", "density=[0.5,0.1]")
    assert len(asked) == before  # the file knows


def test_half_precision_stays_masked_and_says_so(tmp_path, caplog):
    caplog.set_level(logging.INFO, "experiments")
    rows = run(tmp_path, "execution=sparse", "density=0.1", "training.precision=bf16")
    assert rows[1]["sparse"] == []
    assert "there is no sparse one for half precision" in caplog.text
