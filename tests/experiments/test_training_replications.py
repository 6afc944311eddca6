"""Replications made of the project's own experiments: their claims from rows made by hand, and whole scripts, small."""

import json
import math

import numpy as np
import pandas as pd
import pytest

from experiments.replications import adaptation, composed, lottery, rigl

WEIGHTS = 784 * 300 + 300 * 100 + 100 * 10


# The lottery ticket


def ladder(rounds):
    """Weights kept after every round: 20 % of two layers removed, 10 % of the last."""
    left = [784 * 300, 300 * 100, 100 * 10]
    yield sum(left)
    for _ in range(rounds):
        left = [n - math.floor(rate * n + 0.5) for n, rate in zip(left, (0.2, 0.2, 0.1), strict=True)]
        yield sum(left)


def tickets(gaps):
    """Rows of two seeds: the ticket stays at 95 + seed, new weights lose `gaps` (density → points)."""
    lines = []
    for seed in (0, 1):
        for level, kept in enumerate(ladder(21)):
            density = kept / WEIGHTS
            gap = next((gap for share, gap in gaps.items() if abs(density / share - 1) < 0.1), 0.0)
            lines.append((seed, level, density, "ticket", 95.0 + seed))
            if level:
                lines.append((seed, level, density, "reinit", 95.0 + seed - gap * (1 + 0.02 * seed)))
    return pd.DataFrame(lines, columns=["seed", "level", "density", "control", lottery.ACCURACY])


def test_claims_of_the_lottery_ticket_are_differences_of_the_same_seed_at_the_nearest_level():
    found = lottery.claims(tickets({0.07: 0.6, 0.01: 0.9, 0.21: 0.5}))
    assert [claim.verdict for claim in found[:5]] == ["ok", "ok", "outside", "ok", "ok"]
    values = [claim.ours for claim in found]
    assert values == pytest.approx(
        [0.606, 0.606 - 12.7062 * 0.006, 0.909, 0.909 - 12.7062 * 0.009, 0, 0, -0.505], abs=1e-4
    )
    worse = lottery.claims(tickets({0.07: -0.6, 0.01: 2.0}))
    assert [claim.verdict for claim in worse[:5]] == ["outside", "outside", "ok", "ok", "ok"]


def test_the_lottery_ticket_as_a_script(tmp_path):
    command = ["--seeds", "0", "1", "--epochs", "1", "--rounds", "3", "--folder", str(tmp_path)]
    code = lottery.main(command)
    verdicts = [line["verdict"] for line in json.loads((tmp_path / "lottery" / "claims.json").read_text())]
    assert code == int("outside" in verdicts)
    rows = pd.read_csv(tmp_path / "lottery" / "lottery.csv")
    expected = list(ladder(3))
    assert list(rows["kept"]) == 2 * [n for n in expected for _ in range(1 if n == WEIGHTS else 2)]
    assert list(rows["control"]) == 2 * ["ticket", *3 * ["ticket", "reinit"]]
    assert {"lottery.png", "lottery.pdf"} < {path.name for path in (tmp_path / "lottery").iterdir()}
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "lottery" / "store").rglob("*.safetensors")}
    assert lottery.main(command) == code  # nothing is trained again
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "lottery" / "store").rglob("*.safetensors")} == before
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "lottery" / "lottery.csv"), rows)


# RigL


def errors(static, by_set, by_rigl):
    """Rows of three seeds whose errors are those and the seed, at both densities."""
    methods = {rigl.STATIC: static, rigl.SET: by_set, rigl.RIGL: by_rigl}
    lines = [(m, seed, d, e + seed) for m, e in methods.items() for seed in (0, 1, 2) for d in rigl.DENSITIES]
    return pd.DataFrame(lines, columns=["method", "seed", "requested_density", rigl.ERROR])


def test_claims_of_rigl_are_its_order():
    good, bad = rigl.claims(errors(9.0, 7.0, 6.5)), rigl.claims(errors(6.0, 7.0, 7.5))
    assert [claim.ours for claim in good] == pytest.approx(2 * [0.5, 2.0, 2.5])
    assert {claim.verdict for claim in good} == {"ok"}
    assert {claim.verdict for claim in bad} == {"outside"}


def test_rigl_as_a_script(tmp_path):
    code = rigl.main(["--seeds", "0", "1", "--epochs", "2", "--folder", str(tmp_path)])
    verdicts = [line["verdict"] for line in json.loads((tmp_path / "rigl" / "claims.json").read_text())]
    assert code == int("outside" in verdicts)
    rows = pd.read_csv(tmp_path / "rigl" / "rigl.csv")
    assert len(rows) == 2 * (1 + 3 * 2)
    assert (rows["kept"] == np.round(rows["requested_density"] * WEIGHTS)).all()
    sparse = rows[rows["method"] != rigl.DENSE]
    assert set(sparse["epochs"]) == set(rows[rows["method"] == rigl.DENSE]["epochs"]) == {2}  # equal steps
    assert {"rigl.png", "rigl.pdf"} < {path.name for path in (tmp_path / "rigl").iterdir()}


def test_composed_runs_share_a_store(tmp_path):
    common = ("data=digits", "model=mlp", "model.hidden=[8]", "training.epochs=1", "recovery=none", "density=0.5")
    first = composed.rows(tmp_path, "first", common)
    second = composed.rows(tmp_path, "second", [*common, "scorer=random"])
    assert list(first["dense"]) == list(second["dense"])
    assert len(list((tmp_path / "store" / "dense").iterdir())) == 1


# Adaptations


def adapted(points, filled):
    """Rows of three seeds: accuracy by method and budget, with the same noise for all, and zeros filled of 100."""
    lines = []
    for seed in range(3):
        for (method, budget), accuracy in points.items():
            lines.append((method, seed, budget, 1.0, 20_736, 0, 100, accuracy + seed))
        lines += [(method, seed, adaptation.SMALL, 0.5, 20_736, count, 100, 60.0) for method, count in filled.items()]
    columns = ["method", "seed", "budget", "requested_density", "density", "filled", "removed", adaptation.ACCURACY]
    found = pd.DataFrame(lines, columns=columns).assign(trained=20_736)
    return found.assign(**{adaptation.ERROR: 100 - found[adaptation.ACCURACY]})


def test_claims_of_adaptations_are_differences_of_the_same_seeds():
    a = adaptation
    points = {(a.HEAD, ""): 65.0, (a.FULL, ""): 71.0, (a.LORA, a.SMALL): 69.0, (a.LORA, a.LARGE): 69.5}
    points |= {(a.ADAPTERS, a.SMALL): 68.0, (a.ADAPTERS, a.LARGE): 70.5, (a.CHANGE, a.SMALL): 70.0}
    points |= {(a.RANDOM, a.SMALL): 67.0, (a.MAGNITUDE, a.SMALL): 66.0, (a.GRADIENT, a.SMALL): 69.0}
    found = a.claims(adapted(points, {"LoRA merged": 100, "within survivors": 0}))
    assert [claim.ours for claim in found] == pytest.approx([0.5, 3.0, 4.0, 3.0, 0.5, 1.0, 0.0])
    assert {claim.verdict for claim in found} == {"ok"}
    worse = points | {(a.LORA, a.LARGE): 71.0, (a.CHANGE, a.SMALL): 65.0, (a.GRADIENT, a.SMALL): 65.0}
    worse |= {(a.ADAPTERS, a.LARGE): 69.0}
    found = a.claims(adapted(worse, {"LoRA merged": 50, "within survivors": 1}))
    assert {claim.verdict for claim in found} == {"outside"}
    assert a.draw(adapted(points, {})).axes[0].get_ylabel().startswith("Test error")
