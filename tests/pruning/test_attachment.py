"""Masks held on a network: whatever gradients, weights, dtypes and hands do to it between steps."""

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from accelerate import Accelerator
from timm.optim import Lookahead
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from pruning import Masks
from pruning.attachment import optimizers_in
from pruning.errors import MaskError
from tests.pruning.twins import Make, Noisy, assert_gone, loss_of, mlp, random_masks, removed, train


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


MAKES: dict[str, Make] = {
    "momentum": partial(SGD, lr=0.05, momentum=0.9, weight_decay=0.1),
    "adamw": partial(AdamW, lr=0.01, weight_decay=0.1, eps=1e-4),  # 1e-8 is 0 in float16, and AdamW divides by it
    "noisy": Noisy,
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", MAKES)
def test_every_floating_dtype(dtype: torch.dtype, name: str) -> None:
    model = mlp(dtype=dtype)
    optimizer = MAKES[name](model.parameters())
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


def test_an_accelerated_optimizer_is_looked_through() -> None:
    """What accelerate's `prepare` returns, which a Trainer's callbacks get, wraps an optimizer and is none itself."""
    masks = random_masks(mlp())
    found = []
    for wrap in (lambda optimizer: optimizer, Accelerator(cpu=True).prepare):
        model = mlp()
        optimizer = wrap(AdamW(model.parameters(), lr=0.05, weight_decay=0.1))
        with masks.attach(model, optimizer):
            train(model, optimizer, 5)
            assert_gone(model, masks, getattr(optimizer, "optimizer", optimizer))
        found.append([p.detach() for p in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("late", [0, 4])
def test_lookahead_revives_nothing(late: int) -> None:
    """Its slow weights are put over the fast ones every third step; masks may come when it has some."""
    model = mlp()
    optimizer = Lookahead(SGD(model.parameters(), lr=0.05, momentum=0.9), k=3)
    train(model, optimizer, late)
    masks = random_masks(model)
    with masks.attach(model, optimizer):
        for _ in range(7):
            train(model, optimizer, 1)
            assert_gone(model, masks, optimizer._base_optimizer)
    slow = optimizer._base_optimizer.state[model[0].weight]["lookahead_slow_buff"]
    assert not bool(slow[~masks["0.weight"]].any())
    assert bool(slow.any())


def test_an_optimizer_that_is_wrapped_twice_is_watched_once() -> None:
    model = mlp()
    inner = SGD(model.parameters(), lr=0.1)
    outer = SGD(model.parameters(), lr=0.1)
    outer.optimizer = outer._optimizer = inner
    inner.optimizer = outer  # and back again
    assert optimizers_in(outer) == (outer, inner)
    with random_masks(model).attach(model, outer):
        assert len(inner._optimizer_step_pre_hooks) == len(outer._optimizer_step_pre_hooks) == 1


def test_an_optimizer_that_cannot_be_watched_is_refused_and_leaves_no_hook() -> None:
    class Own(Optimizer):
        """Without torch's constructor, and so without its hooks."""

        def __init__(self, parameters: list[nn.Parameter]) -> None:
            self.param_groups, self.state, self.defaults = [{"params": parameters}], {}, {}

        def step(self, closure: None = None) -> None:
            """Nothing."""

    model = mlp()
    before = [p.detach().clone() for p in model.parameters()]
    plain = SGD(model.parameters(), lr=0.1)
    with pytest.raises(MaskError, match=r"Own: its steps cannot be watched: give") as caught:
        random_masks(model).attach(model, plain, Own(list(model.parameters())))
    assert "\n" not in str(caught.value)
    assert all(torch.equal(p, value) for p, value in zip(model.parameters(), before, strict=True))
    assert not plain._optimizer_step_pre_hooks
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())


def test_attaching_that_fails_midway_leaves_no_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    model = mlp()
    optimizer = SGD(model.parameters(), lr=0.1)

    def fail(*_: object) -> None:
        raise RuntimeError("midway")

    monkeypatch.setattr(optimizer, "register_load_state_dict_post_hook", fail)
    with pytest.raises(RuntimeError, match="midway"):
        random_masks(model).attach(model, optimizer)
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())
