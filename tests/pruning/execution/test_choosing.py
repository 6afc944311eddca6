"""Which layers run sparsely, by a measurement that is remembered."""

import threading

import torch
from torch import nn

from pruning import Masks
from pruning.execution import Crossover, auto, masked, sparse
from pruning.execution.crossover import Case, fastest, measured
from pruning.execution.product import has_csr


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 25, 7), nn.Linear(7, 3))


def masks_of(model: nn.Module, density: float) -> Masks:
    g = torch.Generator().manual_seed(0)
    names = ("0.weight", "3.weight", "4.weight")
    return Masks({name: torch.rand(model.get_parameter(name).shape, generator=g) < density for name in names})


class Known(Crossover):
    def __init__(self, answers):
        self.asked, self._answers = [], answers

    def speedups(self, case: Case) -> dict[str, float]:
        self.asked.append(case)
        return self._answers(case)


def test_rows_or_images_are_counted_and_nothing_changes():
    model = network()
    inputs = torch.randn(32, 3, 5, 5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    answers = {8: {"sparse": 2.0, "csr": 2.1}, 7: {"sparse": 1.0, "csr": 1.05}, 3: {"sparse": 0.5, "csr": 1.2}}
    crossover = Known(lambda case: answers[case.outputs])
    assert auto(model, masks_of(model, 0.2), inputs, crossover) == {"0.weight": 0, "4.weight": 32}
    assert [(case.outputs, case.inputs, case.rows, case.positions) for case in crossover.asked] == [
        (8, 3, 32, 32),  # 25 positions, to a power of two
        (7, 200, 32, 0),
        (3, 7, 32, 0),
    ]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


def test_calls_are_counted_on_a_copy_and_on_the_model_where_there_is_none():
    class Counts(nn.Module):
        def __init__(self, lock=None):
            super().__init__()
            self.layer, self.calls, self.lock = nn.Linear(6, 3), 0, lock

        def forward(self, x):
            self.calls += 1
            return self.layer(x)

    crossover = Known(lambda case: {"sparse": 2.0})
    for model, calls in ((Counts(), 0), (Counts(threading.Lock()), 1)):
        masks = {"layer.weight": torch.rand(3, 6) < 0.5}
        assert auto(model, masks, torch.randn(4, 6), crossover) == {"layer.weight": 0}
        assert model.calls == calls


def test_the_simplest_form_is_taken_of_those_that_are_hardly_slower():
    assert fastest({}) == "dense"
    assert fastest({"sparse": 1.09, "csr": 1.0}) == "dense"
    assert fastest({"sparse": 1.2, "csr": 1.3}) == "sparse"
    assert fastest({"sparse": 1.2, "csr": 1.33}) == "csr"
    assert fastest({"packed": 1.5, "sparse": 1.6, "csr": 1.7}) == "csr"


def test_masked_and_sparse_ask_nobody():
    model = network()
    masks = masks_of(model, 0.2)
    assert masked(model, masks, None) == ()
    assert sparse(model, masks, None) == ("0.weight", "3.weight", "4.weight")


def test_density_classes_are_half_octaves():
    mask = torch.zeros(100, 100, dtype=torch.bool)
    found = {}
    for kept in (10_000, 5_000, 4_700, 1_000, 100, 1):
        mask.view(-1)[:] = False
        mask.view(-1)[:kept] = True
        found[kept] = Case.of(mask, 100, 0, torch.float32).density
    assert found[10_000] == 1.0
    assert found[5_000] == found[4_700] == 0.5
    assert 0.08 < found[1_000] < 0.12
    assert 0.007 < found[100] < 0.013
    assert Case.of(mask, 100, 0, torch.float32).rows == 128


def test_what_was_measured_is_remembered_and_a_damaged_file_is_not_trusted(tmp_path, monkeypatch):
    case = Case(8, 8, 16, 0, 0.25, "float32", 1)
    path = tmp_path / "deep" / "crossover.json"
    asked = []
    monkeypatch.setattr("pruning.execution.crossover.measured", lambda case: asked.append(case) or {"sparse": 3.0})
    assert Crossover(path).speedups(case) == {"sparse": 3.0}
    assert Crossover(path).speedups(case) == {"sparse": 3.0}
    assert len(asked) == 1
    for number, damaged in enumerate(["{", "[" * 100_000, '{"a": {"b": 1' + "0" * 400 + "}}", "[]"], start=2):
        path.write_text(damaged)
        assert Crossover(path).speedups(case) == {"sparse": 3.0}
        assert len(asked) == number
    (tmp_path / "file").write_text("")
    assert Crossover(tmp_path / "file" / "x.json").speedups(case) == {"sparse": 3.0}  # where nothing can be written
    assert Crossover(tmp_path).speedups(case) == {"sparse": 3.0}  # a folder
    assert not list(tmp_path.parent.glob(f".{tmp_path.name}.*.tmp"))
    assert len(asked) == 7


def test_a_cache_that_cannot_be_written_is_told_once(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("pruning.execution.crossover.measured", lambda case: {"csr": float(case.rows)})
    (tmp_path / "file").write_text("")
    crossover = Crossover(tmp_path / "file" / "x.json")
    for rows in (2, 4, 4):
        assert crossover.speedups(Case(8, 8, rows, 0, 0.25, "float32", 1)) == {"csr": rows}
    (record,) = caplog.records
    assert "the next process will measure again" in record.getMessage()


def test_one_process_measures_once(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("pruning.execution.crossover.measured", lambda case: asked.append(case) or {"sparse": 2.0})
    model = network()
    monkeypatch.setattr("pruning.execution.crossover.Crossover._remember", lambda self: None)
    for _ in range(2):
        assert len(auto(model, masks_of(model, 0.2), torch.randn(32, 3, 5, 5))) == 3
    assert len(asked) == 3


def test_the_measurement_runs_without_gradients_and_leaves_the_random_state():
    before = torch.random.get_rng_state()
    for positions in (0, 4):
        with torch.no_grad():
            found = measured(Case(16, 16, 8, positions, 0.1, "float32", 1))
        assert set(found) == ({"sparse", "csr"} if has_csr() else {"sparse"})
        assert min(found.values()) > 0
    assert torch.equal(torch.random.get_rng_state(), before)
