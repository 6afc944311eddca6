"""Every benchmark runs at its smallest size, prints its rows, and in its last line what it found, as JSON."""

import json
import math
import multiprocessing
import resource
import signal
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from experiments.benchmarks import lottery, measuring, report, scoring, smaller, startup, sweep, training_step
from experiments.training import loop as training
from tests.commands import ROOT, command

structure = pytest.importorskip("experiments.benchmarks.structure")
structure_peer = pytest.importorskip("experiments.benchmarks.structure_peer")


@pytest.fixture(autouse=True)
def threads():
    """Benchmarks set the number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def run(benchmark: Any, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[list[str], dict[str, Any]]:
    """The lines of its table, and its last line."""
    benchmark.main(arguments)
    *lines, last = capsys.readouterr().out.splitlines()
    return lines, json.loads(last)


def positive(found: dict[str, float]) -> bool:
    return bool(found) and all(0 < value < math.inf for value in found.values())


def test_lottery(capsys):
    step, batches = training._step, training.upcoming
    lines, found = run(lottery, capsys, "--epochs", "1", "--turns", "2", "--data", "digits")
    assert [line.split("  ")[0] for line in lines[3:]] == list(lottery.TITLES.values())
    assert found["speedup"].keys() == {"tensors", "pictures"}
    assert positive(found["speedup"])
    assert found["seconds_level"] > 0
    assert 0 <= found["gathering"] < found["outside_steps"] < 1
    accuracies = found["accuracy"]  # of one network, trained in three ways
    assert accuracies["ours"] > 0.5
    assert max(accuracies.values()) - min(accuracies.values()) < 0.02
    assert (training._step, training.upcoming) == (step, batches)


def test_scoring(capsys):
    lines, found = run(scoring, capsys, "--rounds", "1", "--scale", "0.02", "--width", "16")
    assert len(lines) == 3 + len(found["ratio"]) + len(found["fisher_difference"]) + 2
    scorers = ("snip", "taylor", "grasp", "synflow")
    assert found["ratio"].keys() == {f"{name}, {net}" for name in scorers for net in ("lenet_300_100", "resnet20")}
    assert all(positive(found[part]) for part in ("ratio", "fisher_times_as_fast", "obs_seconds"))
    assert max(found["fisher_difference"].values()) < 1e-4


def test_smaller(capsys):
    lines, found = run(smaller, capsys, "--rounds", "1", "--batch", "2")
    assert len(lines) == 3 + 3
    assert found["speedup"].keys() == {"ResNet-20", "ResNet-20 (A)", "BERT-like"}
    assert positive(found["speedup"])
    for line in lines[3:]:
        share, *_, difference = line.removesuffix("\n").split()[-5:]
        assert 0 < float(share) <= 0.5
        assert float(difference) <= 1e-5


def test_training_step(capsys):
    lines, found = run(training_step, capsys, "--rounds", "1", "--scale", "0.1")
    assert len(lines) == 3 + len(found["overhead"]) == 6
    assert all(-1 < value < math.inf for value in found["overhead"].values())


def test_report(capsys):
    lines, found = run(report, capsys, "--methods", "2", "--densities", "2", "--seeds", "2")
    seconds = found["cpu_seconds"]
    assert [line.split("  ")[0] for line in lines[3:]] == list(seconds) == [*report.PARTS, "the rest", "all"]
    total = seconds.pop("all")
    assert positive(seconds)
    assert sum(seconds.values()) == pytest.approx(total, abs=0.01)


def test_startup(capsys):
    lines, found = run(startup, capsys, "--rounds", "1", "--commands", "status")
    assert len(lines) == 3 + 1 + 1
    command, ratio = (float(word) for word in lines[3].split()[-2:])
    assert found["ratio"] == {"status": ratio}
    assert command / found["torch_seconds"] == pytest.approx(ratio, rel=0.02)


def test_sweep(capsys, monkeypatch):
    """Its command as a process, though not one from nothing, as it would be to measure it."""
    monkeypatch.setattr(sweep, "subprocess", SimpleNamespace(run=lambda words, **_: command(ROOT, *words[1:])))
    arguments = ("--rounds", "1", "--jobs", "1", "--epochs", "1", "--data", "digits", "--contenders", "single")
    lines, found = run(sweep, capsys, *arguments)
    assert len(lines) == 4
    _, job, _, whole, _ = lines[3].rsplit(maxsplit=4)
    assert 0 < float(job) < float(whole)
    assert found == {"throughput": {"single": 1.0}, "whole_command": {"single": 1.0}}


def test_sweep_compares_its_contenders(capsys, monkeypatch):
    """Three rounds of made-up seconds: the medians of ratios to the first contender."""
    spans = iter([(8, 12), (4, 10), (2, 6), (8, 12), (2, 8), (1, 4), (8, 12), (1, 6), (4, 3)])
    commands = []

    def made_up(*overrides: str) -> tuple[float, float]:
        commands.append(overrides)
        return next(spans)

    monkeypatch.setattr(sweep, "_sweep", made_up)
    _, found = run(sweep, capsys, "--jobs", "2", "--epochs", "3")
    assert found["throughput"] == {"single": 1.0, "default": 4.0, "together": 4.0}
    assert found["whole_command"] == {"single": 1.0, "default": 1.5, "together": 3.0}
    assert {command[:3] for command in commands} == {("seed=0,1", "data=mnist5k", "training.epochs=3")}
    assert [command[3:] for command in commands[:3]] == [given for _, given in sweep._CONTENDERS.values()]


def test_structure(capsys, tmp_path):
    table = tmp_path / "table.md"
    arguments = ("torchvision", "--models", "squeezenet1_1", "--limit", "120", "--output", str(table))
    lines, found = run(structure, capsys, *arguments)
    row = json.loads(lines[0])
    assert row["model"] == "squeezenet1_1"
    for part in ("trace s", "s", "torch-pruning s", "units"):
        assert row[part] > 0
    assert row["trace s"] < row["s"]
    for left, difference, verdict in (
        ("left", "difference", "verdict"),
        ("torch-pruning left", "torch-pruning difference", "torch-pruning"),
    ):
        assert 0.3 < row[left] < 0.9
        assert row[difference] <= 1e-5
        assert row[verdict] == "right"
    assert found["groups"]["torchvision"]["torch-pruning"] == {"right": 1}
    assert (found["right"], found["refused"], found["wrong"]) == (1, 0, 0)
    assert "1 right, 0 refused, 0 wrong" in table.read_text()
    assert table.read_text().count("\n| squeezenet1_1 |") == 1


# What the benchmarks share


def test_rows_are_printed_as_they_are_measured(capsys):
    summary: dict[str, int] = {}

    def rows():
        for place, name in enumerate(("first", "second")):
            assert capsys.readouterr().out.count("\n") == (3 if not place else 1)  # title, columns and line; one row
            summary[name] = place
            yield name, str(place)

    measuring.show("title", ("name", "value"), rows(), summary)
    row, last = capsys.readouterr().out.splitlines()
    assert row.split() == ["second", "1"]
    assert json.loads(last) == {"first": 0, "second": 1}
    with pytest.raises(ValueError, match="zip"):
        measuring.show("title", ("name", "value"), [("one", "two", "three")], {})


def test_a_part_is_not_charged_for_the_parts_that_it_calls(monkeypatch):
    clock = iter([0.0, 1.0, 4.0, 10.0])  # outer begins, inner begins and ends, outer ends

    class Work:
        @staticmethod
        def inner() -> str:
            return "done"

        @staticmethod
        def outer() -> str:
            return Work.inner()

    monkeypatch.setattr(report, "process_time", lambda: next(clock))
    with report.timed({"out": [(Work, "outer")], "in": [(Work, "inner")]}) as seconds:
        assert Work.outer() == "done"
    assert seconds == {"out": 7.0, "in": 3.0}
    assert Work.outer() == "done"  # as before: the clock has nothing more to tell


# The peer of the structure benchmark


def linear(weight: torch.Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = nn.Parameter(weight)
    return layer


def test_tags_tell_what_a_peer_removed():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), linear(torch.randn(2, 5))).eval()
    small = structure_peer.tagged(model)
    kept = torch.tensor([0, 3, 4])
    small[0].weight, small[0].bias = (nn.Parameter(p[kept]) for p in (small[0].weight, small[0].bias))
    for name in ("weight", "bias"):
        setattr(small[1], name, nn.Parameter(getattr(small[1], name)[kept]))
    small[1].running_mean, small[1].running_var = small[1].running_mean[kept], small[1].running_var[kept]
    small[3].weight = nn.Parameter(small[3].weight[:, kept])
    masks = structure_peer.untagged(small, model)

    rows = torch.zeros(5, dtype=torch.bool).index_fill(0, kept, True)
    wanted = {"0.weight": rows[:, None].expand(5, 4), "0.bias": rows, "1.weight": rows, "1.bias": rows}
    wanted["3.weight"] = rows.expand(2, 5)
    assert masks.keys() == wanted.keys()
    assert all(torch.equal(masks[name], mask) for name, mask in wanted.items())
    assert torch.equal(small[0].weight, model[0].weight[kept])
    assert torch.equal(small[1].running_var, model[1].running_var[kept])
    assert structure_peer.verify(model, masks, small, torch.randn(3, 4)) < 1e-6
    small[3].weight = nn.Parameter(small[3].weight[:, [1, 0, 2]])  # right shapes, wrong values
    assert structure_peer.verify(model, masks, small, torch.randn(3, 4)) > 1e-2


def test_weights_that_were_computed_cannot_be_compared():
    model = nn.Sequential(nn.Linear(4, 5))
    small = structure_peer.tagged(model)
    small[0].weight = nn.Parameter(-small[0].weight)
    assert structure_peer.untagged(small, model) is None


def without_end() -> None:
    with structure_peer.cpu_limit(0.5):
        while True:
            pass


def test_a_peer_that_computes_for_too_long_is_ended():
    process = multiprocessing.get_context("fork").Process(target=without_end)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGXCPU
    with structure_peer.cpu_limit(1):
        pass
    assert resource.getrlimit(resource.RLIMIT_CPU)[0] == resource.RLIM_INFINITY


def test_tags_reach_beyond_what_float32_can_count():
    """A place above 2²⁴ is told from the next: tags are bit patterns."""
    places = torch.tensor([2**24, 2**24 + 1, 2**29], dtype=torch.int32) + structure_peer._FIRST_TAG
    assert places.view(torch.float32).isfinite().all()
    assert len(set(places.view(torch.float32).tolist())) == 3


def test_language(capsys):
    pytest.importorskip("transformers")
    from experiments.benchmarks import language  # noqa: PLC0415  # needs an extra

    sizes = ("--pieces", "8", "--length", "16", "--turns", "1", "--depths", "2", "--densities", "0.5")
    lines, found = run(language, capsys, "--model", "tiny", *sizes)
    assert len(lines) > 20
    assert found["perplexity"].keys() == {f"{name} {how}" for name in ("wanda", "sparsegpt") for how in ("50 %", "2:4")}
    for name, (ours, peer) in found["perplexity"].items():
        assert ours == pytest.approx(peer, rel=0.02 if name.startswith("sparsegpt") else 1e-3)
    assert positive(found["ratio"])
    assert found["memory"]["2"]["bound"] > 0
    assert positive(found["decoding"])
    assert found["decoding"].keys() == {"0.3", "0.2", "0.1"}


def test_adaptation(capsys):
    pytest.importorskip("peft")
    from experiments.benchmarks import adaptation  # noqa: PLC0415  # needs an extra

    sizes = ("--batch", "2", "--length", "8", "--turns", "1", "--ranks", "1")
    lines, found = run(adaptation, capsys, "--model", "tiny", *sizes)
    assert len(lines) > 12
    assert found["ratio"].keys() == {f"{kind} r=1" for kind in ("full", "lora", "sparse")}
    assert positive(found["ms"])
    assert 20 <= found["bytes"]["r=1"] < 21  # value, gradient, two moments and the base of each weight; some steps
    assert positive(found["inference"])
    assert found["inference"]["none, or merged"] == 1.0
    assert len(found["inference"]) == 6
    assert found["delta"]["weights"] == 164
    assert positive(found["delta"])
