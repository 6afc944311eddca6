"""OBD, Fisher and GraSP against reference values, torch's own Hessian, loops, and what they promise."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pruning import Evidence, prunable, prune, scorers
from pruning.curvature import full_hessian
from pruning.curvature.hessian import hutchinson
from pruning.errors import ScoreError
from pruning.evidence import Scores
from tests.pruning.cases import assert_scores, loss, reference, reference_case

CUTS = [(6,), (3, 3), (1, 5), (1, 1, 4)]


def half_h_w2(evidence: Evidence, diagonal: Scores) -> Scores:
    return {name: 0.5 * h * evidence.parameters[name].detach().square() for name, h in diagonal.items()}


@pytest.mark.parametrize("sizes", CUTS)
def test_obd_and_fisher_equal_the_reference_however_data_are_cut(sizes: tuple[int, ...]) -> None:
    case = reference_case(*sizes)
    gauss_newton, empirical = reference("Gauss-Newton"), reference("empirical")
    assert_scores(scorers.obd(case), half_h_w2(case, gauss_newton))
    assert_scores(scorers.obd(case, "true_fisher"), half_h_w2(case, gauss_newton))
    assert_scores(scorers.obd(case, "empirical_fisher"), half_h_w2(case, empirical))
    assert_scores(scorers.fisher(case), empirical)
    assert_scores(scorers.fisher(case, "true_fisher"), gauss_newton)


@pytest.mark.parametrize("sizes", CUTS)
def test_grasp_equals_the_reference(sizes: tuple[int, ...]) -> None:
    case = reference_case(*sizes)
    assert_scores(scorers.grasp(case), {name: -s for name, s in reference("GraSP").items()})


def test_obd_by_hutchinson_is_that_of_the_exact_hessian_within_its_error() -> None:
    case = reference_case(6)
    wanted = reference("OBD")
    estimate = hutchinson(case, tolerance=0.03, most=2000, seed=5)
    found = scorers.obd(case, "hutchinson", negative="keep", tolerance=0.03, probes=2000, seed=5)
    errors = half_h_w2(case, estimate.standard_error)
    for name, score in found.items():
        assert bool(((score - wanted[name]).abs() <= 5 * errors[name] + 1e-12).all())
    assert any(bool((score < 0).any()) for score in found.values())
    for policy, transform in (("clamp", lambda s: s.clamp(min=0)), ("abs", torch.abs)):
        other = scorers.obd(case, "hutchinson", negative=policy, tolerance=0.03, probes=2000, seed=5)  # a literal
        assert_scores(other, {name: transform(score) for name, score in found.items()})


@pytest.mark.parametrize("sure", [1.0, 30.0, 1e3])
def test_obd_of_a_network_that_is_sure_of_its_labels(sure: float) -> None:
    """float32 probabilities of a trained network round to 0 and 1; its curvature is tiny, not negative."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    x = torch.randn(20, 6) * sure
    case = Evidence(model, prunable(model), [(x, model(x).argmax(1))], loss)
    double = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).double()
    double.load_state_dict(model.state_dict())
    wanted = scorers.obd(Evidence(double, prunable(double), [(x.double(), model(x).argmax(1))], loss))
    for name, score in scorers.obd(case).items():
        torch.testing.assert_close(score.double(), wanted[name], rtol=1e-3, atol=1e-4 * sure**2 * float(score.max()))


def log_probabilities() -> Evidence:
    case = reference_case(6)
    model = nn.Sequential(case.model, nn.LogSoftmax(1))
    return Evidence(model, prunable(model), case.batches, lambda m, b: nn.functional.nll_loss(m(b[0]), b[1]))


@pytest.mark.parametrize(
    "scorer", [scorers.obd, partial(scorers.obs, hessian=partial(full_hessian, curvature="gauss_newton"))]
)
def test_a_loss_without_curvature_in_the_outputs_is_refused(scorer: Any) -> None:
    """Gauss-Newton of log-probabilities is zero, though the network is the same as with logits."""
    with pytest.raises(ScoreError, match=r"there is no curvature.*use the true Fisher"):
        scorer(log_probabilities())
    wanted = scorers.obd(reference_case(6), "true_fisher")
    assert_scores(dict(zip(wanted, scorers.obd(log_probabilities(), "true_fisher").values(), strict=True)), wanted)


def test_a_batch_of_which_the_network_is_sure_counts_as_the_others() -> None:
    """In float32 its probabilities are 0 and 1, so it has no curvature; but it has examples."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3, bias=False))
    x = torch.randn(6, 3)
    batches = [(x[:2] * 1e4, (model(x[:2]).argmax(1))), (x[2:], torch.tensor([0, 1, 2, 0]))]
    case = Evidence(model, prunable(model), batches, loss)
    (whole,) = full_hessian(case)
    diagonal = scorers.obd(case)["0.weight"].flatten() * 2 / model[0].weight.detach().flatten().square()
    torch.testing.assert_close(whole.hessian[0].diagonal(), diagonal, rtol=1e-4, atol=1e-7)
    alone = scorers.obd(Evidence(model, prunable(model), batches[1:], loss))["0.weight"]
    torch.testing.assert_close(scorers.obd(case)["0.weight"], alone * 4 / 6)


def test_data_that_break_later_are_named_as_such() -> None:
    case = reference_case(2, 4)
    bad = [case.batches[0], (torch.full_like(case.batches[1][0], torch.nan), case.batches[1][1])]
    with pytest.raises(ScoreError, match="NaN"):
        scorers.obd(Evidence(case.model, case.parameters, bad, loss))


class Named(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        return {"scores": self.inner(inputs)}


def in_a_dictionary(case: Evidence) -> Evidence:
    model = Named(case.model)
    return Evidence(
        model, prunable(model), case.batches, lambda m, b: nn.functional.cross_entropy(m(b[0])["scores"], b[1])
    )


@pytest.mark.parametrize(
    "call",
    [
        lambda case: scorers.obd(case, "hessian"),
        lambda case: scorers.obd(case, negative="drop"),
        lambda case: scorers.obd(case, "hutchinson", probes=1),
        lambda case: scorers.fisher(case, "given"),
        lambda case: scorers.grasp(case, temperature=0.0),
        lambda case: scorers.grasp(Evidence(case.model, case.parameters, [], loss)),
        lambda case: scorers.grasp(in_a_dictionary(case), temperature=2.0),
    ],
)
def test_wrong_options_are_refused_in_one_line(call: Any) -> None:
    with pytest.raises(ScoreError, match=r"choose|need|give") as caught:
        call(reference_case(6))
    assert "\n" not in str(caught.value)


def quadratic(size: int, seed: int) -> tuple[Evidence, Tensor]:
    """½ wᵀHw + bᵀw, no network: whatever GraSP says must follow from H."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(size, size, dtype=torch.float64, generator=generator)
    h = root + root.T
    b = torch.randn(size, dtype=torch.float64, generator=generator)
    w = nn.Parameter(torch.randn(size, dtype=torch.float64, generator=generator))
    model = nn.ParameterDict({"w": w})
    return Evidence(model, {"w": w}, [(h, b)], lambda m, batch: m["w"] @ batch[0] @ m["w"] / 2 + batch[1] @ m["w"]), h


@pytest.mark.parametrize("seed", range(5))
def test_grasp_is_the_slope_of_the_gradient_flow(seed: int) -> None:
    """d‖g‖²/dε for w_q ← (1 - ε)·w_q is -2·w_q·(Hg)_q; numerically, and so the kept ones have the largest flow."""
    case, _ = quadratic(7, seed)
    w = case.parameters["w"]
    scores = scorers.grasp(case)["w"]

    def flow(values: Tensor) -> float:
        at = nn.ParameterDict({"w": nn.Parameter(values)})
        (batch,) = case.batches
        (g,) = torch.autograd.grad(case.loss(at, batch), at["w"])
        return float(g.square().sum())

    slopes = []
    for q in range(7):
        step = torch.zeros(7, dtype=torch.float64)
        step[q] = 1e-6 * w[q].detach()
        slopes.append((flow(w.detach() - step) - flow(w.detach() + step)) / 2e-6)
    torch.testing.assert_close(scores, -torch.tensor(slopes, dtype=torch.float64) / 2, rtol=1e-5, atol=1e-5)
    kept = prune({"w": scores}, 3 / 7)["w"]
    small = 1e-5  # to first order: shrink what is removed a little, for every choice of three to keep

    def after(mask: Tensor) -> float:
        return flow(w.detach() * (1 - small * ~mask))

    choices = [
        torch.tensor([i in three for i in range(7)]) for three in torch.combinations(torch.arange(7), 3).tolist()
    ]
    assert after(kept) == pytest.approx(max(after(mask) for mask in choices), rel=1e-9)


def test_temperature_divides_the_outputs() -> None:
    case = reference_case(2, 4)
    cooled = Evidence(case.model, case.parameters, case.batches, lambda m, b: loss(lambda x: m(x) / 7.0, b))
    assert_scores(scorers.grasp(case, temperature=7.0), scorers.grasp(cooled), 1e-12)


@pytest.mark.parametrize(
    "scorer",
    [scorers.obd, scorers.fisher, partial(scorers.fisher, curvature="true_fisher"), scorers.grasp, scorers.wanda],
)
def test_a_tied_weight_is_scored_as_one(scorer: Any) -> None:
    """With one network evaluated as y = W·tanh(W·x), the same is W a parameter used twice by hand."""
    torch.manual_seed(0)
    tied = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Tanh(), nn.Linear(3, 3, bias=False)).double()
    tied[2].weight = tied[0].weight

    class ByHand(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(tied[0].weight.detach().clone())

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(x @ self.weight.T) @ self.weight.T

    hand = ByHand()
    batch = (torch.randn(6, 3, dtype=torch.float64), torch.randint(3, (6,)))
    found = scorer(Evidence(tied, prunable(tied), [batch], loss))
    assert list(found) == ["0.weight"]
    if scorer is scorers.wanda:
        inner = torch.tanh(batch[0] @ hand.weight.T).detach()
        wanted = hand.weight.detach().abs() * (batch[0].square().sum(0) + inner.square().sum(0)).sqrt()
    else:
        wanted = scorer(Evidence(hand, {"weight": hand.weight}, [batch], loss))["weight"]
    torch.testing.assert_close(found["0.weight"], wanted)


def test_half_precision_curvature_is_accumulated_in_float32() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).to(torch.bfloat16)
    x, y = torch.randn(9, 6).to(torch.bfloat16) * 1e-3, torch.randint(3, (9,))
    case = Evidence(model, prunable(model), [(x, y)], lambda m, b: loss(lambda v: m(v).float(), b))
    for scorer in (scorers.fisher, scorers.grasp, scorers.wanda, scorers.obs):
        for score in scorer(case).values():
            assert score.dtype in (torch.float32, torch.float64)
            assert bool(torch.isfinite(score).all())
            assert len(score.unique()) > score.numel() // 2
