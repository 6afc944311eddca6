"""Looking leaves no trace, and the gradient of the data does not depend on how they are cut into batches."""

import copy
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pruning import Evidence, prunable
from pruning.batches import Batch, examples
from pruning.errors import ScoreError
from pruning.evidence import accumulated, untouched
from pruning.gradients import gradients, mean_gradient
from pruning.scorers.catalogue import CATALOGUE


class Moving(nn.Module):
    """Keeps a mean by assigning a new buffer at every pass, as many a moving average does."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("late", None)

    def forward(self, x: Tensor) -> Tensor:
        self.mean = self.mean + x.detach().mean()
        self.late = self.mean.clone()
        return x


def network() -> nn.Sequential:
    """In train mode with batch statistics and dropout, except one part in eval mode; one gradient exists already."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 6),
        nn.BatchNorm1d(6),
        nn.Dropout(0.5),
        Moving(),
        nn.Linear(6, 6),
        nn.BatchNorm1d(6),
        nn.Linear(6, 3),
    )
    model[5].eval()
    model[0].weight.grad = torch.full_like(model[0].weight, 7.0)
    model[4].weight.requires_grad_(False)
    return model


def plain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def data(count: int = 12, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 4, generator=generator, dtype=dtype), torch.randint(3, (count,), generator=generator)


def cut(batch: tuple[Tensor, Tensor], sizes: list[int]) -> list[tuple[Tensor, Tensor]]:
    return list(zip(batch[0].split(sizes), batch[1].split(sizes), strict=True))


def loss(model: nn.Module, batch: Batch) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def evidence(model: nn.Module, batches: Iterable[Batch], **options: Any) -> Evidence:
    return Evidence(model, prunable(model, frozen=True), batches, options.get("loss", loss))


def state(model: nn.Module) -> dict[str, Any]:
    return {
        "weights": {n: p.detach().clone() for n, p in model.named_parameters()},
        "gradients": {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()},
        "gradient objects": {n: id(p.grad) for n, p in model.named_parameters()},
        "frozen": {n: p.requires_grad for n, p in model.named_parameters()},
        "buffers": {
            (n, k): None if b is None else b.clone() for n, m in model.named_modules() for k, b in m._buffers.items()
        },
        "buffer objects": {n: id(b) for n, b in model.named_buffers()},
        "modes": {n: m.training for n, m in model.named_modules()},
        "random": torch.get_rng_state(),
    }


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a == b


def assert_no_trace(model: nn.Module, act: Callable[[], Any], error: type[Exception] | None = None) -> None:
    before = state(model)
    if error is None:
        act()
    else:
        with pytest.raises(error):
            act()
    after = state(model)
    for part, value in before.items():
        assert same(value, after[part]), part


class Midway(Exception):  # noqa: N818  # nothing went wrong: it marks a place
    pass


def failing(after: int) -> Callable[[nn.Module, Batch], Tensor]:
    calls = 0

    def inner(model: nn.Module, batch: Batch) -> Tensor:
        nonlocal calls
        calls += 1
        value = loss(model, batch)
        if calls > after:
            raise Midway
        return value

    return inner


def disturb(model: nn.Sequential) -> None:
    model.eval()
    model[5].train()
    model.train()(data()[0]).sum().backward()
    torch.rand(3)


def test_what_the_tests_look_for_does_happen_outside() -> None:
    """The oracle can fail: the same pass without protection changes gradients, buffers, flags and random state."""
    model = network()
    before = state(model)
    disturb(model)
    after = state(model)
    for part in ("gradients", "buffers", "modes", "random"):
        assert not same(before[part], after[part]), part


def test_untouched_puts_everything_back() -> None:
    model = network()

    def act() -> None:
        with untouched(model, model.parameters()):
            assert all(p.requires_grad for p in model.parameters())
            disturb(model)

    assert_no_trace(model, act)


def test_untouched_puts_everything_back_after_an_error() -> None:
    model = network()

    def act() -> None:
        with untouched(model, model.parameters()):
            disturb(model)
            raise Midway

    assert_no_trace(model, act, Midway)


def test_gradients_leave_no_trace() -> None:
    model = network()
    seen = evidence(model, cut(data(), [5, 7]))
    assert_no_trace(model, lambda: list(gradients(seen)))
    assert_no_trace(model, lambda: mean_gradient(seen))


def test_gradients_leave_no_trace_when_a_batch_or_the_consumer_fails() -> None:
    model = network()
    assert_no_trace(model, lambda: mean_gradient(evidence(model, cut(data(), [5, 7]), loss=failing(1))), Midway)

    def consume() -> None:
        for _ in gradients(evidence(model, cut(data(), [5, 7]))):
            raise Midway

    assert_no_trace(model, consume, Midway)


def test_gradients_leave_no_trace_when_closed_early() -> None:
    model = network()

    def act() -> None:
        iterator = gradients(evidence(model, cut(data(), [5, 7])))
        next(iterator)
        iterator.close()  # a generator, annotated as an iterator

    assert_no_trace(model, act)


def test_scoring_works_without_autograd_around_it() -> None:
    model = plain()
    seen = evidence(model, [data(dtype=torch.float64)])
    want = mean_gradient(seen)
    with torch.no_grad():
        assert same(mean_gradient(seen), want)


@pytest.mark.parametrize("sizes", [[12], [1] * 12, [5, 7], [1, 2, 9], [4, 4, 4]])
def test_mean_gradient_does_not_depend_on_the_cut(sizes: list[int]) -> None:
    model = plain()
    batch = data(dtype=torch.float64)
    found = mean_gradient(evidence(model, cut(batch, sizes)))
    loss(model, batch).backward()
    assert list(found) == ["0.weight", "2.weight"]
    for name, gradient in found.items():
        want = model.get_parameter(name).grad
        assert want is not None
        torch.testing.assert_close(gradient, want, rtol=0, atol=1e-14)


def test_gradients_of_each_batch() -> None:
    model = plain()
    batches = cut(data(dtype=torch.float64), [5, 7])
    found = list(gradients(evidence(model, batches)))
    assert [size for _, size in found] == [5, 7]
    for (gradient, _), batch in zip(found, batches, strict=True):
        twin = copy.deepcopy(model)
        loss(twin, batch).backward()
        assert same(gradient, {n: twin.get_parameter(n).grad for n in gradient})


def test_unreached_parameter_has_gradient_zero() -> None:
    model = nn.ModuleList([nn.Linear(4, 3), nn.Linear(4, 3)])
    found = mean_gradient(evidence(model, [data()], loss=lambda m, b: loss(m[0], b)))
    assert bool(found["0.weight"].any())
    assert not bool(found["1.weight"].any())


def test_evidence_is_iterated_anew_every_time() -> None:
    seen = evidence(plain(), cut(data(dtype=torch.float64), [5, 7]))
    assert same(mean_gradient(seen), mean_gradient(seen))


def one_shot() -> Iterator[Batch]:
    yield data(dtype=torch.float64)


def refused(act: Callable[[], Any], *parts: str) -> None:
    with pytest.raises(ScoreError) as caught:
        act()
    assert "\n" not in str(caught.value)
    for part in (*parts, "give"):
        assert part in str(caught.value)


def test_what_cannot_be_scored_is_refused() -> None:
    model = plain()
    used = evidence(model, one_shot())
    mean_gradient(used)
    assert_no_trace(model, lambda: refused(lambda: mean_gradient(used), "iterated only once"))
    refused(lambda: mean_gradient(evidence(model, [])), "empty")
    refused(lambda: mean_gradient(evidence(model, [data()], loss=None)), "loss")
    refused(lambda: examples(3.5), "float")
    refused(lambda: examples("text"), "str")
    refused(lambda: examples([]), "list")
    refused(lambda: examples({}), "dict")


@pytest.mark.parametrize(
    ("batch", "size"),
    [
        (torch.zeros(5, 2), 5),
        (torch.tensor(1.0), 1),
        ((torch.zeros(3, 2), torch.zeros(3)), 3),
        ([torch.zeros(4)], 4),
        ({"input_ids": torch.zeros(6, 9), "labels": torch.zeros(6)}, 6),
        ((("a name", torch.zeros(2, 7)), torch.zeros(2)), 2),
        ({"id": "x", "inputs": {"image": torch.zeros(8, 3)}}, 8),
        ({"temperature": torch.tensor(1.0), "x": torch.zeros(5, 2), "y": torch.zeros(5)}, 5),
        (([torch.zeros(4, 2), torch.zeros(4)], torch.zeros(4)), 4),
        (
            (
                [torch.zeros(3, 8, 8), torch.zeros(3, 9, 7)],
                [{"boxes": torch.zeros(4, 4)}, {"boxes": torch.zeros(1, 4)}],
            ),
            2,
        ),
        ((["some", "words"], torch.zeros(2, 7)), 2),
        ([torch.zeros(6, 1, 8, 8), torch.zeros(6, 1, 8, 8)], 6),
        ([{"image": torch.zeros(2, 9)}, {"image": torch.zeros(2, 9)}], 2),
        ((nn.utils.rnn.pack_sequence([torch.zeros(4, 2), torch.zeros(1, 2)]), torch.zeros(2)), 2),
    ],
)
def test_examples_in_a_batch(batch: Batch, size: int) -> None:
    assert examples(batch) == size


@pytest.mark.parametrize(
    "batch",
    [
        ([{"a": torch.zeros(3, 1)}, torch.zeros(9)]),
        (torch.zeros(7, 4, 2), torch.zeros(4)),
        ([torch.zeros(3, 8, 8), torch.zeros(3, 8, 8)], [torch.tensor(1), torch.tensor(0)]),
        [torch.zeros(3, 8, 8), torch.zeros(3, 8, 8)],
        [{"image": torch.zeros(3, 8, 8), "label": torch.tensor(1)} for _ in range(5)],
        [(torch.zeros(3, 8, 8), 1) for _ in range(5)],
    ],
    ids=["two numbers", "time first", "images or examples", "images", "examples", "pairs"],
)
def test_a_batch_whose_examples_are_not_clear_is_refused(batch: Batch) -> None:
    refused(lambda: examples(batch), "put examples first", "count=")
    model = plain()
    assert Evidence(model, prunable(model), count=lambda _: 4).size(batch) == 4.0
    for wrong in (0, -1, float("nan"), float("inf")):
        refused(lambda wrong=wrong: Evidence(model, prunable(model), count=lambda _: wrong).size(batch), "count=")


def test_batches_weigh_by_what_their_losses_are_means_over() -> None:
    """A loss over tokens, padding ignored: cut anyhow, with the number of tokens as count, it is that of all."""
    model = plain()
    inputs, targets = data(dtype=torch.float64)
    targets[::5] = -100
    whole = mean_gradient(evidence(model, [(inputs, targets)]))
    batches = cut((inputs, targets), [1, 2, 9])[1:] + cut((inputs, targets), [1, 2, 9])[:1]
    tokens = [(x, y) for x, y in batches if int((y >= 0).sum())]
    seen = Evidence(model, prunable(model), tokens, loss, count=lambda batch: int((batch[1] >= 0).sum()))
    for name, gradient in mean_gradient(seen).items():
        torch.testing.assert_close(gradient, whole[name], rtol=0, atol=1e-14)


def test_halves_are_accumulated_in_float32() -> None:
    for dtype in (torch.float16, torch.bfloat16):
        assert accumulated(torch.ones(2, dtype=dtype)).dtype == torch.float32
    assert accumulated(torch.ones(2, dtype=torch.float64)).dtype == torch.float64
    assert not accumulated(nn.Parameter(torch.ones(2))).requires_grad


@pytest.mark.parametrize("expanded", [True, False], ids=["expanded", "inference"])
def test_buffers_that_cannot_be_written_are_no_hindrance(expanded: bool) -> None:
    model = plain()
    with torch.inference_mode(not expanded):
        buffer = torch.ones(1).expand(6) if expanded else torch.ones(6)
    model.register_buffer("fixed", buffer)
    assert set(mean_gradient(evidence(model, [data(dtype=torch.float64)]))) == set(prunable(model))
    assert torch.equal(model.fixed, torch.ones(6))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda value: value.expand(3), "shape [3]"),
        (lambda value: float(value.detach()), "float"),
        (lambda value: None, "NoneType"),
        (Tensor.detach, "gradient"),
    ],
)
def test_a_loss_without_a_gradient_is_refused(spoil: Callable[[Tensor], Any], said: str) -> None:
    def spoilt(model: nn.Module, batch: Batch) -> Any:
        return spoil(loss(model, batch))

    model = plain()
    refused(lambda: mean_gradient(Evidence(model, prunable(model), [data(dtype=torch.float64)], spoilt)), said)


def test_random_numbers_of_python_and_numpy_are_put_back() -> None:
    model = plain()
    random.seed(1)
    np.random.seed(1)
    expected = random.random(), np.random.rand()
    random.seed(1)
    np.random.seed(1)
    with untouched(model):
        random.random()
        np.random.rand(3)
    assert (random.random(), np.random.rand()) == expected


@pytest.mark.parametrize("transposed", [False, True])
def test_two_parameters_over_one_memory_are_refused(transposed: bool) -> None:
    """A gradient reaches only one of them, so the score would miss the other's use."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = nn.Parameter(model[0].weight.data.t() if transposed else model[0].weight.data)
    with pytest.raises(ScoreError, match=r"1\.weight: shares the memory of 0\.weight.*tie them as one") as caught:
        Evidence(model, prunable(model))
    assert "\n" not in str(caught.value)
    model[1].weight = model[0].weight
    Evidence(model, prunable(model))


def drawn(scorer: Any) -> bool:
    """Whether scoring with a loader, which draws a seed for its workers, moves the global random state."""
    model = plain()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data(dtype=torch.float64)), batch_size=5)
    initial = {name: p.detach() + 1 for name, p in prunable(model).items()}
    case = Evidence(model, prunable(model), loader, loss, initial=initial)
    before = torch.random.get_rng_state()
    scorer(case)
    return not torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("entry", [entry for entry in CATALOGUE if entry.needs != "a scorer"], ids=lambda e: e.name)
def test_a_loader_leaves_no_trace_either(entry: Any) -> None:
    assert not drawn(entry.scorer)
