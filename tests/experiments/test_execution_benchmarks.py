"""Benchmarks of execution and deployment at their smallest size: they run to their end and print what they say."""

import json
import sys

import pytest
import torch

from experiments.benchmarks import deployment, execution, products


@pytest.fixture
def printed(monkeypatch, capsys):
    """Runs a benchmark with these arguments; its lines, and the last one as JSON."""

    def run(benchmark, arguments: str):
        threads = torch.get_num_threads()
        monkeypatch.setattr(sys, "argv", [benchmark.__name__, *arguments.split()])
        try:
            benchmark.main()
        finally:
            torch.set_num_threads(threads)
        *lines, last = capsys.readouterr().out.strip().splitlines()
        return lines, json.loads(last)

    return run


def test_training_steps(printed, tmp_path):
    lines, found = printed(
        execution, f"--network 9-8-3 7-3 --density 0.2 0.5 --batch 4 --rounds 1 --figure {tmp_path / 'it'}"
    )
    rows = [line.split()[:2] for line in lines[2:]]
    assert rows == [["9-8-3", "0.5"], ["9-8-3", "0.2"], ["7-3", "0.5"], ["7-3", "0.2"]]
    assert {name: set(of) for name, of in found.items()} == {"speedup": {"0.5", "0.8"}, "speedup 7-3": {"0.5", "0.8"}}
    assert all(value > 0 for of in found.values() for value in of.values())
    assert (tmp_path / "it.png").exists()


def test_products_of_small_batches(printed):
    lines, found = printed(products, "--layer 6x5 --density 0.4 --batch 1 3 --rounds 1 --dtype float64")
    assert [line.split()[:3] for line in lines[1:]] == [["6x5", "0.4", "1"], ["6x5", "0.4", "3"]]
    assert [(row["layer"], row["density"], row["batch"]) for row in found] == [("6x5", 0.4, 1), ("6x5", 0.4, 3)]
    assert all(value > 0 for row in found for form in ("forward", "training") for value in row[form].values())


def test_deployment(printed):
    lines, found = printed(deployment, "--model lenet_300_100 --density 0.02 0.01 --batch 1 2")
    assert [line for line in lines if "weights are kept" in line] == [
        f"lenet_300_100, batch {batch}: {kept:,} of 266,200 weights are kept"
        for kept in (5324, 2662)
        for batch in (1, 2)
    ]
    assert [(row["density"], row["batch"]) for row in found["all"]] == [(0.02, 1), (0.02, 2), (0.01, 1), (0.01, 2)]
    assert 0 <= found["difference"] <= 1e-4
    assert found["speedup"] == found["all"][-1]["speedup"] > 0
