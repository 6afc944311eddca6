"""A pruned weight does not exist: a masked network trains exactly as the network from which it was removed."""

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from pruning import Masks, prunable
from pruning.errors import MaskError

Make = Callable[[Any], Optimizer]

KEPT = torch.tensor([0, 2, 3, 6])  # hidden units of 8
UPDATES: dict[str, Make] = {
    "sgd": partial(SGD, lr=0.1),
    "momentum": partial(SGD, lr=0.05, momentum=0.9, weight_decay=0.1),
    "dampening": partial(SGD, lr=0.05, momentum=0.9, dampening=0.3),
    "nesterov": partial(SGD, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": partial(Adam, lr=0.01, weight_decay=0.1),
    "adam-foreach": partial(Adam, lr=0.01, foreach=True),
    "adamw": partial(AdamW, lr=0.01, weight_decay=0.1),
    "adamw-amsgrad": partial(AdamW, lr=0.01, amsgrad=True),
    "rmsprop": partial(torch.optim.RMSprop, lr=0.01, centered=True, momentum=0.5),
    "adagrad": partial(torch.optim.Adagrad, lr=0.05, initial_accumulator_value=0.1),
    "nadam": partial(torch.optim.NAdam, lr=0.01),
}


class Noisy(Optimizer):
    """Of a third party: averages the gradient over rows, adds noise, and keeps state of its own that spreads."""

    def __init__(self, params: Any, lr: float = 0.1):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # no loss to return
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                memory = self.state[p].setdefault("memory", torch.zeros_like(p))
                memory.mul_(0.9).add_(p.grad.mean(0, keepdim=True)).add_(torch.randn_like(p), alpha=0.1)
                p.sub_(memory, alpha=group["lr"])


def mlp(hidden: int = 8, dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, hidden), nn.Tanh(), nn.Linear(hidden, 3)).to(dtype)


def data(step: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    inputs = torch.randn(10, 6, generator=generator, dtype=torch.float64).to(dtype)
    return inputs, torch.randint(3, (10,), generator=generator)


def loss_of(model: nn.Module, step: int) -> Tensor:
    inputs, targets = data(step, next(model.parameters()).dtype)
    return nn.functional.cross_entropy(model(inputs), targets)


def train(
    model: nn.Module, optimizer: Optimizer, steps: int, *, start: int = 0, clip: float | None = None, pieces: int = 1
) -> None:
    def closure(step: int) -> Tensor:
        optimizer.zero_grad()
        total = torch.zeros((), dtype=next(model.parameters()).dtype)
        for piece in range(pieces):
            loss = loss_of(model, step * pieces + piece) / pieces
            loss.backward()
            total = total + loss.detach()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        return total

    for step in range(start, start + steps):
        if isinstance(optimizer, torch.optim.LBFGS):
            optimizer.step(partial(closure, step))
        else:
            closure(step)
            optimizer.step()


def channel_masks(model: nn.Sequential) -> Masks:
    keep = torch.zeros(8, dtype=torch.bool)
    keep[KEPT] = True
    return Masks(
        {
            "0.weight": keep[:, None].expand(8, 6).clone(),
            "0.bias": keep,
            "2.weight": keep[None].expand(3, 8).clone(),
        }
    )


def random_masks(model: nn.Module, seed: int = 5) -> Masks:
    generator = torch.Generator().manual_seed(seed)
    return Masks({n: torch.rand(p.shape, generator=generator) < 0.5 for n, p in prunable(model).items()})


def sliced(name: str, tensor: Tensor) -> Tensor:
    return {"0.weight": lambda t: t[KEPT], "0.bias": lambda t: t[KEPT], "2.weight": lambda t: t[:, KEPT]}.get(
        name, lambda t: t
    )(tensor).clone()


def twin_of(model: nn.Sequential, optimizer: Optimizer, make: Make) -> tuple[nn.Sequential, Optimizer]:
    """The network without the removed units, and its optimizer with what remains of the state."""
    twin = mlp(hidden=len(KEPT))
    twin.load_state_dict({name: sliced(name, p.detach()) for name, p in model.named_parameters()})
    other = make(twin.parameters())
    new = dict(twin.named_parameters())
    for name, p in model.named_parameters():
        for key, value in optimizer.state.get(p, {}).items():
            kept = sliced(name, value) if isinstance(value, Tensor) and value.shape == p.shape else value
            other.state[new[name]][key] = copy.deepcopy(kept)
    return twin, other


def assert_twins(model: nn.Module, twin: nn.Module, tolerance: float = 1e-10) -> None:
    new = dict(twin.named_parameters())
    for name, p in model.named_parameters():
        torch.testing.assert_close(sliced(name, p.detach()), new[name].detach(), rtol=0, atol=tolerance)


def removed(model: nn.Module, masks: Masks) -> Iterator[tuple[str, nn.Parameter, Tensor]]:
    parameters = dict(model.named_parameters())
    for name, mask in masks.items():
        yield name, parameters[name], ~mask


def assert_gone(model: nn.Module, masks: Masks, *optimizers: Optimizer, gradients: bool = True) -> None:
    for name, p, gone in removed(model, masks):
        values = p.detach()[gone]
        assert bool((values == 0).all()), name
        assert not bool(torch.signbit(values).any()), f"{name}: minus zero"
        assert bool(p.detach()[~gone].any()), f"{name}: the kept weights are alive"
        if gradients and p.grad is not None:
            assert bool((p.grad[gone] == 0).all()), f"{name}: gradient"
        for optimizer in optimizers:
            for key, state in optimizer.state.get(p, {}).items():
                if isinstance(state, Tensor) and state.shape == p.shape:
                    assert bool((state[gone] == 0).all()), f"{name}: {key}"


@pytest.mark.parametrize("warm", [0, 4])
@pytest.mark.parametrize("options", [{}, {"clip": 0.05, "pieces": 3}], ids=["plain", "clipped-accumulated"])
@pytest.mark.parametrize("name", UPDATES)
def test_masked_network_trains_as_its_removed_twin(name: str, options: dict[str, Any], warm: int) -> None:
    model = mlp()
    optimizer = UPDATES[name](model.parameters())
    train(model, optimizer, warm)
    masks = channel_masks(model)
    twin, other = twin_of(model, optimizer, UPDATES[name])
    with masks.attach(model, optimizer):
        train(model, optimizer, 12, start=warm, **options)
    train(twin, other, 12, start=warm, **options)
    assert_twins(model, twin)
    assert_gone(model, masks, optimizer)


@pytest.mark.parametrize("search", [None, "strong_wolfe"])
@pytest.mark.parametrize("warm", [0, 3])
def test_lbfgs_trains_as_its_removed_twin(warm: int, search: str | None) -> None:
    """It mixes all entries in its history; a history that remembers removed weights starts anew."""
    make = partial(torch.optim.LBFGS, lr=0.3, max_iter=4, line_search_fn=search)
    model = mlp()
    optimizer = make(model.parameters())
    train(model, optimizer, warm)
    masks = channel_masks(model)
    twin = mlp(hidden=len(KEPT))
    twin.load_state_dict({name: sliced(name, p.detach()) for name, p in model.named_parameters()})
    with masks.attach(model, optimizer):
        train(model, optimizer, 4, start=warm)
    train(twin, make(twin.parameters()), 4, start=warm)
    assert_twins(model, twin, 1e-9)
    assert_gone(model, masks)


def test_lbfgs_history_of_masked_training_survives_loading() -> None:
    """So an interrupted run goes on as if it had not been."""
    make = partial(torch.optim.LBFGS, lr=0.3, max_iter=4)
    model = mlp()
    optimizer = make(model.parameters())
    masks = random_masks(model)
    masks.attach(model, optimizer)
    train(model, optimizer, 3)
    again = mlp(seed=1)
    again.load_state_dict(model.state_dict())
    resumed = make(again.parameters())
    masks.attach(again, resumed)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(model, optimizer, 3, start=3)
    train(again, resumed, 3, start=3)
    for ours, theirs in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, theirs)


OTHERS: dict[str, Make] = {
    "noisy": Noisy,
    "adafactor": partial(torch.optim.Adafactor, lr=0.1),
    "rprop": partial(torch.optim.Rprop, lr=0.01),
    "asgd": partial(torch.optim.ASGD, lr=0.05),
    "maximize": partial(Adam, lr=0.01, maximize=True),
}


@pytest.mark.parametrize("warm", [0, 3])
@pytest.mark.parametrize("name", [*UPDATES, *OTHERS])
def test_removed_weights_gradients_and_state_are_zero_at_every_moment(name: str, warm: int) -> None:
    model = mlp()
    optimizer = {**UPDATES, **OTHERS}[name](model.parameters())
    train(model, optimizer, warm)
    masks = random_masks(model)
    masks.attach(model, optimizer)
    stateful = () if name == "rprop" else (optimizer,)  # Rprop's step sizes are never zero, they move nothing
    assert_gone(model, masks, *stateful)
    for step in range(5):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        assert_gone(model, masks, *stateful)
        assert all(p.grad is not None and bool(p.grad.any()) for p in model.parameters())
        optimizer.step()
        assert_gone(model, masks, *stateful)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_muon_which_mixes_rows_and_columns_revives_nothing() -> None:
    model = mlp(dtype=torch.float32)
    matrices = [p for p in model.parameters() if p.dim() == 2]
    optimizer = torch.optim.Muon(matrices, lr=0.05)
    train(model, optimizer, 2)
    masks = random_masks(model)
    with masks.attach(model, optimizer):
        for step in range(4):
            train(model, optimizer, 1, start=2 + step)
            assert_gone(model, masks, optimizer)


def test_two_optimizers_are_both_held() -> None:
    model = mlp()
    first = SGD([model[0].weight, model[0].bias], lr=0.1, momentum=0.9)
    second = Noisy([model[2].weight])
    train(model, first, 2)
    train(model, second, 2)
    masks = random_masks(model)
    masks.attach(model, first, second)
    for step in range(3):
        model.zero_grad()
        loss_of(model, step).backward()
        first.step()
        second.step()
        assert_gone(model, masks, first, second)


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
def test_infinite_gradient_of_a_removed_weight_does_no_harm(bad: float) -> None:
    weight = nn.Linear(4, 1, bias=False).double()
    optimizer = Adam(weight.parameters(), lr=0.1)
    masks = Masks({"weight": torch.tensor([[True, False, True, True]])})
    masks.attach(weight, optimizer)
    weight.weight.register_hook(lambda gradient: torch.where(torch.tensor([False, True, False, False]), bad, gradient))
    for _ in range(2):
        optimizer.zero_grad()
        weight(torch.ones(2, 4, dtype=torch.float64)).sum().backward()
        assert torch.isfinite(nn.utils.clip_grad_norm_(weight.parameters(), 1.0))
        optimizer.step()
    assert bool(torch.isfinite(weight.weight).all())
    assert_gone(weight, masks, optimizer)


def test_infinite_weight_is_removed() -> None:
    layer = nn.Linear(3, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[float("nan"), float("-inf"), 2.0]]))
    Masks({"weight": torch.tensor([[False, False, True]])}).attach(layer)
    assert layer.weight.tolist() == [[0.0, 0.0, 2.0]]


def test_frozen_parameter_is_held_when_it_thaws() -> None:
    model = mlp()
    model[0].weight.requires_grad_(False)
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    masks = Masks({"0.weight": torch.rand(8, 6, generator=torch.Generator().manual_seed(0)) < 0.5})
    masks.attach(model, optimizer)
    assert not model[0].weight.requires_grad
    train(model, optimizer, 1)
    assert model[0].weight.grad is None
    model[0].weight.requires_grad_(True)
    loss_of(model, 1).backward()
    assert model[0].weight.grad is not None
    assert_gone(model, masks)
    train(model, optimizer, 2)
    assert_gone(model, masks, optimizer)


def test_loaded_optimizer_state_is_masked() -> None:
    model = mlp()
    optimizer = Adam(model.parameters(), lr=0.01)
    train(model, optimizer, 3)
    dense = copy.deepcopy(optimizer.state_dict())
    masks = random_masks(model)
    masks.attach(model, optimizer)
    optimizer.load_state_dict(dense)
    assert_gone(model, masks, optimizer)
    train(model, optimizer, 3)
    assert_gone(model, masks, optimizer)


def test_gradients_that_exist_before_attaching_are_masked() -> None:
    model = mlp()
    loss_of(model, 0).backward()
    masks = random_masks(model)
    masks.attach(model)
    assert_gone(model, masks)


def test_apply_masks_weights_changed_by_hand() -> None:
    model = mlp()
    masks = random_masks(model)
    handle = masks.attach(model)
    with torch.no_grad():
        model[0].weight.fill_(1.0)
    assert not masks.agree(model)
    handle.apply_()
    assert masks.agree(model)


def test_detach_restores_normal_training_and_may_be_repeated() -> None:
    model, plain = mlp(), mlp()
    optimizer, other = (Adam(m.parameters(), lr=0.01) for m in (model, plain))
    masks = random_masks(model)
    handle = masks.attach(model, optimizer)
    masks.apply_(plain)
    handle.detach()
    handle.detach()
    train(model, optimizer, 3)
    train(plain, other, 3)
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert not masks.agree(model)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert any(bool(optimizer.state[p]["exp_avg"][gone].any()) for _, p, gone in removed(model, masks))


def test_context_manager_detaches_also_after_an_error() -> None:
    model = mlp()
    optimizer = SGD(model.parameters(), lr=0.1)
    masks = random_masks(model)
    with pytest.raises(KeyError), masks.attach(model, optimizer):
        raise KeyError
    train(model, optimizer, 1)
    assert not masks.agree(model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["momentum", "adamw", "noisy"])
def test_every_floating_dtype(dtype: torch.dtype, name: str) -> None:
    model = mlp(dtype=dtype)
    optimizer = {**UPDATES, **OTHERS}[name](model.parameters())
    if name == "adamw":
        optimizer.param_groups[0]["eps"] = 1e-4  # the default 1e-8 is 0 in float16, and AdamW then divides by it
    train(model, optimizer, 2)
    masks = random_masks(model)
    kept = {n: p.detach()[~gone].clone() for n, p, gone in removed(model, masks)}
    masks.attach(model, optimizer)
    for n, p, gone in removed(model, masks):
        assert torch.equal(p.detach()[~gone], kept[n])
        assert p.dtype == dtype
    train(model, optimizer, 3)
    assert_gone(model, masks, optimizer)


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize(("dtype", "eps"), [(torch.float16, 1e-8), (torch.float32, 0.0)])
def test_an_optimizer_that_divides_zero_by_zero_does_no_harm(dtype: torch.dtype, eps: float, loaded: bool) -> None:
    """The kept weights have large gradients; of the removed ones moment and denominator are both 0."""
    layer = nn.Linear(4, 1, bias=False).to(dtype)
    saved = Adam(layer.parameters(), lr=0.1, eps=eps).state_dict()
    optimizer = Adam(layer.parameters(), lr=0.1, eps=1e-4 if loaded else eps)
    masks = Masks({"weight": torch.tensor([[True, False, True, False]])})
    with masks.attach(layer, optimizer):
        if loaded:
            optimizer.load_state_dict(saved)
        for _ in range(3):
            optimizer.zero_grad()
            layer(torch.ones(2, 4, dtype=dtype)).sum().backward()
            optimizer.step()
            assert bool(torch.isfinite(layer.weight).all())
            assert_gone(layer, masks, optimizer)


def test_weights_changed_between_steps_are_masked_at_the_next() -> None:
    """Loading a dense checkpoint, or an initialization in place, revives no weight."""
    model = mlp()
    dense = copy.deepcopy(model.state_dict())
    optimizer = SGD(model.parameters(), lr=0.1)
    masks = random_masks(model)
    masks.attach(model, optimizer)
    train(model, optimizer, 1)
    model.load_state_dict(dense)
    train(model, optimizer, 1)
    assert_gone(model, masks, optimizer)
    with torch.no_grad():
        model[0].weight.fill_(1.0)
    train(model, optimizer, 1)
    assert_gone(model, masks, optimizer)


def test_channels_last_and_transposed_layouts() -> None:
    conv = nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)
    linear = nn.Linear(5, 7)
    linear.weight = nn.Parameter(torch.randn(5, 7).t())
    for layer in (conv, linear):
        mask = torch.rand(layer.weight.shape, generator=torch.Generator().manual_seed(1)) < 0.5
        want = layer.weight.detach() * mask
        Masks({"weight": mask}).attach(layer)
        assert torch.equal(layer.weight.detach(), want)


def test_tied_parameter_is_held_through_both_uses() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    masks = random_masks(model)
    assert list(masks) == ["0.weight"]
    optimizer = Adam(model.parameters(), lr=0.1)
    masks.attach(model, optimizer)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(3, 4)).square().sum().backward()
        assert_gone(model, masks, optimizer)
        optimizer.step()
        assert_gone(model, masks, optimizer)


@pytest.mark.parametrize("transposed", [False, True])
def test_parameters_over_one_storage_are_held_together(transposed: bool) -> None:
    """Two Parameter objects over the same memory are one weight: the gradients of both are masked."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    shared = model[0].weight.detach()
    model[2].weight = nn.Parameter(shared.t() if transposed else shared)
    masks = random_masks(model)
    assert list(masks) == ["0.weight"]
    optimizer = Adam(model.parameters(), lr=0.1)
    masks.attach(model, optimizer)
    gone = ~masks["0.weight"]
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(3, 4)).square().sum().backward()
        gradient = model[2].weight.grad
        assert gradient is not None
        assert not bool((gradient.t() if transposed else gradient)[gone].any())
        optimizer.step()
        assert_gone(model, masks, optimizer)
        moment = optimizer.state[model[2].weight]["exp_avg"]
        assert not bool((moment.t() if transposed else moment)[gone].any())


def test_attached_model_keeps_names_and_copies_as_the_dense_one() -> None:
    model = mlp()
    before = list(model.state_dict())
    optimizer = Adam(model.parameters())
    masks = random_masks(model)
    masks.attach(model, optimizer)
    assert list(model.state_dict()) == before
    assert not list(model.buffers())
    twin = copy.deepcopy(model)
    train(twin, SGD(twin.parameters(), lr=0.1), 1)
    assert not masks.agree(twin)  # a copy is a model of its own
    assert masks.agree(model)


@pytest.mark.parametrize("masks", [{"0.weight": (8, 5)}, {"1.weight": (8, 6)}])
def test_attaching_what_does_not_fit_changes_nothing(masks: dict[str, tuple[int, ...]]) -> None:
    model = mlp()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(MaskError, match=r"use masks made for this model") as caught:
        Masks({n: torch.zeros(s, dtype=torch.bool) for n, s in masks.items()}).attach(model)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_meta_parameter_is_refused() -> None:
    with pytest.raises(MaskError, match="meta") as caught:
        Masks({"weight": torch.ones(3, 2, dtype=torch.bool)}).attach(nn.Linear(2, 3, device="meta"))
    assert "\n" not in str(caught.value)


CHANGES: dict[str, Callable[[nn.Module], None]] = {
    "noise": lambda model: [p.grad.add_(torch.ones_like(p.grad)) for p in model.parameters()],
    "by hand": lambda model: [setattr(p, "grad", torch.ones_like(p)) for p in model.parameters()],
    "scaled and shifted": lambda model: [p.grad.mul_(2).sub_(1) for p in model.parameters()],
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("kind", [SGD, Adam, AdamW, partial(SGD, momentum=0.9), torch.optim.RMSprop, torch.optim.LBFGS])
def test_gradients_changed_after_the_backward_pass_revive_nothing(
    change: Callable[[nn.Module], None], kind: Callable[..., Optimizer]
) -> None:
    """Gradient noise, surgery, torch.func and other hands."""
    model = mlp()
    optimizer = kind(model.parameters(), lr=0.01)
    masks = random_masks(model)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(model, 0)
        loss.backward()
        change(model)
        return loss

    with masks.attach(model, optimizer):
        for _ in range(3):
            if isinstance(optimizer, torch.optim.LBFGS):
                optimizer.step(closure)
            else:
                closure()
                optimizer.step()
            assert masks.agree(model)
    if not isinstance(optimizer, torch.optim.LBFGS):  # its gradients of the last evaluation are the closure's own
        assert_gone(model, masks, optimizer, gradients=False)


def test_hyper_parameters_changed_between_steps_do_no_harm() -> None:
    layer = nn.Linear(4, 1, bias=False)
    optimizer = Adam(layer.parameters(), lr=0.1)
    masks = Masks({"weight": torch.tensor([[True, False, True, False]])})
    with masks.attach(layer, optimizer):
        optimizer.param_groups[0]["eps"] = 0.0
        for _ in range(3):
            optimizer.zero_grad()
            layer(torch.ones(2, 4)).sum().backward()
            optimizer.step()
            assert_gone(layer, masks, optimizer)


def test_what_was_loaded_last_is_masked_at_the_end() -> None:
    model = mlp()
    dense = copy.deepcopy(model.state_dict())
    masks = random_masks(model)
    with masks.attach(model):
        model.load_state_dict(dense)
    assert masks.agree(model)


def test_an_optimizer_of_another_model_is_refused() -> None:
    model, other = mlp(), mlp()
    with pytest.raises(MaskError, match="Adam: updates none of the masked parameters"):
        random_masks(model).attach(model, Adam(other.parameters()))
