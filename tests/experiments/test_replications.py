"""Claims, files and exit codes; each replication, small, against brute force, identities and rows made by hand."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from experiments.data import digits
from experiments.models import mlp
from experiments.replications import collapse, obd_prediction, sanity, snip
from experiments.replications.at_initialisation import batch, initial, paired, pruned, trained
from experiments.replications.claims import Claim, Study, arguments, report, run, write
from experiments.runtime.seeding import seeded
from pruning import Evidence, Masks, prunable, schedules, scorers
from pruning.errors import DataError


@pytest.fixture(scope="module")
def splits():
    return digits()


# Claims


@pytest.mark.parametrize(
    ("ours", "low", "high", "verdict"),
    [
        (1.0, 1.0, 2.0, "ok"),
        (2.0, 1.0, 2.0, "ok"),
        (2.1, 1.0, 2.0, "outside"),
        (0.9, 1.0, None, "outside"),
        (9.0, 1.0, None, "ok"),
        (-9.0, None, 1.0, "ok"),
        (math.nan, 1.0, None, "outside"),
        (math.nan, None, 1.0, "outside"),
        (5.0, None, None, "not judged"),
    ],
)
def test_verdicts(ours, low, high, verdict):
    assert Claim("", "", ours, low, high).verdict == verdict


def test_a_report_prints_and_writes_every_claim_and_fails_for_one_outside(tmp_path, capsys):
    good = Claim("good", "1 [a, b]", 1.0, 0.5, 1.5, "[0.9, 1.1]")
    bad, shown = Claim("bad", "2", math.nan, 1.0), Claim("shown", "", 7.0)
    assert report("title [min, max]", [good, shown], tmp_path) == 0
    assert report("title [min, max]", [good, shown, bad], tmp_path) == 1
    printed = capsys.readouterr().out
    for words in ("title [min, max]", "1 [a, b]", "[0.9, 1.1]", "0.5 to 1.5", "at least 1", "outside", "not judged"):
        assert words in printed
    written = json.loads((tmp_path / "claims.json").read_text())
    assert [(line["text"], line["ours"], line["verdict"]) for line in written] == [
        ("good", 1.0, "ok"),
        ("shown", 7.0, "not judged"),
        ("bad", None, "outside"),
    ]


def test_rows_and_figure_are_written(tmp_path):
    paths = write(tmp_path / "new", "name", pd.DataFrame({"a": [1, 2]}), Figure())
    assert sorted(path.name for path in paths) == ["name.csv", "name.pdf", "name.png"]
    assert (tmp_path / "new" / "name.csv").read_text() == "a\n1\n2\n"
    assert (tmp_path / "new" / "name.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "new" / "name.pdf").read_bytes()[:4] == b"%PDF"


@pytest.mark.parametrize(("ours", "code"), [(1.0, 0), (3.0, 1)])
def test_the_exit_code_is_that_of_the_claims(tmp_path, capsys, ours, code):
    options = arguments("").parse_args(["--folder", str(tmp_path), "--seeds", "4", "5"])
    found = Study("a title", [Claim("c", "1", ours, 0.0, 2.0)], pd.DataFrame({"a": [1]}), Figure(), "a note")
    assert run("name", lambda _: found, options) == code
    printed = capsys.readouterr().out
    assert "a title" in printed
    assert "seeds 4 5, 1 thread(s)" in printed
    assert "a note" in printed
    files = {path.name for path in (tmp_path / "name").iterdir()}
    assert files == {"claims.json", "name.csv", "name.png", "name.pdf"}


def test_what_a_user_can_mend_is_one_line_and_code_2(tmp_path, capsys, monkeypatch):
    def mnist():
        raise DataError("mnist: cannot be had: use mnist5k")

    monkeypatch.setattr("experiments.data.mnist", mnist)
    assert snip.main(["--data", "mnist", "--folder", str(tmp_path)]) == 2
    (tmp_path / "file").touch()
    assert collapse.main(["--folder", str(tmp_path / "file")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "snip: mnist: cannot be had: use mnist5k"
    assert len(lines) == 2


# Pruning at initialisation


def test_masks_of_one_round_and_of_many(splits):
    model = initial(splits.train, seed=3, hidden=(12, 6))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    evidence, examples = Evidence(model, prunable(model)), [batch(splits.train, 20, 3)]
    one = pruned(model, scorers.magnitude, [0.25], examples)
    many = pruned(model, scorers.magnitude, schedules.exponential(0.25, rounds=5)[1:], examples)
    assert one == many  # magnitudes do not change between rounds
    assert one.kept == round(0.25 * one.total)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    sizes = {name: weight.detach().abs() for name, weight in evidence.parameters.items()}
    kept, removed = (torch.cat([s[one[n] == keep] for n, s in sizes.items()]) for keep in (True, False))
    assert kept.min() >= removed.max()


def test_scoring_examples_are_distinct_and_depend_on_the_seed(splits):
    first, again, other = (batch(splits.train, 50, seed)[0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len(first.flatten(1).unique(dim=0)) == 50


def test_training_is_a_function_of_weights_masks_and_seed(splits):
    errors = [trained(initial(splits.train, 0, hidden=(10,)), splits, 2, seed=0) for _ in range(2)]
    assert errors[0] == errors[1] < 90


def test_differences_are_of_the_same_seed():
    rows = pd.DataFrame(
        {"method": ["a", "a", "b", "b"], "seed": [0, 1, 1, 0], "density": [0.1] * 4, "error": [3.0, 5.0, 4.0, 1.0]}
    )
    found = paired(rows, "error", {"method": "a", "density": 0.1}, {"method": "b", "density": 0.1})
    assert (found.mean, found.n) == (1.5, 2)
    assert found.std == pytest.approx(np.std([2.0, 1.0], ddof=1))


# Collapse


def test_the_grid_ends_with_one_weight_a_layer():
    assert collapse.grid(1000, 10) == pytest.approx([0.1 * k for k in range(1, 21)])
    grid = collapse.grid(266_200, 3)
    assert grid[:2] == [0.1, 0.2]
    assert grid[-2:] == [4.9, math.log10(266_200 / 3)]
    assert round(266_200 * 10 ** -grid[-1]) == 3


def test_critical_is_the_last_compression_without_an_empty_layer():
    def masks_at(density):
        return Masks({"w": torch.tensor([density not in (0.1, 0.0001)])})

    assert collapse.critical(masks_at, [1.0, 2.0, 3.0, 4.0]) == 3.0
    assert collapse.critical(lambda _: Masks({"w": torch.tensor([False])}), [1.0, 2.0]) == 0.0


@pytest.mark.parametrize("seed", range(3))
def test_collapse_of_a_tiny_network_by_brute_force(seed):
    rows = pd.DataFrame(collapse.measure("tiny", (5, 4), seed, inputs=12, classes=3)).set_index("method")
    with seeded(seed, "initialisation"):
        model = mlp([12], 3, hidden=(5, 4), bias=False, init="kaiming_normal")
    w1, w2, w3 = (weight.detach().double().abs().numpy() for weight in prunable(model).values())
    through = np.ones(3) @ w3, w2.T @ (w3.T @ np.ones(3)), np.ones(12)
    out = w1 @ through[2], w2 @ (w1 @ through[2])
    flow = [w1 * through[1][:, None], w2 * through[0][:, None] * out[0], w3 * out[1]]
    assert [layer.sum() for layer in flow] == pytest.approx([flow[0].sum()] * 3)  # conservation: the oracle's own check
    for method, layers in {"magnitude": [w1, w2, w3], "SynFlow, 1 round": flow}.items():
        scores = np.concatenate([layer.ravel() for layer in layers])
        owner = np.repeat([0, 1, 2], [layer.size for layer in layers])[np.argsort(-scores)]
        needed = max(np.flatnonzero(owner == layer)[0] for layer in range(3)) + 1
        fine = [c for c in collapse.grid(len(scores), 3) if round(len(scores) * 10**-c) >= needed]
        assert rows.loc[method, "log10_critical"] == (max(fine) if fine else 0.0)
    assert rows.loc[collapse.SYNFLOW, "log10_critical"] == math.log10(92 / 3)
    assert set(rows.index) == {"random", "magnitude", "SNIP", "GraSP", "SynFlow, 1 round", collapse.SYNFLOW}


def test_claims_of_collapse_take_the_median():
    rows = pd.DataFrame(
        {"network": "LeNet-300-100", "method": "SNIP", "log10_critical": value, "log10_maximum": 4.95}
        for value in (2.1, 2.2, 4.9)
    )
    assert [(claim.ours, claim.verdict) for claim in collapse.claims(rows)] == [(2.2, "ok")]
    assert collapse.claims(rows.assign(log10_critical=2.6))[0].verdict == "outside"


# SNIP


def test_a_mask_that_keeps_everything_is_the_dense_network(splits):
    rows = pd.DataFrame(snip.measure(splits, 0, epochs=2, densities=(1.0,), hidden=(12, 6))).set_index("method")
    assert rows.loc[snip.SNIP, snip.ERROR] == rows.loc[snip.RANDOM, snip.ERROR] == rows.loc[snip.DENSE, snip.ERROR]
    assert (rows["density"] == 1.0).all()


def snip_rows(gaps, noise=(0.0, 0.1, -0.1)):
    """Errors 5 (dense), 5 + gap (SNIP), that + 4 (random), 5.2 (magnitude), plus a noise for each seed."""
    lines = []
    for seed, off in enumerate(noise):
        lines.append((snip.DENSE, seed, 1.0, 5.0 + off))
        for density, gap in zip(snip.DENSITIES, gaps, strict=True):
            lines.append((snip.SNIP, seed, density, 5.0 + gap + off))
            lines.append((snip.RANDOM, seed, density, 9.0 + gap + 2 * off))
            lines.append((snip.MAGNITUDE, seed, density, 5.2 + off))
    return pd.DataFrame(lines, columns=["method", "seed", "requested_density", snip.ERROR])


def test_claims_of_snip_are_gaps():
    found = snip.claims(snip_rows((0.0, 0.4, 1.0)), snip.TOLERANCES["mnist5k"])
    assert [claim.verdict for claim in found] == ["not judged", *["ok"] * 6]
    assert [claim.ours for claim in found[:4]] == pytest.approx([5.0, 0.0, 0.4, 1.0])
    half = 4.302653 * 0.1 / math.sqrt(3)  # of the differences random - SNIP: 4.0, 4.1, 3.9
    assert found[4].ours == pytest.approx(4.0 - half, abs=1e-5)
    worse = snip.claims(snip_rows((0.0, 2.0, 4.0)), snip.TOLERANCES["mnist5k"])
    assert [claim.verdict for claim in worse[1:4]] == ["ok", "outside", "outside"]


# OBD


def test_in_a_linear_network_the_forecast_is_exact_for_one_weight(splits):
    model, data = obd_prediction.minimised(splits.train, 0, hidden=(), iterations=30)
    weight, start = model.get_parameter("fc1.weight"), obd_prediction.objective(model, data)
    (gradient,) = torch.autograd.grad(start, weight)
    saliency = obd_prediction.saliencies(model, data)["fc1.weight"]
    for place in ((0, 20), (3, 41), (9, 36)):
        value = weight[place].item()
        with torch.no_grad():
            weight[place] = 0.0
            rise = (obd_prediction.objective(model, data) - start).item()
            weight[place] = value
        # a parabola along every weight; the first term is nought at the minimum itself
        assert rise == pytest.approx(saliency[place].item() - gradient[place].item() * value, rel=1e-6, abs=1e-12)


def test_rows_of_obd(splits):
    shares = (0.0, 0.25, 0.5)
    rows = pd.DataFrame(obd_prediction.measure(splits.train, 0, hidden=(4,), iterations=30, shares=shares))
    nothing = rows[rows["removed"] == 0]
    assert nothing["actual"].nunique() == 1
    by_obd = rows[rows["order"] == obd_prediction.OBD]
    assert by_obd["predicted"].iloc[0] == by_obd["actual"].iloc[0] == nothing["actual"].iloc[0]
    assert by_obd["predicted"].is_monotonic_increasing
    assert list(by_obd["removed"]) == [0, 74, 148]  # of 64·4 + 4·10
    assert rows[rows["order"] != obd_prediction.OBD]["predicted"].isna().all()


def test_claims_of_obd_are_ratios_of_the_same_seed():
    lines = [
        (seed, order, share, 1.0 + share, (1.0 + share) * factor * (1 + seed))
        for seed in (0, 1, 2)
        for order, factor in ((obd_prediction.OBD, 1.0), (obd_prediction.MAGNITUDE, 2.0), (obd_prediction.RANDOM, 20.0))
        for share in obd_prediction.SHARES
    ]
    rows = pd.DataFrame(lines, columns=["seed", "order", "share", "predicted", "actual"])
    found = {claim.text: claim for claim in obd_prediction.claims(rows)}
    agreement = found["actual / predicted at 20% removed"]
    assert (agreement.ours, agreement.spread, agreement.verdict) == (2.0, "[1.00, 3.00]", "outside")
    assert found["order of magnitude / of OBD at 60% removed"].ours == 2.0
    assert found["random order / of OBD at 30% removed"].ours == 20.0


# Sanity checks


def test_shuffling_keeps_the_count_of_every_layer(splits):
    model = initial(splits.train, 0, hidden=(12, 6))
    masks = pruned(model, scorers.snip, [0.2], [batch(splits.train, 50, 0)])
    found = sanity.shuffled(masks, Evidence(model, prunable(model)), seed=0)
    assert [line.kept for line in found.table()] == [line.kept for line in masks.table()]
    assert found != masks
    assert found == sanity.shuffled(masks, Evidence(model, prunable(model)), seed=0)


def test_without_pruning_nothing_but_the_weights_makes_a_difference(splits, monkeypatch):
    monkeypatch.setitem(sanity.ROUNDS, "SynFlow", 2)
    rows = pd.DataFrame(sanity.measure(splits, 0, epochs=1, density=1.0, hidden=(12, 6)))
    assert len(rows) == 3 * 4 + 1
    new = rows["variant"] == sanity.NEW
    assert rows[~new][sanity.ACCURACY].nunique() == rows[new][sanity.ACCURACY].nunique() == 1


def test_claims_of_the_sanity_checks_are_differences():
    lines = [
        (scorer, variant, seed, 90.0 + seed + change)
        for scorer in sanity.SCORERS
        for variant, change in ((sanity.ORIGINAL, 0), (sanity.SHUFFLED, -1), (sanity.NEW, -2), (sanity.INVERTED, -30))
        for seed in (0, 1, 2)
    ]
    rows = pd.DataFrame(lines, columns=["scorer", "variant", "seed", sanity.ACCURACY])
    found = {claim.text: (claim.ours, claim.verdict) for claim in sanity.claims(rows)}
    assert found["SNIP: layers shuffled - original"] == (-1.0, "ok")
    assert found["SynFlow: new weights - original"] == (-2.0, "outside")
    assert found["SNIP: inverted - original"] == (-30.0, "ok")
    assert found["GraSP: inverted - original"] == (-30.0, "not judged")


# Whole scripts


@pytest.mark.parametrize("name", ["snip", "sanity"])
def test_a_script_ends_with_what_it_wrote(name, splits, tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.data.mnist5k", lambda: splits)
    monkeypatch.setattr(sanity, "mnist5k", lambda: splits)
    monkeypatch.setitem(sanity.ROUNDS, "SynFlow", 2)
    script = {"snip": snip, "sanity": sanity}[name]
    code = script.main(["--epochs", "1", "--seeds", "0", "--folder", str(tmp_path)])
    rows = check(tmp_path / name, code, rows={"snip": 10, "sanity": 13}[name])
    weights = 64 * 300 + 300 * 100 + 100 * 10
    kept = {round(weights * d) for d in {"snip": (1.0, *snip.DENSITIES), "sanity": (sanity.DENSITY,)}[name]}
    assert set((rows["density"] * weights).round(6)) == kept


def test_collapse_as_a_script(tmp_path, monkeypatch):
    monkeypatch.setattr(collapse, "NETWORKS", {"small": (20,)})
    check(tmp_path / "collapse", collapse.main(["--seeds", "0", "--folder", str(tmp_path)]), rows=6)


def test_obd_prediction_as_a_script(tmp_path):
    code = obd_prediction.main(["--iterations", "5", "--seeds", "0", "--folder", str(tmp_path)])
    check(tmp_path / "obd_prediction", code, rows=3 * len(obd_prediction.SHARES))


def check(folder: Path, code: int, rows: int) -> pd.DataFrame:
    """The files are there, and the code is that of the claims; the rows."""
    verdicts = [line["verdict"] for line in json.loads((folder / "claims.json").read_text())]
    assert code == int("outside" in verdicts)
    assert {path.suffix for path in folder.iterdir()} == {".json", ".csv", ".png", ".pdf"}
    written = pd.read_csv(folder / f"{folder.name}.csv")
    assert len(written) == rows
    return written
