"""The benchmark of selection at its smallest, and what it compares with: equal masks, and refusal of unequal ones."""

import json

import pytest
import torch

from experiments.benchmarks import selection as benchmark
from pruning import prune
from pruning.allocation import NofM, PerRow


def test_every_line_is_measured_and_exact(monkeypatch, capsys):
    smallest = ["--sizes", "20", "300", "--tensors", "1", "7", "30", "--width", "8", "--rounds", "1"]
    monkeypatch.setattr("sys.argv", ["selection", *smallest, "--threads", str(torch.get_num_threads())])
    benchmark.main()
    *lines, summary = capsys.readouterr().out.splitlines()
    lines, summary = [line.split() for line in lines], json.loads(summary)
    grid = [line for line in lines if len(line) == 8 and line[-1] == "True"]
    assert [line[1] for line in grid] == ["1", "7", "1", "7", "30"]  # no more tensors than weights
    assert all(float(figure) > 0 for line in grid for figure in line[2:6])
    assert [" ".join(line[:-5]) for line in lines[-4:]] == list(summary["seconds"])
    assert summary["exact"] is True
    assert set(summary) == {"largest_ratio", "ratio", "seconds", "extra_bytes", "exact"}
    assert summary["largest_ratio"] == max(float(line[5]) for line in grid)


def test_what_differs_is_not_called_exact(monkeypatch):
    def one_changed(true):
        def changed(*args, **kwargs):
            found = {name: tensor.clone() for name, tensor in true(*args, **kwargs).items()}
            last = found[list(found)[-1]].view(-1)
            last[-1] = not last[-1]
            return found

        return changed

    monkeypatch.setattr(benchmark, "prune", one_changed(benchmark.prune))
    monkeypatch.setattr(benchmark.scorers, "lamp", one_changed(benchmark.scorers.lamp))
    assert not benchmark._grid_row(300, 3, 1)["exact"]
    assert not any(row["exact"] for row in benchmark._bert_rows(benchmark.drawn({"a": (4, 8)}), 1).values())


@pytest.mark.parametrize("ties", [False, True])
def test_peers_choose_the_same(ties):
    scores = benchmark.drawn(benchmark.grid_shapes(3000, 17))
    if ties:
        scores = {name: score.round() for name, score in scores.items()}
    masks = prune(scores, 0.1)
    assert masks.kept == round(0.1 * masks.total)
    for peer in (benchmark.with_topk, benchmark.with_partition):
        assert benchmark._equal(peer(scores), masks)
    if not ties:
        assert benchmark._equal(benchmark.with_torch(scores), {name: mask.float() for name, mask in masks.items()})
        matrices = {name: torch.rand(6, 8) for name in "ab"}
        half = {"": (PerRow(), None), "of four": (NofM(2, 4), 4)}
        for allocation, length in half.values():
            peer = benchmark.topk_of_rows(matrices, lambda n: n // 2, length)
            assert benchmark._equal(peer, prune(matrices, 0.5, allocation=allocation))
            assert all(benchmark._is_top_of_rows(matrices[name], mask, length) for name, mask in peer.items())
            assert not any(benchmark._is_top_of_rows(matrices[name], ~mask, length) for name, mask in peer.items())


def test_shapes_of_the_grid_and_of_bert():
    assert sum(a * b for a, b in benchmark.bert_base_shapes().values()) == 108_768_768
    for size, tensors in ((10**4, 1), (10**5, 1000), (10**4, 10**4), (10**6, 10)):
        shapes = benchmark.grid_shapes(size, tensors)
        assert len(shapes) == tensors
        assert 0.9 * size < sum(a * b for a, b in shapes.values()) <= 1.0 * size
