"""SynFlow: reference values, conservation, and layers that survive until a single weight is left in each."""

import itertools

import pytest
import torch
from torch import Tensor, nn

from pruning import Evidence, Masks, prunable, prune, schedules, scorers
from pruning.errors import ScoreError
from tests.pruning.cases import FLOW, assert_scores, tensor


def evidence(model: nn.Module, *shape: int, masks: Masks | None = None) -> Evidence:
    return Evidence(model, prunable(model), [(torch.randn(3, *shape), torch.zeros(3))], masks=masks)


def chain(*widths: int, bias: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b, bias=bias), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def test_scores_equal_the_reference() -> None:
    weights = {name: tensor(value) for name, value in FLOW["weights"].items()}
    widths = [w.shape[1] for w in weights.values()] + [list(weights.values())[-1].shape[0]]
    model = chain(*widths).double()
    model.load_state_dict(weights)
    [key] = [key for key in FLOW if key.startswith("score")]
    found = scorers.synflow(evidence(model, widths[0]))
    assert_scores(found, {name: tensor(value) for name, value in FLOW[key].items()}, 1e-12)
    for score in found.values():
        assert float(score.sum()) == pytest.approx(FLOW["R"], rel=1e-12)


NETWORKS = {
    "mlp": (chain(6, 5, 4, 3), (6,)),
    "mlp with biases": (chain(6, 5, 4, 3, bias=True), (6,)),
    "convolutions": (
        nn.Sequential(
            nn.Conv2d(2, 4, 3, bias=False), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 3, bias=False)
        ),
        (2, 6, 6),
    ),
    "batch norm, group norm and dropout": (
        nn.Sequential(
            nn.Conv2d(2, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Conv2d(4, 4, 3, groups=2),
            nn.GroupNorm(2, 4),
            nn.Flatten(),
            nn.Linear(16, 3),
        ),
        (2, 6, 6),
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("training", [True, False])
def test_flow_is_conserved_from_layer_to_layer(name: str, training: bool) -> None:
    model, shape = NETWORKS[name]
    model.train(training)
    scores = scorers.synflow(evidence(model, *shape))
    sums = [float(score.sum()) for score in scores.values()]
    assert sums == pytest.approx([sums[0]] * len(sums), rel=1e-12)
    assert sums[0] > 0
    for score in scores.values():
        assert score.dtype == torch.float64
        assert float(score.min()) >= 0
    assert model.training == training
    other = scorers.synflow(evidence(model.train(not training), *shape))
    assert_scores(other, scores, 0)


def test_scores_are_the_sums_over_paths() -> None:
    """By brute force: of |w1·w2| over all paths through a weight, times inputs of 1."""
    model = chain(3, 4, 2)
    first, second = model[0].weight.detach().double().abs(), model[2].weight.detach().double().abs()
    scores = scorers.synflow(evidence(model, 3))
    for h in range(4):
        for i in range(3):
            torch.testing.assert_close(scores["0.weight"][h, i], first[h, i] * second[:, h].sum())
        for o in range(2):
            torch.testing.assert_close(scores["2.weight"][o, h], second[o, h] * first[h].sum())


def test_a_hundred_rounds_leave_one_path_where_one_round_empties_layers() -> None:
    """Maximal compression: with as many weights as layers, no layer is empty. Tanaka et al. 2020, definition."""
    model = chain(20, 20, 20, 20, 5)
    parameters = prunable(model)
    total = sum(p.numel() for p in parameters.values())
    density = len(parameters) / total
    at_once = prune(scorers.synflow(evidence(model, 20)), density)
    assert at_once.emptied
    masks: Masks | None = None
    for step in schedules.exponential(density, rounds=100)[1:]:
        masks = prune(scorers.synflow(evidence(model, 20, masks=masks)), step, within=masks)
        masks.apply_(model)
    assert masks is not None
    assert masks.kept == len(parameters)
    assert not masks.emptied
    assert bool(model(torch.ones(1, 20)).isfinite().all())


def test_deep_products_do_not_underflow() -> None:
    model = chain(*[8] * 60)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1e-3)
    for score in scorers.synflow(evidence(model, 8)).values():
        assert bool((score > 0).all())


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4, bias=False)
        self.b = nn.Linear(4, 4, bias=False)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x)))


def test_a_tied_weight_sums_its_uses() -> None:
    model = Shared()
    apart = chain(4, 4, 4)
    apart.load_state_dict({"0.weight": model.a.weight, "2.weight": model.a.weight})
    two = scorers.synflow(evidence(apart, 4))
    assert_scores(scorers.synflow(evidence(model, 4)), {"a.weight": two["0.weight"] + two["2.weight"]}, 1e-12)


class Recurrent(nn.Module):
    """Its biases are named bias_ih_l0 and bias_hh_l0."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.RNN(3, 4, nonlinearity="relu", batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.cell(x)[0]


def test_biases_are_zero_whatever_their_name() -> None:
    """One step from a state of zeros: R = Σ |w|, so every weight scores its size."""
    model = Recurrent()
    found = scorers.synflow(Evidence(model, prunable(model), [torch.zeros(2, 1, 3)]))
    wanted = model.cell.weight_ih_l0.detach().abs().double()
    assert_scores({"w": found["cell.weight_ih_l0"]}, {"w": wanted}, 1e-12)


@pytest.mark.parametrize(
    ("case", "said"),
    [
        (lambda: Evidence(chain(3, 2), prunable(chain(3, 2))), "batch"),
        (lambda: Evidence(chain(3, 2), prunable(chain(3, 2)), [torch.zeros(2, 3, dtype=torch.long)]), "floating"),
        (lambda: evidence(huge(), 4), "float64"),
        (lambda: evidence(Several(), 3), "tensor"),
        (lambda: evidence(nn.Sequential(nn.Bilinear(3, 3, 2)), 3), "does not run on one float64 input"),
        (lambda: Evidence(chain(3, 2), prunable(chain(3, 2)), [()]), "floating"),
    ],
)
def test_what_has_no_flow_is_refused(case, said: str) -> None:
    with pytest.raises(ScoreError, match=said) as caught:
        scorers.synflow(case())
    assert "\n" not in str(caught.value)


class Several(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        return {"first": self.layer(inputs)}


def huge() -> nn.Module:
    model = chain(*[4] * 20)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1e30)
    return model
