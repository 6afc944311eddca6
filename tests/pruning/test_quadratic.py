"""Inverse curvature against brute force: submatrices inverted one by one, and re-optimised quadratics."""

import warnings
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pruning import Evidence, prunable, prune, scorers
from pruning.curvature import approximations, block_hessian, full_hessian, layer_hessian, quadratic
from pruning.curvature.cotangents import empirical
from pruning.curvature.examples import example_gradients
from pruning.curvature.quadratic import Quadratic
from pruning.errors import DampingWarning, MaskError, ScoreError
from pruning.recovery import compensate
from pruning.sweep import sweep

EXACT = {"full": partial(full_hessian, damping=0.0), "layer": partial(layer_hessian, damping=0.0)}


def positive(groups: int, size: int, generator: torch.Generator) -> Tensor:
    root = torch.randn(groups, size, size + 3, dtype=torch.float64, generator=generator)
    return root @ root.mT / size


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    groups=st.integers(1, 3),
    each=st.integers(1, 4),
    size=st.integers(1, 6),
    missing=st.integers(0, 5),
    elements=st.sampled_from([1, 60, 2**24]),
    columns_only=st.booleans(),
)
def test_costs_and_moves_equal_the_inverse_of_every_rows_submatrix(
    seed: int, groups: int, each: int, size: int, missing: int, elements: int, columns_only: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows, missing = groups * each, min(missing, size - 1)
    whole = rows * size - missing
    first = int(torch.randint(whole + 1, (1,), generator=generator))
    h = positive(groups, size, generator)
    flat = torch.randn(whole, dtype=torch.float64, generator=generator)
    live = torch.rand(whole, generator=generator) < 0.6
    if columns_only:  # every row alike: one factor for all
        live = (torch.rand(size, generator=generator) < 0.6).repeat(rows)[:whole]
    weights, alive = ({"a": t[:first], "b": t[first:].clone()} for t in (flat, live))
    tested = Quadratic(("a", "b"), h, whole, damping=0.01, relative=False)
    before, quadratic._ELEMENTS = quadratic._ELEMENTS, elements
    try:
        costs = torch.cat([*tested.costs(weights, alive).values()])
        moved = torch.cat([*tested.moved(weights, alive).values()])
    finally:
        quadratic._ELEMENTS = before
    for row in range(rows):
        part = slice(row * size, min((row + 1) * size, whole))
        w, a = flat[part], live[part].nonzero()[:, 0]
        r = (~live[part]).nonzero()[:, 0]
        matrix = h[row // each] + 0.01 * torch.eye(size, dtype=torch.float64)
        inverse = torch.linalg.inv(matrix[a][:, a])
        wanted = torch.zeros_like(w)
        wanted[a] = w[a].square() / (2 * inverse.diagonal())
        torch.testing.assert_close(costs[part], wanted, rtol=1e-8, atol=1e-10)
        wanted = torch.zeros_like(w)
        wanted[a] = w[a] + inverse @ matrix[a][:, r] @ w[r]
        torch.testing.assert_close(moved[part], wanted, rtol=1e-8, atol=1e-8)


def half_squares(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return (model(batch[0]) - batch[1]).square().sum(1).mean() / 2


def at_its_minimum() -> Evidence:
    """Least squares, solved: the loss *is* a quadratic, and the network is at its minimum."""
    torch.manual_seed(0)
    x, t = torch.randn(12, 5, dtype=torch.float64), torch.randn(12, 3, dtype=torch.float64)
    model = nn.Linear(5, 3, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.linalg.lstsq(x, t).solution.T)
    return Evidence(model, prunable(model), [(x[:4], t[:4]), (x[4:], t[4:])], half_squares)


def reoptimised(evidence: Evidence, mask: Tensor) -> tuple[Tensor, float]:
    """The best weights under `mask`, by least squares over what is kept, and their loss."""
    x, t = (torch.cat(part) for part in zip(*evidence.batches, strict=True))
    best = torch.zeros(mask.shape, dtype=torch.float64)
    for row, kept in enumerate(mask):
        best[row, kept] = torch.linalg.lstsq(x[:, kept], t[:, row, None]).solution[:, 0]
    return best, float((x @ best.T - t).square().sum(1).mean() / 2)


@pytest.mark.parametrize("hessian", EXACT)
def test_obs_is_the_rise_of_the_loss_after_re_optimisation(hessian: str) -> None:
    case = at_its_minimum()
    scores = scorers.obs(case, EXACT[hessian])["weight"]
    before = reoptimised(case, torch.ones(3, 5, dtype=torch.bool))[1]
    for index in range(15):
        mask = torch.ones(3, 5, dtype=torch.bool)
        mask.view(-1)[index] = False
        assert float(scores.view(-1)[index]) == pytest.approx(reoptimised(case, mask)[1] - before, abs=1e-8)


@pytest.mark.parametrize("hessian", EXACT)
def test_greedy_obs_equals_brute_force_weight_after_weight(hessian: str) -> None:
    """The next weight is always the one whose removal costs least after all others are re-optimised."""
    case = at_its_minimum()
    mask = torch.ones(3, 5, dtype=torch.bool)
    for kept in range(14, 2, -1):
        now = Evidence(case.model, case.parameters, case.batches, case.loss, masks={"weight": mask})
        chosen = prune(scorers.obs(now, EXACT[hessian]), kept / 15, within={"weight": mask})
        losses = {}
        for index in mask.view(-1).nonzero()[:, 0].tolist():
            trial = mask.clone()
            trial.view(-1)[index] = False
            losses[index] = reoptimised(case, trial)[1]
        mask = mask.clone()
        mask.view(-1)[min(losses, key=losses.__getitem__)] = False
        assert torch.equal(chosen["weight"], mask)
        compensate(now, chosen, EXACT[hessian])
        torch.testing.assert_close(case.model.weight.detach(), reoptimised(case, mask)[0], rtol=0, atol=1e-8)
        assert chosen.agree(case.model)


@pytest.mark.parametrize("hessian", EXACT)
def test_many_weights_at_once_equal_re_optimisation(hessian: str) -> None:
    case = at_its_minimum()
    masks = prune(scorers.random(case, seed=1), 0.4)
    compensate(case, masks, EXACT[hessian])
    torch.testing.assert_close(case.model.weight.detach(), reoptimised(case, masks["weight"])[0], rtol=0, atol=1e-8)


def test_one_by_one_and_at_once_end_at_the_same_weights() -> None:
    torch.manual_seed(0)
    at_once = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    batch = (torch.randn(9, 4, dtype=torch.float64), torch.randn(9, 3, dtype=torch.float64))
    case = Evidence(at_once, prunable(at_once), [batch], half_squares)
    fixed = full_hessian(case)  # the quadratic stays what it was, as in the theory
    masks = prune(scorers.magnitude(case), 0.6)
    names, flat = list(masks), torch.cat([mask.reshape(-1) for mask in masks.values()])
    weights = {name: p.detach().clone() for name, p in case.parameters.items()}
    kept = torch.ones_like(flat)
    for index in (~flat).nonzero()[:, 0]:
        kept[index] = False
        parts = kept.split([weights[name].numel() for name in names])
        now = {name: part.view(weights[name].shape) for name, part in zip(names, parts, strict=True)}
        weights = fixed[0].moved(weights, now)
    compensate(case, masks, lambda evidence: fixed)
    torch.testing.assert_close({n: p.detach() for n, p in case.parameters.items()}, weights, rtol=1e-8, atol=1e-8)


LAYERS: list[tuple[nn.Module, tuple[int, ...]]] = [
    (nn.Linear(4, 3), (5, 4)),
    (nn.Linear(4, 3), (5, 2, 4)),
    (nn.Conv2d(2, 4, 2, stride=2, padding=1), (3, 2, 5, 4)),
    (nn.Conv1d(4, 4, 3, groups=2, dilation=2), (3, 4, 9)),
]


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=lambda value: str(value)[:20])
@pytest.mark.parametrize("elements", [1, 2**23])
def test_layer_hessian_is_that_of_the_squared_change_of_outputs(
    layer: nn.Module, shape: tuple[int, ...], elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(approximations, "_ELEMENTS", elements)
    layer = layer.double()
    x = torch.randn(shape, dtype=torch.float64)
    case = Evidence(layer, {"weight": layer.weight}, [x[:1], x[1:]], lambda model, batch: model(batch).sum())
    (found,) = list(layer_hessian(case))
    was = layer.weight.detach()

    def error(flat: Tensor) -> Tensor:
        moved = torch.func.functional_call(layer, {"weight": flat.view(was.shape)}, (x,))
        return (moved - layer(x).detach()).square().sum() / len(x) / 2

    wanted = torch.autograd.functional.hessian(error, was.reshape(-1))
    by_row = found.hessian.repeat_interleave(found.rows // len(found.hessian), 0)
    torch.testing.assert_close(torch.block_diag(*by_row), wanted)


class Attention(nn.Module):
    """Three readers of one input, one of a copy, one whose input is changed in place between two reads."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(4, 4), nn.Linear(4, 3), nn.Linear(4, 4)
        self.copied, self.later = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x * 1
        keys = self.k(x).sum()
        together = self.q(x) + self.v(x) + self.copied(x.clone())
        return together.sum() + keys + (0 if self.later is None else self.later(x.mul_(2)).sum())


def test_queries_keys_and_values_share_one_matrix_and_one_inverse(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = Attention().double()
    model.later = None
    batches = [torch.randn(5, 6, 4, dtype=torch.float64) for _ in range(2)]
    case = Evidence(model, prunable(model), batches, lambda m, b: m(b))
    factorised = []
    inner = torch.linalg.cholesky_ex
    monkeypatch.setattr(torch.linalg, "cholesky_ex", lambda h: factorised.append(len(h)) or inner(h))
    together = list(layer_hessian(case))
    assert [q.names for q in together] == [("q.weight", "k.weight", "v.weight"), ("copied.weight",)]
    scores = scorers.obs(case)
    assert factorised == [1, 1]
    for name, parameter in case.parameters.items():
        alone = scorers.obs(Evidence(model, {name: parameter}, batches, case.loss))
        torch.testing.assert_close(scores[name], alone[name], rtol=1e-12, atol=0)


GEOMETRIES = {
    "kernel_size": {"kernel_size": 1},
    "stride": {"stride": 2},
    "padding": {"padding": 1},
    "dilation": {"dilation": 2},
    "groups": {"groups": 2},
    "padding_mode": {"padding": 1, "padding_mode": "circular"},
}


class Beside(nn.Module):
    """Two layers that read the same memory; the second one `view`s it in another way, or is of another geometry."""

    def __init__(self, first: nn.Module, second: nn.Module, view: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.view = first, second, view

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x).sum() + self.second(self.view(x)).sum()


BESIDE = {
    name: (
        nn.Conv2d(2, 2, **{"kernel_size": 3} | ({"padding": 1} if name == "padding_mode" else {})),
        nn.Conv2d(2, 2, **{"kernel_size": 3} | other),
        nn.Identity(),
        (4, 2, 7, 7),
    )
    for name, other in GEOMETRIES.items()
}
BESIDE["view"] = (nn.Linear(5, 3), nn.Linear(5, 3), lambda x: x.mT, (4, 5, 5))


@pytest.mark.parametrize("name", BESIDE)
def test_the_same_memory_read_in_another_way_is_not_shared(name: str) -> None:
    """Each layer has the matrix that it has alone."""
    first, second, view, shape = BESIDE[name]
    model = Beside(first, second, view).double()
    batches = [torch.randn(shape, dtype=torch.float64) for _ in range(2)]

    def hessians(parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
        found = list(layer_hessian(Evidence(model, parameters, batches, lambda m, b: m(b))))
        return {name: q.hessian for q in found for name in q.names}

    parameters = prunable(model)
    together = hessians(parameters)
    for weight, parameter in parameters.items():
        torch.testing.assert_close(together[weight], hessians({weight: parameter})[weight])


def test_an_input_that_changed_in_place_is_not_shared() -> None:
    model = Attention().double()
    model.copied = nn.Identity()
    x = torch.randn(5, 4, dtype=torch.float64)
    found = {
        name: q for q in layer_hessian(Evidence(model, prunable(model), [x], lambda m, b: m(b))) for name in q.names
    }
    assert found["q.weight"].names == ("q.weight", "k.weight", "v.weight")
    torch.testing.assert_close(found["k.weight"].hessian[0], x.T @ x / 5)
    torch.testing.assert_close(found["later.weight"].hessian[0], 4 * x.T @ x / 5)


def test_an_input_is_freed_once_it_is_counted() -> None:
    """Whatever the number of layers, the inputs of two of them are alive at a time, and no outputs."""
    alive: list[weakref.ref[Tensor]] = []
    most = 0

    class Watched(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            nonlocal most
            most = max(most, sum(ref() is not None for ref in alive))
            alive.append(weakref.ref(x))
            return super().forward(x)

    model = nn.Sequential(*[Watched(3, 3) for _ in range(8)])
    list(layer_hessian(Evidence(model, prunable(model), [torch.randn(4, 3)], lambda m, b: m(b).sum())))
    assert len(alive) == 8
    assert most <= 2


class Sometimes(nn.Module):
    """Two layers that read the same input in batches of one size, and different ones in others."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 2, bias=False), nn.Linear(3, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return (self.a(x) + self.b(x if len(x) == 4 else x * 3)).sum()


@pytest.mark.parametrize("sizes", [(4, 4), (4, 2), (2, 4), (4, 2, 4)])
def test_what_is_shared_only_in_some_batches_is_not_shared(sizes: tuple[int, ...]) -> None:
    model = Sometimes().double()
    batches = [torch.randn(n, 3, dtype=torch.float64) for n in sizes]
    found = list(layer_hessian(Evidence(model, prunable(model), batches, lambda m, b: m(b))))
    count = sum(sizes)
    wanted = {
        "a.weight": sum(x.T @ x for x in batches) / count,
        "b.weight": sum((x.T @ x) * (1 if len(x) == 4 else 9) for x in batches) / count,
    }
    assert len(found) == (1 if set(sizes) == {4} else 2)
    for q in found:
        for name in q.names:
            torch.testing.assert_close(q.hessian[0], wanted[name])


def test_uses_of_a_tied_weight_add_up() -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)).double()
    model[1].weight = model[0].weight
    x = torch.randn(6, 3, dtype=torch.float64)
    (found,) = layer_hessian(Evidence(model, prunable(model), [x], lambda m, b: m(b).sum()))
    y = model[0](x).detach()
    torch.testing.assert_close(found.hessian[0], (x.T @ x + y.T @ y) / 6)


def classifier() -> Evidence:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    x, y = torch.randn(8, 4, dtype=torch.float64), torch.randint(3, (8,))
    batches = [(x[:3], y[:3]), (x[3:], y[3:])]
    return Evidence(model, prunable(model), batches, lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1]))


@pytest.mark.parametrize("size", [1, 4, 7, 100])
def test_blocks_are_those_of_the_whole_fisher(size: int) -> None:
    case = classifier()
    for found in block_hessian(case, size):
        (name,) = found.names
        rows = torch.cat([chunk[name].flatten(1) for chunk, _ in example_gradients(case, empirical)])
        whole = rows.T @ rows / 8
        for block in range(found.rows):
            wanted = whole[block * size : (block + 1) * size, block * size : (block + 1) * size]
            present = len(wanted)
            torch.testing.assert_close(found.hessian[block, :present, :present], wanted)
            # what damping is a share of: padding must not change it
            torch.testing.assert_close(found._scale[block], wanted.diagonal().mean())


def test_what_never_has_a_gradient_costs_nothing() -> None:
    """A damping that is a share of the curvature must not make up a cost where there is none."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    x = torch.randn(20, 16, dtype=torch.float64) * torch.tensor([0.0, 1.0]).double().repeat_interleave(8)
    batch = x, torch.arange(20) % 3
    case = Evidence(model, prunable(model), [batch], lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1]))
    # Blocks of four lie wholly in what is dead or in what is alive.
    scores = scorers.woodfisher(case, partial(block_hessian, size=4))["0.weight"]
    assert not bool(scores[:, :8].any())
    assert bool((scores[:, 8:] > 0).all())


@pytest.mark.parametrize("curvature", ["gauss_newton", "empirical_fisher", "true_fisher"])
def test_a_block_of_one_weight_is_obd_and_a_whole_block_is_the_full_matrix(curvature: Any) -> None:
    case = classifier()
    ones = scorers.obs(case, partial(block_hessian, size=1, curvature=curvature, damping=0.0))
    torch.testing.assert_close(ones, scorers.obd(case, curvature))
    (whole,) = full_hessian(case, curvature)
    for (name,), blocks in [(q.names, q.hessian) for q in block_hessian(case, 20, curvature)]:
        start = 0 if name == "0.weight" else 20
        size = case.parameters[name].numel()
        torch.testing.assert_close(
            blocks[0][:size, :size], whole.hessian[0][start : start + size, start : start + size]
        )


APPROXIMATIONS: dict[str, Callable[..., list[Quadratic]]] = {
    "full": full_hessian,
    "block": block_hessian,
    "layer": layer_hessian,
}


@pytest.mark.parametrize("kind", APPROXIMATIONS)
def test_a_singular_hessian_is_survived_and_reported(kind: str) -> None:
    torch.manual_seed(0)
    model = nn.Linear(6, 3).double()
    x = torch.randn(2, 6, dtype=torch.float64)
    x[:, 4] = 0  # an input that never speaks
    case = Evidence(model, prunable(model), [(x, torch.tensor([0, 1]))], classifier().loss)
    singular = partial(APPROXIMATIONS[kind], damping=0.0)
    with pytest.warns(DampingWarning, match="weight: H is singular, its damping grew to"):
        scores = scorers.obs(case, singular)
    assert bool(torch.isfinite(scores["weight"]).all())
    assert float(scores["weight"][:, 4].max()) < 1e-9  # costs nothing
    outputs = model(x).detach()
    masks = torch.ones(3, 6, dtype=torch.bool)
    masks[:, 0] = False
    with pytest.warns(DampingWarning):
        compensate(case, {"weight": masks}, singular)
    after = model(x).detach()
    if kind != "layer":  # softmax does not see what all classes share, and its curvature is that of probabilities
        outputs, after = outputs.softmax(1), after.softmax(1)
    if kind != "block":
        torch.testing.assert_close(after, outputs, rtol=0.1, atol=1e-4)  # five weights a row for two examples


def test_a_compensation_that_fails_changes_nothing() -> None:
    case = classifier()
    for inputs, _ in case.batches:
        inputs[:, 1] = 0.0  # the first layer's H is singular, whatever the rounding
    before = {name: p.detach().clone() for name, p in case.parameters.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DampingWarning):
            compensate(case, prune(scorers.random(case), 0.5), partial(layer_hessian, damping=0.0))
    for name, p in case.parameters.items():
        assert torch.equal(p, before[name])


def test_enough_damping_is_not_reported() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for hessian in APPROXIMATIONS.values():
            scorers.obs(classifier(), partial(hessian, damping=1e-3))


def test_compensation_changes_nothing_but_prunable_weights() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)).train()
    batch = (torch.randn(6, 1, 5, 5), torch.randint(3, (6,)))
    case = Evidence(model, prunable(model), [batch], classifier().loss)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    masks = prune(scorers.magnitude(case), 0.5)
    compensate(case, masks)
    after = model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before if name not in masks)
    assert masks.agree(model)
    for name, mask in masks.items():
        assert not torch.equal(after[name][mask], before[name][mask])
    assert model.training
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("scorer", ["magnitude", "random", "wanda"])
def test_compensation_follows_any_scorers_masks_and_brings_outputs_nearer(scorer: str) -> None:
    torch.manual_seed(0)
    model = nn.Linear(8, 5).double()
    x = torch.randn(30, 3, dtype=torch.float64) @ torch.randn(3, 8, dtype=torch.float64)
    x += 0.1 * torch.randn(30, 8, dtype=torch.float64)
    case = Evidence(model, prunable(model), [x], lambda m, b: m(b).square().mean())
    wanted, weight = model(x).detach(), model.weight.detach().clone()
    masks = prune(getattr(scorers, scorer)(case), 0.5)
    masked = x @ (weight * masks["weight"]).T + model.bias.detach()
    compensate(case, masks)
    assert float((model(x).detach() - wanted).norm()) < 0.5 * float((masked - wanted).norm())


@pytest.mark.parametrize(
    ("hessian", "said"),
    [
        (partial(layer_hessian, damping=-1.0), "damping"),
        (partial(block_hessian, size=0), "size"),
        (partial(block_hessian, curvature="hessian"), "curvature"),
        (lambda evidence: list(layer_hessian(evidence))[1:], "0.weight: is in no quadratic"),
        (layer_hessian(classifier()), "is no function: give"),
        (lambda evidence: list(layer_hessian(evidence)) * 2, "0.weight: is in two quadratics"),
    ],
)
def test_a_wrong_approximation_is_refused(hessian: Any, said: str) -> None:
    with pytest.raises(ScoreError, match=said) as caught:
        scorers.obs(classifier(), hessian)
    assert "\n" not in str(caught.value)


def test_what_would_not_fit_memory_is_refused_with_the_number(monkeypatch: pytest.MonkeyPatch) -> None:
    case = classifier()
    monkeypatch.setattr("pruning.limits.available_bytes", lambda device: 100)
    with pytest.raises(
        ScoreError, match=r"^layer_hessian without shared inputs: needs \S+ \w+, and \d+ bytes are free: go block by"
    ):
        list(layer_hessian(case))
    with pytest.raises(ScoreError, match=r"^block_hessian\(size=64\): needs 65.5 kB, and 100 bytes are free: give"):
        list(block_hessian(case))
    with pytest.raises(ScoreError, match=r"^gauss_newton: needs .*, and 100 bytes are free: give smaller batches"):
        full_hessian(case)
    monkeypatch.setattr("pruning.curvature.cotangents.LARGEST", 2)
    with pytest.raises(ScoreError, match=r"an example has 3 outputs, so that 3 backward passes .*empirical_fisher"):
        scorers.obd(case)


def test_an_error_in_a_later_layer_leaves_every_weight() -> None:
    case = classifier()
    before = {name: p.detach().clone() for name, p in case.parameters.items()}
    masks = prune(scorers.magnitude(case), 0.5)

    def only_first(evidence: Evidence) -> list[Quadratic]:
        return list(layer_hessian(evidence))[:1]

    for remove in (compensate, sweep):
        with pytest.raises(ScoreError, match="is in no quadratic"):
            remove(case, masks, hessian=only_first)
        assert all(torch.equal(p, before[name]) for name, p in case.parameters.items())


def test_what_has_no_such_hessian_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    case = classifier()
    for hessian in APPROXIMATIONS.values():
        for change in ({"loss": None}, {"batches": []}):
            with pytest.raises(ScoreError, match="give"):
                list(hessian(Evidence(**(case.__dict__ | change))))
    with pytest.raises(ScoreError, match=r"0\.bias: no Linear or convolution"):
        list(layer_hessian(Evidence(case.model, prunable(case.model, include="*"), case.batches, case.loss)))
    monkeypatch.setattr(approximations, "LARGEST", 30)
    with pytest.raises(ScoreError, match="35 weights are more than 30"):
        full_hessian(case)
    bad = [(torch.full((2, 4), torch.nan, dtype=torch.float64), torch.tensor([0, 1]))]
    with pytest.raises(ScoreError, match=r"0\.weight.*NaN"):
        list(layer_hessian(Evidence(case.model, case.parameters, bad, case.loss)))


def test_compensation_refuses_other_masks() -> None:
    case = classifier()
    masks = prune(scorers.magnitude(case), 0.5)
    with pytest.raises(MaskError, match=r"2\.weight: in only one"):
        compensate(case, {"0.weight": masks["0.weight"]})
    with pytest.raises(MaskError, match="shape"):
        compensate(case, dict(masks) | {"2.weight": torch.ones(2, 2, dtype=torch.bool)})
