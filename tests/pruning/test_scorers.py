"""Every scorer against its definition, and against reference values computed apart from this project's code."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from pruning import Evidence, prunable, prune, scorers
from pruning.curvature import block_hessian, full_hessian
from pruning.errors import ScoreError
from pruning.evidence import Scores
from pruning.granularity import Blocks
from pruning.selection import ordering
from tests.pruning.cases import MLP, assert_scores, loss, reference, reference_case, tensor

SCORERS: dict[str, Callable[[Evidence], Scores]] = {
    "magnitude": scorers.magnitude,
    "lamp": scorers.lamp,
    "random": scorers.random,
    "snip": scorers.snip,
    "gradient": scorers.gradient,
    "grasp": scorers.grasp,
    "grasp-200": partial(scorers.grasp, temperature=200.0),
    "synflow": scorers.synflow,
    "wanda": scorers.wanda,
    "wanda-1": partial(scorers.wanda, norm=1),
    "movement": scorers.movement,
    "movement-hard": partial(scorers.movement, steps=5, density=0.3),
    "movement-soft": partial(scorers.movement, steps=5, threshold=0.1, penalty=0.01, granularity=Blocks((2, 2))),
    "obd-hutchinson": partial(scorers.obd, curvature="hutchinson", negative="keep", probes=5),
    "obs-layer": scorers.obs,
    "layer_shuffled": partial(scorers.layer_shuffled, scorer=scorers.taylor),
    "inverted": partial(scorers.inverted, scorer=scorers.snip),
    **{
        f"taylor-{form}-{when}": partial(scorers.taylor, form=form, absolute=when)
        for form in ("abs", "squared", "signed")
        for when in ("after", "before")
    },
}
OF_SINGLE_EXAMPLES: dict[str, Callable[[Evidence], Scores]] = {  # not defined under batch norm and dropout at work
    "obd": scorers.obd,
    "obd-sampled": partial(scorers.obd, curvature="true_fisher", samples=2),
    "fisher": scorers.fisher,
    "fisher-true": partial(scorers.fisher, curvature="true_fisher"),
    "obs-full": partial(scorers.obs, hessian=full_hessian),
    "obs-block": partial(scorers.obs, hessian=block_hessian),
}


def of_weight(values: Any, dtype: torch.dtype = torch.float64) -> Evidence:
    parameter = nn.Parameter(torch.tensor(values, dtype=dtype))
    return Evidence(nn.ParameterDict({"w": parameter}), {"w": parameter})


@pytest.mark.parametrize("sizes", [(6,), (3, 3), (1, 5), (1, 1, 4)])
def test_scores_of_the_mean_gradient_equal_the_reference(sizes: tuple[int, ...]) -> None:
    case = reference_case(*sizes)
    gw = reference("gw ")
    assert_scores(scorers.taylor(case), {n: v.abs() for n, v in gw.items()})
    assert_scores(scorers.taylor(case, form="squared"), {n: v.square() for n, v in gw.items()})
    assert_scores(scorers.taylor(case, form="signed"), {n: -v for n, v in gw.items()})
    assert_scores(scorers.snip(case), reference("SNIP"))


def test_magnitude_and_lamp_equal_the_reference() -> None:
    case = reference_case(6)
    weights = {n: tensor(MLP["state_dict"][n]) for n in MLP["weights"]}
    assert_scores(scorers.magnitude(case), {n: v.abs() for n, v in weights.items()})
    assert_scores(scorers.lamp(case), reference("LAMP"))


def test_taylor_before_equals_the_reference() -> None:
    case = reference_case(3, 3)
    assert_scores(scorers.taylor(case, absolute="before"), reference("sum over the two half batches"))


def test_taylor_before_sums_each_batchs_term() -> None:
    case = reference_case(1, 2, 3)
    terms = [scorers.taylor(Evidence(case.model, case.parameters, [b], loss), form="signed") for b in case.batches]
    transforms = {"abs": torch.abs, "squared": torch.square, "signed": lambda t: t}
    for form, transform in transforms.items():
        want = {n: sum((transform(t[n]) for t in terms), torch.zeros_like(terms[0][n])) for n in terms[0]}
        assert_scores(scorers.taylor(case, form=form, absolute="before"), want)  # a literal


def test_signed_taylor_is_high_where_removal_raises_the_loss() -> None:
    """L = w² / 2 - c·w at w: g = w - c. At w = 1, c = 3 the weight helps (removal raises the loss); c = 0: it harms."""
    for c, sign in ((3.0, 1.0), (0.0, -1.0)):
        w = nn.Parameter(torch.tensor([1.0]))
        case = Evidence(
            nn.ParameterDict({"w": w}), {"w": w}, [torch.zeros(1)], lambda m, _, c=c: (m.w**2 / 2 - c * m.w).sum()
        )
        assert scorers.taylor(case, form="signed")["w"].sign().item() == sign


@pytest.mark.parametrize("argument", [{"form": "cubed"}, {"absolute": "never"}])
def test_unknown_form_is_refused(argument: dict[str, Any]) -> None:
    with pytest.raises(ScoreError, match="choose") as caught:
        scorers.taylor(reference_case(6), **argument)
    assert "\n" not in str(caught.value)
    assert next(iter(argument.values())) in str(caught.value)


def test_snip_is_the_derivative_with_respect_to_a_gate() -> None:
    """Numerically: every weight times a gate c, at c = 1 ± h."""
    case = reference_case(2, 4)
    whole = (tensor(MLP["inputs"]), torch.tensor(MLP["targets"]))
    step = 1e-5
    derivative: Scores = {}
    for name in case.parameters:
        derivative[name] = torch.zeros_like(case.parameters[name])
        for index in range(derivative[name].numel()):
            values = []
            for gate in (1 + step, 1 - step):
                model = copy.deepcopy(case.model)
                with torch.no_grad():
                    model.get_parameter(name).view(-1)[index] *= gate
                    values.append(loss(model, whole))
            derivative[name].view(-1)[index] = (values[0] - values[1]) / (2 * step)
    derivative = {n: d.detach() for n, d in derivative.items()}
    total = sum(float(d.abs().sum()) for d in derivative.values())
    found = scorers.snip(case)
    assert_scores(found, {n: d.abs() / total for n, d in derivative.items()}, tolerance=1e-8)
    assert sum(float(s.sum()) for s in found.values()) == pytest.approx(1, abs=1e-12)


def test_snip_without_any_gradient_is_zero() -> None:
    layer = nn.Linear(3, 2)
    case = Evidence(layer, prunable(layer), [torch.zeros(2, 3)], lambda m, batch: m(batch).sum())
    assert not bool(scorers.snip(case)["weight"].any())


def lamp_by_loops(weights: list[float]) -> list[float]:
    """w² over the sum of squares of this weight and all that outlast it; of equal weights the earlier outlasts."""
    scores = []
    for i, w in enumerate(weights):
        outlasting = sum(v * v for j, v in enumerate(weights) if abs(v) > abs(w) or (abs(v) == abs(w) and j <= i))
        scores.append(w * w / outlasting if w else 0.0)
    return scores


@pytest.mark.parametrize(
    "weights",
    [
        [3.0, -1.0, 2.0],
        [1.0, 1.0, -1.0, 1.0],
        [0.0, 2.0, 0.0, -2.0, 1.0, 0.0],
        [0.0, 0.0],
        [5.0],
        torch.randn(40, generator=torch.Generator().manual_seed(0), dtype=torch.float64).round(decimals=1).tolist(),
    ],
)
def test_lamp_by_double_loop(weights: list[float]) -> None:
    assert_scores(scorers.lamp(of_weight(weights)), {"w": tensor(lamp_by_loops(weights))}, 1e-14)


def test_lamp_of_a_matrix_ranks_the_whole_tensor() -> None:
    weights = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    case = of_weight(weights.t().tolist())
    want = tensor(lamp_by_loops(weights.t().reshape(-1).tolist())).view(6, 4)
    assert_scores(scorers.lamp(case), {"w": want}, 1e-14)
    transposed = nn.Parameter(weights.t())  # not contiguous
    assert_scores(scorers.lamp(Evidence(case.model, {"w": transposed})), {"w": want}, 1e-14)
    assert float(want.max()) == 1.0


def lamp_by_sorting(weight: torch.Tensor) -> torch.Tensor:
    """The definition, by one stable sort of squares."""
    squares = weight.detach().reshape(-1).double().square()
    ordered, order = squares.sort(descending=True, stable=True)
    ratios = torch.where(ordered == 0, 0.0, ordered / ordered.cumsum(0))
    return torch.empty_like(ratios).scatter_(0, order, ratios).view(weight.shape)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["normal", "ties", "zeros", "wide", "diverged"])
@pytest.mark.parametrize(("few", "piece"), [(0, 1 << 15), (0, 7), (1 << 13, 1 << 15)])
def test_lamp_equals_a_sort_of_squares_bit_by_bit(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, kind: str, few: int, piece: int
) -> None:
    monkeypatch.setattr(ordering, "FEW", few)
    monkeypatch.setattr(ordering, "PIECE", piece)
    values = torch.randn(30, 40, generator=torch.Generator().manual_seed(0))
    weight = {
        "normal": values,
        "ties": values.mul(2).round(),
        "zeros": torch.zeros_like(values),
        "wide": values.mul(9).exp().clamp(max=6e4) * values.sign(),
        "diverged": values.clone().index_fill_(0, torch.tensor([3]), float("inf")).index_fill_(0, torch.tensor([7]), 0),
    }[kind].to(dtype)
    weight[0, :7], weight[0, 3] = 0.0, -0.0
    weight = nn.Parameter(weight.t())
    found = scorers.lamp(Evidence(nn.ParameterDict({"w": weight}), {"w": weight}))["w"]
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, lamp_by_sorting(weight), rtol=0, atol=0, equal_nan=True)


def test_lamp_is_the_same_on_any_number_of_threads() -> None:
    torch.manual_seed(0)
    weights = {f"layer{i}": nn.Parameter(torch.randn(7, 9 + i)) for i in range(5)}
    found = []
    before = torch.get_num_threads()
    for threads in (1, 3):
        torch.set_num_threads(threads)
        try:
            found.append(scorers.lamp(Evidence(nn.ParameterDict(weights), weights)))
        finally:
            torch.set_num_threads(before)
    assert list(found[0]) == list(found[1]) == list(weights)
    for name, weight in weights.items():
        assert torch.equal(found[0][name], found[1][name])
        assert torch.equal(found[0][name], lamp_by_sorting(weight))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_does_not_underflow(dtype: torch.dtype) -> None:
    """w = 1e-3, g = 1e-5: their product is 0 in float16, and all scores would tie."""
    w = nn.Parameter(torch.tensor([1e-3, 2e-3, 4e-3], dtype=dtype))
    case = Evidence(
        nn.ParameterDict({"w": w}), {"w": w}, [torch.full((1, 3), 1e-5, dtype=dtype)], lambda m, b: (m.w * b).sum()
    )
    for score in (scorers.taylor, scorers.snip, partial(scorers.taylor, absolute="before"), scorers.lamp):
        found = score(case)["w"]
        assert found.dtype in (torch.float32, torch.float64)
        assert bool((found.diff() > 0).all())
    torch.testing.assert_close(scorers.taylor(case)["w"][0], torch.tensor(1e-8), rtol=0.02, atol=0)


def test_random_is_uniform() -> None:
    scores = scorers.random(of_weight([0.0] * 20_000))["w"]
    assert scores.dtype == torch.float32
    assert 0 <= float(scores.min()) <= float(scores.max()) < 1
    counts = torch.histc(scores, 20, 0, 1)
    chi = float(((counts - 1000) ** 2 / 1000).sum())
    assert chi < 45  # of 19 degrees of freedom: p < 0.001


def test_random_depends_on_the_seed_alone() -> None:
    case = reference_case(6)
    torch.manual_seed(1)
    first = scorers.random(case, seed=3)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    again = scorers.random(case, seed=3)
    assert all(torch.equal(first[n], again[n]) for n in first)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first["0.weight"], scorers.random(case, seed=4)["0.weight"])
    assert not torch.equal(first["0.weight"].view(-1)[:12], first["2.weight"].view(-1))
    torch.set_default_dtype(torch.float64)
    try:
        again = scorers.random(case, seed=3)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(first[n], again[n]) for n in first)


def test_random_is_the_same_for_every_dtype_of_the_weights() -> None:
    shapes = {"a": (3, 5), "b": (7,)}
    found = []
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        parameters = {n: nn.Parameter(torch.zeros(s, dtype=dtype)) for n, s in shapes.items()}
        found.append(scorers.random(Evidence(nn.ParameterDict(parameters), parameters), seed=1))
    for other in found:
        assert torch.equal(other["a"], found[0]["a"])
        assert torch.equal(other["b"], found[0]["b"])


def test_tied_weight_is_scored_by_the_sum_of_its_uses() -> None:
    torch.manual_seed(0)
    tied = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    tied[2].weight = tied[0].weight
    apart = copy.deepcopy(tied)
    apart[2].weight = nn.Parameter(tied[0].weight.detach().clone())
    batch = (torch.randn(5, 4, dtype=torch.float64), torch.randint(3, (5,)))
    signed = partial(scorers.taylor, form="signed")
    one = signed(Evidence(tied, prunable(tied), [batch], loss))
    two = signed(Evidence(apart, prunable(apart), [batch], loss))
    assert list(one) == ["0.weight", "4.weight"]
    torch.testing.assert_close(one["0.weight"], two["0.weight"] + two["2.weight"], rtol=0, atol=1e-14)


def living() -> Evidence:
    """Train mode, batch statistics, dropout, a frozen weight, and a gradient that exists."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Dropout(0.3), nn.Linear(6, 4), nn.Linear(4, 3))
    model[3].eval()
    model[3].weight.requires_grad_(False)
    model[4].weight.grad = torch.ones(3, 4)
    batches = [(torch.randn(n, 5), torch.randint(3, (n,))) for n in (4, 3)]
    return Evidence(model, prunable(model, frozen=True), batches, loss)


def trace(model: nn.Module) -> list[Any]:
    gradients = [None if p.grad is None else p.grad.tolist() for p in model.parameters()]
    values = [v.tolist() for v in model.state_dict().values()]
    flags = [p.requires_grad for p in model.parameters()] + [m.training for m in model.modules()]
    return [gradients, values, flags, torch.get_rng_state().tolist()]


@pytest.mark.parametrize("name", [*SCORERS, *OF_SINGLE_EXAMPLES])
def test_every_scorer_leaves_no_trace_and_scores_frozen_weights(name: str) -> None:
    case = living()
    scorer = (SCORERS | OF_SINGLE_EXAMPLES)[name]
    if name in OF_SINGLE_EXAMPLES:
        with pytest.raises(ScoreError, match="train mode"):
            scorer(case)
        case.model.eval()
    before = trace(case.model)
    first = scorer(case)
    assert trace(case.model) == before
    assert {n: s.shape for n, s in first.items()} == {n: p.shape for n, p in case.parameters.items()}
    assert list(first) == ["0.weight", "3.weight", "4.weight"]
    for score in first.values():
        assert not score.requires_grad
        assert bool(torch.isfinite(score).all())
        assert bool(score.any())
    changed = {n: s.clone() for n, s in first.items()}
    for score in first.values():
        score.fill_(-1)  # scores share no memory with the model
    assert trace(case.model) == before
    again = scorer(case)  # and the same random state gives the same dropout, so the same scores
    assert all(torch.equal(changed[n], again[n]) for n in again)


def test_random_scores_have_nothing_of_weights_drawn_with_the_same_seed() -> None:
    for seed in range(3):
        torch.manual_seed(seed)
        layer = nn.Linear(100, 100)
        scores = scorers.random(Evidence(layer, {"weight": layer.weight}), seed)["weight"]
        pair = torch.stack([scores.flatten(), layer.weight.detach().flatten()])
        assert abs(float(torch.corrcoef(pair)[0, 1])) < 0.05


@pytest.mark.parametrize("scale", [1e-10, 1e-20, 1e-24])
def test_squares_of_small_products_still_rank(scale: float) -> None:
    w = nn.Parameter(torch.rand(200) * scale)
    case = Evidence(nn.ParameterDict({"w": w}), {"w": w}, [torch.ones(1, 200)], lambda m, b: (m.w * b).sum())
    order = [scorers.taylor(case, form=form)["w"].argsort().tolist() for form in ("abs", "squared")]
    assert order[0] == order[1]


def test_lamp_ranks_beside_an_outlier() -> None:
    w = nn.Parameter(torch.cat([torch.rand(200), torch.tensor([1e25])]))
    case = Evidence(nn.ParameterDict({"w": w}), {"w": w})
    assert scorers.lamp(case)["w"].argsort().tolist() == w.abs().argsort().tolist()


@pytest.mark.parametrize("scorer", [scorers.magnitude, scorers.lamp])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_network_that_has_diverged_is_not_pruned_by_its_weights(scorer: Any, bad: float) -> None:
    case = reference_case(6)
    with torch.no_grad():
        case.parameters["0.weight"].fill_(bad)
    with pytest.raises(ScoreError, match=r"0\.weight: .*diverged"):
        prune(scorer(case), 0.5)
