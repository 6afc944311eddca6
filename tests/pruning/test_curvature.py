"""Curvature against loops, definitions and torch's own Hessian."""

from collections import UserDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from pruning import Evidence, prunable, scorers
from pruning.curvature import cotangents
from pruning.curvature.examples import Cotangents, example_gradients, mean_squares
from pruning.curvature.hessian import hessian_product, hutchinson
from pruning.curvature.linear_maps import column_sums, columns, factors
from pruning.errors import ScoreError

MAPS: list[tuple[nn.Module, tuple[int, ...]]] = [
    (nn.Linear(5, 3), (4, 5)),
    (nn.Linear(5, 3), (4, 7, 2, 5)),
    (nn.Conv1d(4, 6, 3, stride=2, padding=1, dilation=2, groups=2), (4, 4, 13)),
    (nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), groups=2), (4, 4, 9, 8)),
    (nn.Conv2d(4, 6, 3, padding="same", padding_mode="reflect"), (4, 4, 9, 8)),
    (nn.Conv3d(2, 3, 2, stride=2), (4, 2, 5, 4, 4)),
    (nn.ConvTranspose1d(4, 2, 3, stride=2, dilation=2), (4, 4, 5)),
    (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2), (4, 4, 5, 6)),
    (nn.ConvTranspose2d(4, 6, 3, dilation=2, output_padding=1), (4, 4, 5, 6)),
    (nn.ConvTranspose3d(2, 2, 2, stride=2), (4, 2, 3, 3, 3)),
]


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def squared_error(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.mse_loss(model(batch[0]), F.one_hot(batch[1], 3).to(batch[0].dtype))


def data(*shape: int, count: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(count, *shape, dtype=torch.float64, generator=generator)
    return inputs, torch.randint(3, (count,), generator=generator)


def cut(batch: tuple[Tensor, Tensor], *sizes: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(batch[0].split(list(sizes)), batch[1].split(list(sizes)), strict=True))


@pytest.mark.parametrize(("module", "shape"), MAPS, ids=lambda value: str(value)[:30])
def test_factors_of_a_layer_give_each_examples_gradient(module: nn.Module, shape: tuple[int, ...]) -> None:
    module = module.double()
    x = torch.randn(shape, dtype=torch.float64)
    outputs = module(x)
    gradient = torch.randn_like(outputs)
    rows, cols = factors(module, x, gradient)
    found = (rows @ cols.transpose(2, 3)).reshape(len(x), *module.weight.shape)
    for i in range(len(x)):
        (wanted,) = torch.autograd.grad((module(x[i : i + 1]) * gradient[i : i + 1]).sum(), module.weight)
        torch.testing.assert_close(found[i], wanted)


@pytest.mark.parametrize(("module", "shape"), MAPS[:6], ids=lambda value: str(value)[:30])
def test_columns_of_a_layer_are_what_its_weight_multiplies(module: nn.Module, shape: tuple[int, ...]) -> None:
    module = module.double()
    x = torch.randn(shape, dtype=torch.float64)
    cols = columns(module, x)
    products = module.weight.reshape(cols.shape[1], -1, cols.shape[2]) @ cols  # [examples, groups, rows, positions]
    wanted = module(x)
    if isinstance(module, nn.Linear):
        products = products[:, 0].transpose(1, 2).reshape(wanted.shape) + module.bias
    else:
        bias = module.bias.view(-1, *[1] * (wanted.dim() - 2))
        products = products.reshape(wanted.shape) + bias
    torch.testing.assert_close(products, wanted)
    for power in (1, 2):
        torch.testing.assert_close(column_sums(module, x.pow(power)), cols.pow(power).sum((0, 3)))


class Odd(nn.Module):
    """All that per-example gradients must survive: no biases, batch norm, in-place, one layer twice, tied, fused."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 4, 3, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.twice = nn.Linear(9, 9)
        self.recurrent = nn.LSTM(9, 5, batch_first=True)
        self.attention = nn.MultiheadAttention(5, 1, batch_first=True)
        self.out = nn.Linear(5, 3)
        self.elsewhere = nn.Linear(3, 3, bias=False)
        self.turned = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.convolution(x))).flatten(2)
        side = self.turned(x.transpose(0, 1).mean(2).t()).sum(1, keepdim=True)
        x = self.twice(torch.tanh(self.twice(x)))
        x, _ = self.recurrent(x)
        x, _ = self.attention(x, x, x)
        x = self.out(x.mean(1))
        return self.elsewhere(x) + F.linear(x, self.elsewhere.weight.t()) + side


def odd() -> nn.Module:
    torch.manual_seed(0)
    return Odd().double().eval()


def by_loop(evidence: Evidence) -> dict[str, Tensor]:
    """Mean squares of the gradients of the examples' losses, one by one."""
    total = {name: torch.zeros_like(p) for name, p in evidence.parameters.items()}
    count = 0
    for inputs, targets in evidence.batches:
        for i in range(len(inputs)):
            loss = evidence.loss(evidence.model, (inputs[i : i + 1], targets[i : i + 1]))
            for name, g in zip(total, torch.autograd.grad(loss, list(evidence.parameters.values())), strict=True):
                total[name] += g.square()
            count += 1
    return {name: value / count for name, value in total.items()}


@pytest.mark.parametrize("memory", [2**27, 3000, 1])
def test_squares_of_every_kind_of_layer_equal_the_loop(memory: int) -> None:
    model = odd()
    evidence = Evidence(model, prunable(model), cut(data(1, 7, 7), 3, 4), cross_entropy)
    wanted = by_loop(evidence)
    torch.testing.assert_close(mean_squares(evidence, cotangents.empirical, memory), wanted)
    total = {name: torch.zeros_like(value) for name, value in wanted.items()}
    count = 0
    for chunk, size in example_gradients(evidence, cotangents.empirical, memory):
        count += size
        for name, gradients in chunk.items():
            total[name] += gradients.square().sum(0)
    assert count == 7
    torch.testing.assert_close({name: value / count for name, value in total.items()}, wanted)


def small(*layers: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3), *layers).double()


def hessian(evidence: Evidence) -> Tensor:
    """The whole of it, by torch.autograd.functional."""
    names = list(evidence.parameters)
    sizes = [p.numel() for p in evidence.parameters.values()]
    (batch,) = evidence.batches

    def loss(flat: Tensor) -> Tensor:
        parts = flat.split(sizes)
        values = {n: v.view(evidence.parameters[n].shape) for n, v in zip(names, parts, strict=True)}
        return evidence.loss(lambda x: torch.func.functional_call(evidence.model, values, (x,)), batch)

    flat = torch.cat([p.detach().reshape(-1) for p in evidence.parameters.values()])
    return torch.autograd.functional.hessian(loss, flat)


def flat(values: dict[str, Tensor]) -> Tensor:
    return torch.cat([value.reshape(-1) for value in values.values()])


@pytest.mark.parametrize("loss", [cross_entropy, squared_error])
def test_gauss_newton_is_the_hessian_where_outputs_are_linear_in_the_weights(loss: Callable[..., Tensor]) -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 3).double()
    evidence = Evidence(model, {"weight": model.weight}, [data(4)], loss)
    found = mean_squares(evidence, cotangents.gauss_newton)
    torch.testing.assert_close(flat(found), hessian(evidence).diagonal())


@pytest.mark.parametrize("loss", [cross_entropy, squared_error])
def test_hessian_products_and_its_estimated_diagonal(loss: Callable[..., Tensor]) -> None:
    model = small()
    whole = Evidence(model, prunable(model), [data(4)], loss)
    h = hessian(whole)
    v = {name: torch.randn_like(p) for name, p in whole.parameters.items()}
    parts = Evidence(model, prunable(model), cut(data(4), 2, 4, 1), loss)
    for evidence in (whole, parts):
        torch.testing.assert_close(flat(hessian_product(evidence, v)), h @ flat(v))
    gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss(model, data(4)), list(v_parameters(whole)))])
    torch.testing.assert_close(flat(hessian_product(whole)), h @ gradient)
    torch.testing.assert_close(flat(hessian_product(parts)), h @ gradient)
    estimate = hutchinson(whole, tolerance=0.02, most=4000)
    error = flat(estimate.standard_error)
    away = (flat(estimate.diagonal) - h.diagonal()).abs()
    assert bool((away <= 5 * error + 1e-12).all())
    expected = (h.square().sum(1) - h.diagonal().square()).div(estimate.probes).sqrt()
    torch.testing.assert_close(error, expected, rtol=0.2, atol=1e-4)
    assert error.norm() <= 0.02 * flat(estimate.diagonal).norm() or estimate.probes == 4000


class Attending(nn.Module):
    """Fused attention, whose kernels cannot be differentiated twice."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        tokens = inputs.reshape(len(inputs), -1, 4)
        return self.head(self.attention(tokens, tokens, tokens, need_weights=False)[0].mean(1))


@pytest.mark.parametrize("training", [True, False])
def test_hessian_products_through_fused_attention(training: bool) -> None:
    torch.manual_seed(0)
    model = Attending().double().train(training)
    batch = torch.randn(5, 12, dtype=torch.float64), torch.randint(0, 3, (5,))
    evidence = Evidence(model, prunable(model), [batch], cross_entropy)
    v = {name: torch.randn_like(p) for name, p in evidence.parameters.items()}
    with sdpa_kernel(SDPBackend.MATH):
        wanted = hessian(evidence) @ flat(v)
    torch.testing.assert_close(flat(hessian_product(evidence, v)), wanted)


def likelihood(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.nll_loss(model(batch[0]), batch[1])


def detached(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    with torch.no_grad():
        outputs = model(batch[0])
    return F.cross_entropy(outputs, batch[1])


def test_the_true_fisher_of_log_probabilities_is_that_of_the_logits() -> None:
    plain, normal = small(), small(nn.LogSoftmax(1))
    cases = [
        Evidence(model, prunable(model), [data(4)], loss)
        for model, loss in ((plain, cross_entropy), (normal, likelihood))
    ]
    found, wanted = (mean_squares(case, cotangents.true_fisher()) for case in reversed(cases))
    torch.testing.assert_close(found, wanted)


def test_the_true_fisher_of_one_output_or_no_samples_is_refused() -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 1).double()

    def logistic(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.binary_cross_entropy_with_logits(model(batch[0])[:, 0], batch[1].clamp(max=1).double())

    case = Evidence(model, prunable(model), [data(4)], logistic)
    refused(case, cotangents.true_fisher(), "classes")
    with pytest.raises(ScoreError, match="samples=0: give"):
        cotangents.true_fisher(samples=0)


def v_parameters(evidence: Evidence) -> list[nn.Parameter]:
    return list(evidence.parameters.values())


def test_true_fisher_is_gauss_newton_and_its_samples_approach_it() -> None:
    model = small()
    evidence = Evidence(model, prunable(model), cut(data(4), 3, 4), cross_entropy)
    exact = mean_squares(evidence, cotangents.gauss_newton)
    torch.testing.assert_close(mean_squares(evidence, cotangents.true_fisher()), exact)
    sampled = mean_squares(evidence, cotangents.true_fisher(samples=3000, seed=1))
    torch.testing.assert_close(flat(sampled), flat(exact), rtol=0.2, atol=2e-3)
    again = mean_squares(evidence, cotangents.true_fisher(samples=3000, seed=1))
    torch.testing.assert_close(sampled, again, rtol=0, atol=0)


class Besides(nn.Module):
    """Its first weight is also used by function, with inputs that are zero for the first example."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4, bias=False)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(x)) + torch.tanh(F.linear(x * (x[:, :1] > 0), self.first.weight))
        return self.head(hidden)


class Named(Besides):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.first(input=x)))


@pytest.mark.parametrize("kind", [Besides, Named])
def test_squares_of_a_weight_that_is_used_in_an_unusual_way(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = kind().double()
    inputs, targets = data(4)
    inputs[0, 0], inputs[1:, 0] = -1.0, inputs[1:, 0].abs()
    evidence = Evidence(model, prunable(model), [(inputs, targets)], cross_entropy)
    wanted = {name: torch.zeros_like(p) for name, p in evidence.parameters.items()}
    for i in range(7):
        loss = cross_entropy(model, (inputs[i : i + 1], targets[i : i + 1]))
        for name, g in zip(wanted, torch.autograd.grad(loss, list(evidence.parameters.values())), strict=True):
            wanted[name] += g.square() / 7
    torch.testing.assert_close(mean_squares(evidence, cotangents.empirical), wanted)


@pytest.mark.parametrize("factor", [1.0, 1e-25])
def test_squares_of_small_gradients_do_not_vanish(factor: float) -> None:
    model = small().float()
    inputs, targets = data(4)
    single = Evidence(model, prunable(model), [(inputs.float(), targets)], lambda m, b: factor * cross_entropy(m, b))
    exact = Evidence(small(), prunable(small()), [(inputs, targets)], cross_entropy)
    for name, found in mean_squares(single, cotangents.empirical).items():
        wanted = mean_squares(exact, cotangents.empirical)[name] * factor**2
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6 * float(wanted.max()))


def twice(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return cross_entropy(model, batch) + cross_entropy(model, (2 * batch[0], batch[1]))


def penalised(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return cross_entropy(model, batch) + 0.1 * sum(p.square().sum() for p in model.parameters())


@pytest.mark.parametrize("loss", [twice, penalised])
def test_a_loss_that_sees_the_weights_past_the_outputs_is_refused(loss: Callable[..., Tensor]) -> None:
    """The examples' gradients would be those of another loss."""
    model = small()
    refused(Evidence(model, prunable(model), [data(4)], loss), cotangents.empirical, "past the model's outputs: call")


def test_a_penalty_of_zero_weight_is_none() -> None:
    model = small()
    plain = Evidence(model, prunable(model), [data(4)], cross_entropy)
    idle = Evidence(model, prunable(model), [data(4)], lambda m, b: cross_entropy(m, b) + 0.0 * m[0].weight.sum())
    for name, score in scorers.fisher(plain).items():
        torch.testing.assert_close(scorers.fisher(idle)[name], score)


def test_two_weights_are_not_taken_for_sure_by_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    sure = 0
    for seed in range(60):
        x = torch.randn(8, 2, generator=generator) @ torch.randn(2, 2, generator=generator)
        model = nn.Linear(2, 1, bias=False)
        case = Evidence(model, prunable(model), [(x, x[:, :1])], lambda m, b: F.mse_loss(m(b[0]), b[1]))
        found = hutchinson(case, seed=seed)
        exact = 2 * x.square().mean(0)
        wrong = float((found.diagonal["weight"][0] - exact).norm() / exact.norm()) > 1e-3
        sure += wrong and not found.standard_error["weight"].any()
    assert sure == 0


def refused(evidence: Evidence, kind: Cotangents, said: str) -> None:
    with pytest.raises(ScoreError, match=said) as caught:
        mean_squares(evidence, kind)
    assert "\n" not in str(caught.value)


EMPTY, BROKEN = torch.zeros(0, 4, dtype=torch.float64), torch.full((2, 4), torch.nan, dtype=torch.float64)


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        ({"loss": None}, cotangents.empirical, "loss"),
        ({"batches": []}, cotangents.empirical, "batches is empty"),
        ({"model": small(nn.BatchNorm1d(3).double())}, cotangents.empirical, "model.eval"),
        ({"model": small(nn.Dropout(0.5))}, cotangents.empirical, "model.eval"),
        ({"model": small(nn.BatchNorm1d(3, track_running_stats=False)).eval()}, cotangents.empirical, "replace it"),
        ({"model": small(nn.Flatten(0)), "loss": lambda m, b: m(b[0]).square().mean()}, cotangents.empirical, "shape"),
        ({"loss": squared_error}, cotangents.true_fisher(), "cross-entropy"),
        ({"loss": detached}, cotangents.empirical, "no gradient"),
        (
            {"batches": [(torch.zeros(0, 4, dtype=torch.float64), torch.zeros(0).long())]},
            cotangents.empirical,
            "no examples",
        ),
        (
            {"batches": [(torch.full((2, 4), torch.nan, dtype=torch.float64), torch.tensor([0, 1]))]},
            cotangents.gauss_newton,
            "NaN",
        ),
        ({"model": small(nn.Unflatten(1, (3, 1)))}, cotangents.true_fisher(), "classes"),
        ({"loss": lambda m, b: -squared_error(m, b)}, cotangents.gauss_newton, "convex"),
    ],
)
def test_what_has_no_curvature_is_refused(change: dict[str, Any], kind: Cotangents, said: str) -> None:
    model = change.get("model", small())
    loss = cross_entropy if not isinstance(model[-1], nn.Unflatten) else lambda m, b: m(b[0]).square().mean()
    options = {"batches": [data(4)], "loss": loss} | change | {"model": model, "parameters": prunable(model)}
    refused(Evidence(**options), kind, said)


def test_curvature_leaves_no_trace() -> None:
    model = odd()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    evidence = Evidence(model, prunable(model), cut(data(1, 7, 7), 3, 4), cross_entropy)
    mean_squares(evidence, cotangents.true_fisher(samples=2))
    hutchinson(evidence, least=2, most=4)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is None for p in model.parameters())
    assert not model.training
    assert not any(module._forward_hooks for module in model.modules())


class Routed(nn.Module):
    """Two experts that see the tokens that the data send them: rows of an expert may be of one example, or of any."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.reshape(-1, 4)  # two tokens an example
        out = torch.zeros_like(tokens)
        for number, expert in enumerate(self.experts):
            places = (tokens[:, 0] > 0).long().eq(number).nonzero()[:, 0]
            out = out.index_add(0, places, expert(tokens[places]))
        return self.head(out.view(x.shape).mean(1))


def routed(signs: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """Examples of two tokens each, sent by their signs."""
    inputs, targets = data(2, 4, count=len(signs))
    inputs[:, :, 0] = inputs[:, :, 0].abs() * torch.tensor(signs)
    return inputs, targets


@pytest.mark.parametrize("curvature", ["empirical_fisher", "gauss_newton"])
def test_batches_in_which_experts_mix_examples_are_not_taken_for_others(curvature: Any) -> None:
    """In the first batch both experts have one token of each example, in their order; in the second as many tokens,
    but of other examples."""
    torch.manual_seed(0)
    model = Routed().double()
    apart, mixed = routed([(1, -1)] * 4), routed([(1, 1), (-1, -1), (1, -1), (1, -1)])
    evidence = Evidence(model, prunable(model), [apart, mixed], cross_entropy)
    found = mean_squares(evidence, cotangents.cotangents(curvature))
    single = [(x[i : i + 1], y[i : i + 1]) for x, y in (apart, mixed) for i in range(4)]
    wanted = mean_squares(Evidence(model, evidence.parameters, single, cross_entropy), cotangents.cotangents(curvature))
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value)


class Again(nn.Module):
    """Uses the weight of its layer in one call more for large inputs; or a copy of it, under autocast."""

    def __init__(self, always: bool = False) -> None:
        super().__init__()
        self.a, self.b, self.always = nn.Linear(4, 4, bias=False), nn.Linear(4, 3), always

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.a(x).relu()
        if self.always or float(x.detach().abs().max()) > 50:
            hidden = F.linear(hidden * 10, self.a.weight)
        return self.b(hidden)


def small_then_large() -> list[tuple[Tensor, Tensor]]:
    x, y = data(4)
    return [(x[:4], y[:4]), (x[4:] * 100, y[4:])]


def test_uses_outside_of_a_module_in_later_batches_count() -> None:
    torch.manual_seed(0)
    model = Again().double()
    batches = small_then_large()
    found = mean_squares(Evidence(model, prunable(model), batches, cross_entropy), cotangents.empirical)
    single = [(x[i : i + 1], y[i : i + 1]) for x, y in batches for i in range(len(x))]
    for name, p in prunable(model).items():
        squares = [torch.autograd.grad(cross_entropy(model, example), p)[0].square() for example in single]
        torch.testing.assert_close(found[name], torch.stack(squares).mean(0))


@pytest.mark.parametrize("scorer", [scorers.wanda, scorers.obs])
def test_scorers_of_inputs_refuse_weights_that_are_used_outside_of_their_modules(scorer: Any) -> None:
    model = Again().double()
    scorer(Evidence(model, prunable(model), small_then_large()[:1], cross_entropy))
    with pytest.raises(ScoreError, match=r"a\.weight: is also used outside of a plain layer"):
        scorer(Evidence(model, prunable(model), small_then_large(), cross_entropy))

    def halved(model: nn.Module, batch: Any) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):  # it keeps the cast of a weight for later uses
            return cross_entropy(model, batch)

    cast = Again(always=True)
    x, y = data(4)
    with pytest.raises(ScoreError, match=r"a\.weight: is also used outside of a plain layer"):
        scorer(Evidence(cast, prunable(cast), [(x.float(), y)], halved))


def test_penalties_on_weights_are_no_uses_of_them() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)).double()

    def decayed(model: nn.Module, batch: Any) -> Tensor:
        return cross_entropy(model, batch) + sum(p.square().sum() for p in model.parameters())

    found, wanted = (scorers.wanda(Evidence(model, prunable(model), [data(4)], f)) for f in (decayed, cross_entropy))
    assert all(torch.equal(found[name], value) for name, value in wanted.items())


def test_layers_of_a_fused_encoder_are_seen() -> None:
    """In eval mode without gradients torch runs a whole encoder layer past its modules."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, dropout=0.0).double().eval()
    parameters = prunable(layer, include=["linear1.weight", "linear2.weight"])
    x = data(3, 4)[0]
    seen = []
    hook = layer.linear1.register_forward_hook(lambda m, i, o: seen.append(i[0]))
    layer(x)  # with gradients
    hook.remove()
    scores = scorers.wanda(Evidence(layer, parameters, [x], lambda m, b: m(b).sum()))
    norms = seen[0].detach().square().sum((0, 1)).sqrt()
    torch.testing.assert_close(scores["linear1.weight"], layer.linear1.weight.detach().abs() * norms)


def test_networks_that_mix_examples_are_refused() -> None:
    class Centred(nn.Module):
        def __init__(self, share: float = 1.0) -> None:
            super().__init__()
            self.a, self.b, self.share = nn.Linear(4, 5), nn.Linear(5, 3), share

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.a(x)
            return self.b(torch.tanh(hidden - self.share * hidden.mean(0)))

    class Statistics(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return F.batch_norm(self.a(x), None, None, training=True)

    class Contrast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.a(x)
            return hidden @ hidden.T

    for model in (Centred(), Centred(0.5), Statistics(), Contrast()):
        evidence = Evidence(model.double(), prunable(model), [data(4)], cross_entropy)
        for scorer in (scorers.fisher, scorers.obd, scorers.woodfisher):
            with pytest.raises(ScoreError, match=r"alone than in its batch|gradients of their own") as caught:
                scorer(evidence)
            assert "\n" not in str(caught.value)
    calm = Centred(0.0).double()
    scorers.fisher(Evidence(calm, prunable(calm), [data(4)], cross_entropy))


def test_examples_are_cut_out_of_any_mapping() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    model.register_parameter("scale", nn.Parameter(torch.ones(3, dtype=torch.float64)))
    x, y = data(4)

    def scaled(model: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(model(batch["x"]), batch["y"])

    parameters = prunable(model)
    found = mean_squares(Evidence(model, parameters, [UserDict(x=x, y=y)], scaled), cotangents.empirical)
    wanted = mean_squares(Evidence(model, parameters, [(x, y)], cross_entropy), cotangents.empirical)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value)
    with pytest.raises(ScoreError, match="one by one"):
        mean_squares(Evidence(model, parameters, [(x, y)], cross_entropy, count=len), cotangents.empirical)


def test_examples_may_be_items_of_lists() -> None:
    """As images of a detector; the twin has them stacked. Three examples of three rows each."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    x, y = torch.randn(3, 3, 4, dtype=torch.float64), torch.tensor([0, 2, 1])

    class Averaged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x).mean(1)

    whole = Averaged()
    items = (list(x), [torch.full((1,), int(label)) for label in y])

    def of_items(model: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(model(torch.stack(batch[0])), torch.cat(batch[1]))

    parameters = prunable(whole)
    found = mean_squares(Evidence(whole, parameters, [items], of_items), cotangents.empirical)
    wanted = mean_squares(Evidence(whole, parameters, [(x, y)], cross_entropy), cotangents.empirical)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value)


def test_what_is_not_cut_out_for_examples_stays_as_it_is() -> None:
    """Weights of classes, given with the batch, are the same for every example, also where gradients are mapped."""
    torch.manual_seed(0)
    model = nn.Linear(4, 3, bias=False).double()
    x, y = data(4)
    factor = torch.tensor(2.0, dtype=torch.float64)

    class Outside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.inner.weight)

    def scaled(model: nn.Module, batch: Any) -> Tensor:
        assert batch["factor"].dim() == 0
        return F.cross_entropy(model(batch["x"]) * batch["factor"], batch["y"])

    whole = Outside()
    found = mean_squares(
        Evidence(whole, prunable(whole), [{"x": x, "factor": factor, "y": y}], scaled), cotangents.empirical
    )
    wanted = mean_squares(
        Evidence(model, prunable(model), [(x, y)], lambda m, b: F.cross_entropy(m(b[0]) * 2, b[1])),
        cotangents.empirical,
    )
    torch.testing.assert_close(found["inner.weight"], wanted["weight"])


class Plain(nn.Linear):
    """Linear by another name, as timm has one."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class More(nn.Linear):
    """Linear, and then something with the weight."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.weight.sum()


def test_subclasses_that_compute_what_their_kind_does_are_scored() -> None:
    torch.manual_seed(0)
    x, y = data(4)
    plain = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    twin, more = (nn.Sequential(nn.Linear(4, 5), nn.Tanh(), kind(5, 3)).double() for kind in (Plain, More))
    for model in (twin, more):
        model.load_state_dict(plain.state_dict())
    for scorer in (scorers.wanda, scorers.obs, scorers.fisher):
        found, wanted = (scorer(Evidence(m, prunable(m), [(x, y)], cross_entropy)) for m in (twin, plain))
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value)
    for scorer in (scorers.wanda, scorers.obs):
        with pytest.raises(ScoreError, match=r"2\.weight: is also used outside of a plain layer"):
            scorer(Evidence(more, prunable(more), [(x, y)], cross_entropy))


@pytest.mark.parametrize("scorer", [scorers.wanda, scorers.obs])
def test_layers_may_be_called_with_one_example(scorer: Any) -> None:
    """A loop over examples, each without a dimension for them, is the batch."""
    torch.manual_seed(0)
    x = torch.randn(4, 2, 7, dtype=torch.float64)
    layer = nn.Sequential(nn.Conv1d(2, 3, 3), nn.Flatten(-2), nn.Linear(15, 3)).double()
    one = lambda m, b: torch.stack([m(e) for e in b]).sum()  # noqa: E731
    found, wanted = (scorer(Evidence(layer, prunable(layer), [x], f)) for f in (one, lambda m, b: m(b).sum()))
    for name, score in wanted.items():
        torch.testing.assert_close(found[name], score)


def test_shapes_of_weights_may_be_asked_for_anywhere_and_branches_are_taken() -> None:
    class Shapely(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            start = self.a.weight.new_zeros(len(x), 4) + torch.zeros_like(self.a.weight)[:1]
            return self.b(torch.cond(x.sum() > 99, lambda t: t + 1, lambda t: t - 1, (start + self.a(x),)))

    model = Shapely()
    x, y = data(4)
    evidence = Evidence(model, prunable(model), [(x.float(), y)], cross_entropy)
    assert all(bool(score.any()) for score in scorers.wanda(evidence).values())
    with pytest.raises(ScoreError, match=r"torch\.cond and its like cannot be watched"):
        scorers.taylor(evidence)
    with torch.inference_mode(), pytest.raises(ScoreError, match="outside"):
        scorers.wanda(evidence)


def test_a_penalty_that_begins_in_a_later_batch_is_refused_there() -> None:
    def growing(model: nn.Module, batch: Any) -> Tensor:
        value = cross_entropy(model, batch)
        return value + model.weight.square().sum() if len(batch[1]) == 3 else value

    model = nn.Linear(4, 3).double()
    x, y = data(4)
    mean_squares(Evidence(model, prunable(model), [(x[:4], y[:4])], growing), cotangents.empirical)
    with pytest.raises(ScoreError, match="weight: the loss sees it past the model's outputs"):
        mean_squares(Evidence(model, prunable(model), [(x[:4], y[:4]), (x[4:], y[4:])], growing), cotangents.empirical)


class Several(nn.Module):
    """Returns its hidden units too, in a tuple or by name; the loss is of the last layer's outputs alone."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.kind = nn.Linear(5, 4), nn.Linear(4, 3), kind

    def forward(self, x: Tensor) -> Any:
        hidden = torch.tanh(self.first(x))
        found = self.last(hidden)
        return {"tensor": found, "tuple": (hidden, found), "mapping": {"hidden": hidden, "out": found}}[self.kind]


@pytest.mark.parametrize("kind", ["tuple", "mapping"])
@pytest.mark.parametrize("scorer", [scorers.fisher, scorers.obd, scorers.woodfisher], ids=lambda s: s.__name__)
def test_of_several_outputs_those_count_that_the_loss_depends_on(kind: str, scorer: Any) -> None:
    x, y = torch.randn(6, 5), torch.randint(3, (6,))
    taken = {"tensor": lambda out: out, "tuple": lambda out: out[1], "mapping": lambda out: out["out"]}
    found, wanted = (
        scorer(
            Evidence(
                model := Several(which),
                prunable(model),
                [(x, y)],
                lambda m, b, which=which: nn.functional.cross_entropy(taken[which](m(b[0])), b[1]),
            )
        )
        for which in (kind, "tensor")
    )
    for name, score in found.items():
        torch.testing.assert_close(score, wanted[name])


def test_a_loss_of_several_outputs_has_no_gradients_of_examples_by_one_of_them() -> None:
    model, x, y = Several("tuple"), torch.randn(6, 5), torch.randint(3, (6,))

    def loss(m: nn.Module, b: Any) -> Tensor:
        hidden, found = m(b[0])
        return nn.functional.cross_entropy(found, b[1]) + hidden.square().mean()

    with pytest.raises(ScoreError, match=r"output is no tensor.*tuple"):
        scorers.fisher(Evidence(model, prunable(model), [(x, y)], loss))
