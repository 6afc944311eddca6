"""What is done with a model while it is tuned, or with another adaptation: right, or refused by name."""

import copy
import io
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pruning.adaptation import Adapters, Beside, Delta, Tuning
from pruning.errors import AdaptationError

X = torch.randn(16, 20, generator=torch.Generator().manual_seed(1))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 30), nn.BatchNorm1d(30), nn.ReLU(), nn.Linear(30, 20))


def support(share: float = 0.05) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {name: torch.rand(shape, generator=generator) < share for name, shape in SHAPES.items()}


SHAPES = {"0.weight": (30, 20), "3.weight": (20, 30)}


def train(model: nn.Module, tuning: Tuning, steps: int = 3, follow: bool = True) -> None:
    optimizer = torch.optim.SGD(tuning.parameters(), lr=0.5)
    if follow:
        tuning.follow(optimizer)
    for _ in range(steps):
        optimizer.zero_grad()
        model(X).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("share", [0.05, 0.5])
def test_gradients_of_before_do_not_count(share: float) -> None:
    fresh, used = network().eval(), network().eval()
    used(X).square().mean().backward()
    found = []
    for model in (fresh, used):
        tuning = Tuning(model, support(share))
        model(X).square().mean().backward()
        found.append([values.grad for values in tuning.values.values()])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_statistics_that_moved_are_in_the_delta() -> None:
    model, base = network(), network()
    tuning = Tuning(model, support())
    train(model, tuning)
    delta = tuning.finish()
    assert {"1.running_mean", "1.running_var", "1.num_batches_tracked"} == delta.dense.keys()
    before = copy.deepcopy(base.state_dict())
    with delta.apply_(base) as other:
        assert torch.equal(other.eval()(X), model.eval()(X))
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())
    still = network().eval()
    assert not Tuning(still, support()).finish().dense


def test_weights_that_others_wrote_are_no_result() -> None:
    model = network()
    tuning = Tuning(model, support())
    train(model, tuning, 1)
    best, state = copy.deepcopy(model.state_dict()), copy.deepcopy(tuning.state_dict())
    train(model, tuning, 2)
    last = copy.deepcopy(model.state_dict())
    model.load_state_dict(best)
    with pytest.raises(AdaptationError, match=r"0\.weight: is not base \+ difference"):
        tuning.finish()
    model.load_state_dict(last)
    tuning.load_state_dict(state)
    assert torch.equal(model[0].weight, best["0.weight"])
    tuning.finish()


def test_a_training_that_nobody_followed_gives_no_delta() -> None:
    model = network()
    tuning = Tuning(model, support())
    train(model, tuning, follow=False)
    with pytest.raises(AdaptationError, match=r"call follow\(optimizer\)"):
        tuning.delta()


def test_a_tuning_that_is_over_writes_nothing() -> None:
    model = network()
    tuning = Tuning(model, support())
    train(model, tuning)
    tuning.finish()
    for call in (tuning.finish, tuning.delta, tuning.write_, tuning.revert):
        with pytest.raises(AdaptationError, match="is over"):
            call()
    tuning.release()


def saved(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    found: nn.Module = torch.load(file, weights_only=False)
    return found


@pytest.mark.parametrize("copied", [copy.deepcopy, saved])
def test_a_copy_is_a_model_like_any_other(copied: Callable[[nn.Module], nn.Module]) -> None:
    model = network().eval()
    tuning = Tuning(model, support())
    train(model, tuning, 1)
    other = copied(model)
    assert torch.equal(other(X), model(X))
    assert type(other[0]) is nn.Linear
    assert not getattr(other, "_ddp_params_and_buffers_to_ignore", ())
    other.requires_grad_(True)
    other(X).square().mean().backward()
    assert all(parameter.grad is not None for parameter in other.parameters())
    again = Tuning(other, support())
    train(other, again, 1)
    assert again.finish().count == tuning.finish().count


@pytest.mark.parametrize("share", [0.05, 0.5])
def test_other_weights_in_their_place_get_their_own_gradients(share: float) -> None:
    model = network().eval()
    tuning = Tuning(model, support(share))
    given = {name: torch.randn_like(p).requires_grad_() for name, p in model.named_parameters()}
    torch.func.functional_call(model, given, (X,)).square().mean().backward()
    plain = network().eval()
    plain.load_state_dict({**plain.state_dict(), **{name: value.detach() for name, value in given.items()}})
    plain(X).square().mean().backward()
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(given[name].grad, parameter.grad)
    assert all(values.grad is None for values in tuning.values.values())


def embedding(**options: float) -> nn.Module:
    return nn.Sequential(nn.Embedding(20, 30, **options))


ODD: dict[str, tuple[Callable[[], object], str]] = {
    "max_norm": (
        lambda: Tuning(embedding(max_norm=1.0), {"0.weight": torch.ones(20, 30, dtype=torch.bool)}),
        "max_norm lets",
    ),
    "eight bits": (
        lambda: Tuning(
            nn.ParameterDict({"w": nn.Parameter(torch.ones(3, dtype=torch.int8), False)}),
            {"w": torch.ones(3, dtype=torch.bool)},
        ),
        "is int8, to which no differences are added",
    ),
    "too large": (lambda: finished(torch.float16, 1e6), "too large for torch.float16"),
    "whole numbers": (lambda: finished(torch.int32, 1.0), "holds no differences"),
    "cast": (lambda: cast(0.05), "was cast or moved"),
    "cast, densely": (lambda: cast(0.5), "was cast or moved"),
}


def finished(dtype: torch.dtype, size: float) -> None:
    tuning = Tuning(network(), support())
    for values in tuning.values.values():
        values.data.fill_(size)
    tuning.write_()
    tuning.finish(dtype)


def cast(share: float) -> None:
    model = network()
    tuning = Tuning(model, support(share))
    model.double()
    tuning.write_()


@pytest.mark.parametrize("kind", ODD)
def test_what_cannot_be_is_refused(kind: str) -> None:
    make, message = ODD[kind]
    with pytest.raises(AdaptationError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_complex_weights(tmp_path) -> None:
    weight = nn.Parameter(torch.randn(4, 5, dtype=torch.complex64))
    model = nn.ParameterDict({"w": weight})
    before = weight.detach().clone()
    tuning = Tuning(model, {"w": torch.ones(4, 5, dtype=torch.bool)})
    tuning.values["w"].data.normal_()
    tuning.write_()
    tuning.finish().save(tmp_path / "delta")
    other = nn.ParameterDict({"w": nn.Parameter(before)})
    Delta.load(tmp_path / "delta").apply_(other)
    assert torch.equal(other["w"], weight)


MAKE: dict[str, Callable[[nn.Module], object]] = {
    "a tuning": lambda m: Tuning(
        m, {name: mask for name, mask in support().items() if name in dict(m.named_parameters())}
    ),
    "adapters": lambda m: Adapters(m, 2, where={"0": "0"}),
    "differences beside": lambda m: Beside(m, {"0.weight": support()["0.weight"]}),
}


@pytest.mark.parametrize("first", MAKE)
@pytest.mark.parametrize("second", MAKE)
def test_one_adaptation_at_a_time(first: str, second: str) -> None:
    model = network()
    required = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    one = MAKE[first](model)
    with pytest.raises(AdaptationError, match=f"has {first}"):
        MAKE[second](model)
    with pytest.raises(AdaptationError, match=f"has {first}"):
        MAKE[second](nn.Sequential(model[0], nn.ReLU()))  # a part of it
    getattr(one, "release", getattr(one, "detach", None))()
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == required
    MAKE[second](model)


@pytest.mark.parametrize("kind", ["parallel", "sequential"])
@pytest.mark.parametrize("copied", [copy.deepcopy, saved])
def test_a_copy_has_adapters_of_its_own(kind: str, copied: Callable[[nn.Module], nn.Module]) -> None:
    model = network().eval()
    Adapters(model, 2, kind, where={"3": "0"})
    nn.init.normal_(model[3].adapter.up.weight)
    other = copied(model)
    assert torch.equal(other(X), model(X))
    other[3].adapter.up.weight.data.zero_()
    other[3].adapter.up.bias.data.zero_()
    assert torch.equal(other(X), F.linear(other[:3](X), other[3].weight, other[3].bias))
    other(X).square().mean().backward()
    assert other[3].adapter.up.weight.grad is not None
    assert model[3].adapter.up.weight.grad is None
