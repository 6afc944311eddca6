"""Weights times activations against loops over examples, positions and patches."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pruning import Evidence, prunable, prune, scorers
from pruning.allocation import PerRow
from pruning.errors import ScoreError
from pruning.recovery import compensate, compensate_bias
from tests.pruning.cases import assert_scores, reference, reference_case


@pytest.mark.parametrize("sizes", [(6,), (1, 5), (2, 2, 2)])
def test_wanda_equals_the_reference_however_data_are_cut(sizes: tuple[int, ...]) -> None:
    assert_scores(scorers.wanda(reference_case(*sizes)), reference("Wanda"))


def forward(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).sum()


@pytest.mark.parametrize("norm", [1, 2])
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(4, 3), (5, 6, 4)),
        (nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=1, groups=2), (3, 4, 7, 5)),
        (nn.Conv1d(4, 6, 3, padding=2, padding_mode="circular", dilation=2), (3, 4, 9)),
    ],
    ids=["linear", "grouped", "circular"],
)
def test_a_layers_scores_by_a_loop_over_single_weights(norm: int, layer: nn.Module, shape: tuple[int, ...]) -> None:
    """‖x_j‖ is the norm of what a weight multiplies: the outputs of the layer with that weight 1 and all others 0."""
    layer = layer.double()
    x = torch.randn(shape, dtype=torch.float64)
    found = scorers.wanda(Evidence(layer, prunable(layer), [x[:1], x[1:]], forward), norm=norm)["weight"]  # a literal
    for index in range(layer.weight.numel()):
        one = torch.zeros_like(layer.weight)
        one.view(-1)[index] = 1
        alone = torch.func.functional_call(layer, {"weight": one, "bias": torch.zeros_like(layer.bias)}, (x,))
        size = alone.abs().pow(norm).sum().pow(1 / norm) * layer.weight.view(-1)[index].detach().abs()
        torch.testing.assert_close(found.view(-1)[index], size)


def test_wanda_within_rows_is_the_choice_of_its_paper() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(8, 5)
    x = torch.randn(20, 8) * torch.arange(8)
    masks = prune(scorers.wanda(Evidence(layer, prunable(layer), [x], forward)), 0.5, allocation=PerRow())
    metric = layer.weight.detach().abs() * x.norm(dim=0)
    for row, kept in zip(metric, masks["weight"], strict=True):
        assert set(kept.nonzero()[:, 0].tolist()) == set(row.topk(4).indices.tolist())


def test_one_forward_pass_a_batch_and_no_gradient() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(inplace=True), nn.Linear(3, 2))
    seen = []
    model.register_forward_hook(lambda *args: seen.append(torch.is_grad_enabled()))
    scorers.wanda(Evidence(model, prunable(model), [torch.randn(2, 4)] * 3, forward))
    assert seen == [False] * 3


class Elsewhere(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x) + F.linear(x, self.unused.weight)


@pytest.mark.parametrize(
    ("model", "shape", "said"),
    [
        (Elsewhere(), (2, 3), "unused.weight"),
        (nn.MultiheadAttention(4, 2), (2, 3, 4), "in_proj_weight"),
        (nn.ConvTranspose1d(2, 2, 3), (2, 2, 5), "weight"),
    ],
)
def test_a_weight_that_no_layer_multiplies_is_named(model: nn.Module, shape: tuple[int, ...], said: str) -> None:
    def run(model: nn.Module, x: Tensor) -> object:
        return model(x, x, x) if isinstance(model, nn.MultiheadAttention) else model(x)

    with pytest.raises(ScoreError, match=f"{said}: no Linear or convolution"):
        scorers.wanda(Evidence(model, prunable(model), [torch.randn(shape)], run))  # never used


class Routed(nn.Module):
    """Three experts, of which the last gets no example; it is called without any, or not at all."""

    def __init__(self, called: bool) -> None:
        super().__init__()
        self.experts, self.called = nn.ModuleList(nn.Linear(4, 3) for _ in range(3)), called

    def forward(self, x: Tensor) -> Tensor:
        out = x.new_zeros(len(x), 3)
        for number, expert in enumerate(self.experts):
            places = (x[:, 0] > 0).long().eq(number).nonzero()[:, 0]
            if self.called or len(places):
                out = out.index_add(0, places, expert(x[places]))
        return out


@pytest.mark.parametrize("called", [True, False])
def test_an_expert_without_an_example_scores_zero(called: bool) -> None:
    torch.manual_seed(0)
    model = Routed(called)
    x, y = torch.randn(9, 4), torch.randint(3, (9,))
    evidence = Evidence(model, prunable(model), [(x[:4], y[:4]), (x[4:], y[4:])], reference_case(6).loss)
    for scorer in (scorers.wanda, scorers.obs, scorers.taylor, scorers.fisher, scorers.obd, scorers.woodfisher):
        scores = scorer(evidence)
        assert not bool(scores["experts.2.weight"].any())
        assert all(bool(scores[f"experts.{number}.weight"].all()) for number in (0, 1))
    masks = prune(scorers.magnitude(evidence), 0.5)
    for compensation in (compensate_bias, compensate):
        before = model.experts[2].weight.detach().clone(), model.experts[2].bias.detach().clone()
        compensation(evidence, masks)
        assert torch.equal(model.experts[2].weight, before[0].masked_fill(~masks["experts.2.weight"], 0))
        assert torch.equal(model.experts[2].bias, before[1])


def test_wrong_arguments_are_refused() -> None:
    case = reference_case(6)
    for call in (
        lambda: scorers.wanda(case, norm=3),
        lambda: scorers.wanda(Evidence(case.model, case.parameters, [], case.loss)),
        lambda: scorers.wanda(Evidence(case.model, case.parameters, case.batches)),
    ):
        with pytest.raises(ScoreError, match=r"choose|give") as caught:
            call()
        assert "\n" not in str(caught.value)
