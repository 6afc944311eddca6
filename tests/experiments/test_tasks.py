"""Tasks against their definitions written out, however the data are cut."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
import torchmetrics
from torch import nn
from torch.nn import functional as F

from experiments.data import Examples, Splits
from experiments.data.examples import chunks
from experiments.tasks import (
    Classification,
    LanguageModelling,
    MaskedLanguageModelling,
    Metric,
    Multilabel,
    Regression,
    Task,
    call,
    check_fit,
    counts,
    evaluate,
    mean_loss,
)
from experiments.training import loop
from experiments.training.batches import steps_per_epoch
from experiments.training.learning_rate import constant
from experiments.training.loop import accelerator, train
from experiments.training.recipe import Recipe
from pruning.errors import ConfigurationError, DataError, ModelError

IGNORED = -100
SIZES = (1, 4, 7, 1000)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def linear(inputs, outputs):
    return nn.Linear(inputs, outputs).double()


def columns(count=23, **more):
    return {"inputs": torch.randn(count, 4, dtype=torch.float64)} | more


def language(count=11, length=6, padded=True):
    tokens = torch.randint(9, (count, length))
    if not padded:
        return Examples(input_ids=tokens)
    lengths = torch.randint(1, length + 1, (count, 1))
    return Examples(input_ids=tokens, attention_mask=(torch.arange(length) < lengths).long())


class Tokens(nn.Module):
    """Logits [n, tokens, 9] that depend on the token and its mask."""

    def __init__(self):
        super().__init__()
        self.embedding, self.output = nn.Embedding(9, 5), nn.Linear(5, 9)

    def forward(self, input_ids, attention_mask=None):
        hidden = self.embedding(input_ids)
        return SimpleNamespace(
            logits=self.output(hidden if attention_mask is None else hidden * attention_mask[..., None])
        )


@pytest.mark.parametrize("size", SIZES)
def test_classification_is_counting(size):
    weights = [0.5, 2.0, 0.0]
    data = Examples(**columns(targets=torch.randint(3, (23,))))
    model = linear(4, 3)
    task = Classification(classes=3, weights=weights, top=[2], label_smoothing=0.3, evaluation_batch=size)
    found = evaluate(task, model, data)
    logits, targets = model(data["inputs"]).detach(), data["targets"]
    order = logits.argsort(1, descending=True)
    assert found["accuracy"] == sum(int(a[0] == b) for a, b in zip(order, targets, strict=True)) / 23
    assert found["top2_accuracy"] == sum(int(b in a[:2]) for a, b in zip(order, targets, strict=True)) / 23
    each = torch.tensor(weights)[targets]
    wanted = sum(-float(w) * float(row.log_softmax(0)[t]) for w, row, t in zip(each, logits, targets, strict=True))
    assert found["loss"] == pytest.approx(wanted / float(each.sum()), rel=1e-6)
    assert list(found) == [metric.name for metric in task.all_metrics()] == ["accuracy", "top2_accuracy", "loss"]
    assert [metric.chance for metric in task.all_metrics()] == [1 / 3, 2 / 3, None]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("outputs", [1, 2])
def test_regression_is_sums_of_squares(size, outputs):
    shape = (23,) if outputs == 1 else (23, outputs)
    data = Examples(**columns(targets=torch.randn(shape, dtype=torch.float64)))
    model = linear(4, outputs)
    task = Regression(outputs=outputs, criterion="huber", delta=0.5, evaluation_batch=size)
    found = evaluate(task, model, data)
    y, z = data["targets"].view(23, -1), model(data["inputs"]).detach()
    explained = 1 - ((y - z) ** 2).sum(0) / ((y - y.mean(0)) ** 2).sum(0)
    assert found["r2"] == pytest.approx(float(explained.mean()), rel=1e-9)
    assert found["mse"] == pytest.approx(float(((y - z) ** 2).mean()), rel=1e-9)
    assert found["mae"] == pytest.approx(float((y - z).abs().mean()), rel=1e-9)
    apart = (y - z).abs()
    huber = torch.where(apart < 0.5, apart**2 / 2, 0.5 * (apart - 0.25))
    assert found["loss"] == pytest.approx(float(huber.mean()), rel=1e-9)


@pytest.mark.parametrize("size", SIZES)
def test_multilabel_is_counting(size):
    data = Examples(**columns(targets=torch.randint(2, (23, 3)).double()))
    model = linear(4, 3)
    found = evaluate(Multilabel(labels=3, positive_weights=[1, 2, 3], evaluation_batch=size), model, data)
    guessed, true = model(data["inputs"]).detach() > 0, data["targets"] > 0

    def f1(guessed, true):
        right = int((guessed & true).sum())
        return 2 * right / (int(guessed.sum()) + int(true.sum()))

    assert found["f1"] == pytest.approx(f1(guessed, true))
    assert found["f1_macro"] == pytest.approx(sum(f1(guessed[:, k], true[:, k]) for k in range(3)) / 3)
    assert found["exact_match"] == sum(bool((a == b).all()) for a, b in zip(guessed, true, strict=True)) / 23
    p = model(data["inputs"]).sigmoid().detach()
    losses = torch.where(true, -p.log() * torch.tensor([1.0, 2.0, 3.0]), -(1 - p).log())
    assert found["loss"] == pytest.approx(float(losses.mean()), rel=1e-6)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("padded", [False, True])
def test_perplexity_is_over_the_tokens_that_follow(size, padded):
    data, model = language(padded=padded), Tokens().double()
    found = evaluate(LanguageModelling(evaluation_batch=size), model, data)
    logits = model(**dict(data)).logits.detach()
    losses, right = [], []
    for n in range(len(data)):
        for place in range(1, 6):
            if padded and not data["attention_mask"][n, place]:
                continue
            token = data["input_ids"][n, place]
            losses.append(-float(logits[n, place - 1].log_softmax(0)[token]))
            right.append(int(logits[n, place - 1].argmax()) == int(token))
    assert found["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-6)
    assert found["token_accuracy"] == pytest.approx(sum(right) / len(right))
    labels = data["input_ids"].masked_fill(data["attention_mask"] == 0, IGNORED) if padded else data["input_ids"]
    theirs = torchmetrics.text.Perplexity(ignore_index=IGNORED)(logits[:, :-1].float(), labels[:, 1:])
    assert found["perplexity"] == pytest.approx(float(theirs), rel=1e-5)


def test_hidden_tokens_are_a_function_of_their_sequence():
    task = MaskedLanguageModelling(vocabulary=50, mask_token=49, share=0.2, special=[0])
    tokens = torch.randint(48, (2000, 32))
    mask = torch.ones_like(tokens)
    mask[:, 20:] = 0
    data = Examples(input_ids=tokens, attention_mask=mask)
    whole = next(data.batches([slice(0, 2000)]))
    shown, labels = task.inputs(whole)["input_ids"], task._hidden(whole)[1]
    part = next(data.batches([torch.tensor([7, 1999, 3])]))
    assert torch.equal(task.inputs(part)["input_ids"], shown[[7, 1999, 3]])
    chosen = labels != IGNORED
    assert not chosen[:, 20:].any()
    assert not chosen[tokens == 0].any()
    assert torch.equal(labels[chosen], tokens[chosen])
    assert torch.equal(shown[~chosen], tokens[~chosen])
    able = (tokens != 0) & (mask != 0)
    assert float(chosen[able].float().mean()) == pytest.approx(0.2, abs=0.01)
    kinds = [shown == 49, shown == tokens]
    assert [float(kind[chosen].float().mean()) for kind in kinds] == pytest.approx(
        [0.8 + 0.1 / 50, 0.1 + 0.1 / 50], abs=0.02
    )
    again = [task.augment(whole, torch.Generator().manual_seed(seed)) for seed in (1, 2, 1)]
    hidden = [task._hidden(batch)[1] for batch in again]
    assert torch.equal(hidden[0], hidden[2])
    assert not torch.equal(hidden[0], hidden[1])
    assert not torch.equal(hidden[0], labels)
    places = [set(map(tuple, (one != IGNORED).nonzero().tolist())) for one in (hidden[0], hidden[1])]
    assert len(places[0] & places[1]) / len(places[0]) == pytest.approx(0.2, abs=0.03)  # independent draws
    assert set(task.inputs(again[0])) == {"input_ids", "attention_mask"}


@pytest.mark.parametrize("size", SIZES)
def test_masked_language_modelling_is_the_loss_of_hidden_tokens(size):
    task = MaskedLanguageModelling(vocabulary=9, mask_token=8, share=0.4, evaluation_batch=size)
    data, model = language(padded=False), Tokens().double()
    found = evaluate(task, model, data)
    shown, labels = task._hidden(next(data.batches([slice(0, len(data))])))
    logits = model(shown).logits.detach()
    losses = [-float(logits[n, t].log_softmax(0)[labels[n, t]]) for n, t in (labels != IGNORED).nonzero().tolist()]
    assert found["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-6)
    assert found["perplexity"] == pytest.approx(float(torch.tensor(found["loss"]).exp()), rel=1e-5)


CASES = {
    "classification with weights": lambda: (
        Classification(classes=3, weights=[0.5, 2.0, 3.5], label_smoothing=0.2),
        Examples(**columns(targets=torch.randint(3, (23,)))),
        linear(4, 3),
    ),
    "regression": lambda: (
        Regression(outputs=2),
        Examples(**columns(targets=torch.randn(23, 2, dtype=torch.float64))),
        linear(4, 2),
    ),
    "multilabel": lambda: (
        Multilabel(labels=3),
        Examples(**columns(targets=torch.randint(2, (23, 3)).double())),
        linear(4, 3),
    ),
    "language modelling": lambda: (LanguageModelling(), language(23), Tokens().double()),
    "masked language modelling": lambda: (
        MaskedLanguageModelling(vocabulary=9, mask_token=8, share=0.4),
        language(23),
        Tokens().double(),
    ),
}


def recipe(count=23, **changes):
    steps = range(2 * steps_per_epoch(count, 10))
    plain = {"batch_size": 10, "optimizer": partial(torch.optim.SGD, lr=0.1, momentum=0.9), "total": len(steps)}
    return Recipe(**({"steps": steps, "factor": constant, "seed": 4} | plain | changes))


def weights(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


@pytest.mark.parametrize("case", CASES)
def test_a_step_is_the_same_however_its_batch_is_cut(case):
    """Padding, ignored tokens and weights of classes make the parts count differently."""
    task, data, model = CASES[case]()
    start = {name: value.clone() for name, value in model.state_dict().items()}
    whole = train(model, data, data, recipe(), task, accelerator("cpu"))
    trained = weights(model)
    for parts in (2, 3, 10):
        model.load_state_dict(start)
        cut = train(model, data, data, recipe(accumulate=parts), task, accelerator("cpu"))
        torch.testing.assert_close(weights(model), trained, rtol=1e-10, atol=1e-12)
        assert [epoch.loss for epoch in cut.epochs] == pytest.approx([epoch.loss for epoch in whole.epochs], rel=1e-6)


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("case", CASES)
def test_the_steps_of_processes_average_to_that_of_one(monkeypatch, case, world):
    """Each trains on its share of a batch, in which another amount counts than in those of the others."""
    task, data, model = CASES[case]()
    batch = next(data.batches([slice(0, 23)]))
    start, accelerated = {name: value.clone() for name, value in model.state_dict().items()}, accelerator("cpu")

    def step(rank, processes):
        monkeypatch.setattr(loop, "world_size", lambda: processes)
        monkeypatch.setattr(loop, "rank", lambda: rank)
        model.load_state_dict(start)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        made = recipe(accumulate=2)
        learn, trained = partial(loop._task_alone, task), list(model.parameters())
        total = loop._step(model, optimizer, batch, task.count(batch), made, learn, accelerated, None, trained)
        return weights(model), float(total)

    alone, total = step(0, 1)
    found = [step(rank, world) for rank in range(world)]
    torch.testing.assert_close(torch.stack([after for after, _ in found]).mean(0), alone, rtol=1e-10, atol=1e-12)
    assert sum(part for _, part in found) == pytest.approx(total, rel=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_the_loss_of_scorers_is_a_mean_over_what_counts(case):
    task, data, model = CASES[case]()
    loss, count = mean_loss(task), counts(task) or (lambda batch: len(next(iter(batch.values()))))
    whole = next(data.batches([slice(0, 23)]))
    parts = list(data.batches([slice(0, 3), slice(3, 14), slice(14, 23)]))
    together = sum(float(loss(model, part).detach()) * count(part) for part in parts) / sum(
        count(part) for part in parts
    )
    assert float(loss(model, whole).detach()) == pytest.approx(together, rel=1e-6)


def test_where_nothing_counts_nothing_is_learned():
    data = Examples(input_ids=torch.randint(9, (4, 5)), labels=torch.full((4, 5), IGNORED))
    model = Tokens()
    before = weights(model)
    plain = recipe(4, optimizer=partial(torch.optim.SGD, lr=0.1))
    train(model, data, data, plain, LanguageModelling(), accelerator("cpu"))
    assert torch.equal(weights(model), before)
    with pytest.raises(DataError, match="nothing in these data counts"):
        evaluate(LanguageModelling(), model, data)


class Pair(nn.Module):
    def forward(self, left, right):
        return torch.stack([left, 10 * right], 1)


def test_models_take_what_they_take():
    batch = {"left": torch.tensor([1.0, 2.0]), "right": torch.tensor([3.0, 4.0]), "targets": torch.tensor([0, 1])}
    wanted = torch.tensor([[1.0, 30.0], [2.0, 40.0]])
    task = Classification(classes=2)
    assert torch.equal(call(task, Pair(), batch), wanted)
    swapped = replace(task, call="positional", columns=["right", "left"])
    assert torch.equal(call(swapped, Pair(), batch), torch.tensor([[3.0, 10.0], [4.0, 20.0]]))

    class Whole(nn.Module):
        def forward(self, batch):
            assert set(batch) == {"left", "right"}
            return Pair()(**batch)

    assert torch.equal(call(replace(task, call="dictionary"), Whole(), batch), wanted)
    one = {"features": torch.ones(2, 3), "targets": torch.tensor([0, 1])}
    assert call(task, nn.Identity(), one) is one["features"]
    nested = {"inputs": {"left": batch["left"], "right": batch["right"]}, "targets": batch["targets"]}

    class Nested(nn.Module):
        def forward(self, inputs):
            return Pair()(**inputs)

    assert torch.equal(call(task, Nested(), nested), wanted)
    with pytest.raises(DataError, match="no column middle"):
        call(replace(task, columns=["middle"]), Pair(), batch)


class Own(Task):
    """The README's kind: what it is judged by, and its loss."""

    def described(self):
        return (Metric("deviance", higher_is_better=False),)

    def loss(self, outputs, batch, training=False):
        return F.poisson_nll_loss(outputs[:, 0], batch["targets"], reduction="sum")

    def measures(self):
        return {"deviance": torchmetrics.TweedieDevianceScore(power=1)}

    def predictions(self, outputs, batch):
        return outputs[:, 0].exp(), batch["targets"]


def test_a_task_of_ones_own_and_metrics_by_import_path():
    data = Examples(**columns(targets=torch.randint(5, (23,)).double()))
    model = linear(4, 1)
    task = Own(metrics={"error": torchmetrics.MeanAbsoluteError()})
    found = [evaluate(task, model, data) for _ in range(2)]
    assert found[0] == found[1]  # nothing is left in the objects
    rate, y = model(data["inputs"])[:, 0].exp().detach(), data["targets"]
    assert found[0]["error"] == pytest.approx(float((rate - y).abs().mean()), rel=1e-5)
    deviance = 2 * (torch.special.xlogy(y, y / rate) - y + rate).mean()
    assert found[0]["deviance"] == pytest.approx(float(deviance), rel=1e-5)
    assert [(m.name, m.higher_is_better) for m in task.all_metrics()] == [
        ("deviance", False),
        ("error", False),
        ("loss", False),
    ]


def three(**columns):
    return Splits(*(Examples(**columns) for _ in range(3)))


@pytest.mark.parametrize(
    ("task", "targets", "words"),
    [
        (Classification(classes=3), torch.tensor([0, 3, 1]), "1 of 3 .* to 2, as example 1, .* of class 3: .*test"),
        (Classification(classes=3), torch.tensor([0, -1, 1]), "as example 1, which is of class -1"),
        (Classification(classes=3), torch.zeros(3), "not class indices.*task=regression"),
        (Classification(classes=3), torch.zeros(3, 2), "not class indices.*task=multilabel"),
        (Classification(classes=3, targets="label"), torch.zeros(3), "no column label in the data; they have inputs"),
        (Regression(), torch.tensor([0, 1, 1]), "torch.int64.*task=classification"),
        (Regression(), torch.zeros(3, 2), "have 2 numbers an example: set task.outputs"),
        (Multilabel(labels=2), torch.tensor([[0, 2], [0, 1], [1, 1]]), "give zeros and ones"),
        (LanguageModelling(), torch.zeros(3), "no column input_ids"),
    ],
)  # fmt: skip
def test_data_of_another_task_are_refused_by_name(task, targets, words):
    with pytest.raises(DataError, match=words) as caught:
        check_fit(task, nn.Linear(4, 3), three(inputs=torch.randn(3, 4), targets=targets), "model=x")
    assert "\n" not in str(caught.value)


def test_models_that_do_not_fit_are_refused_by_name():
    data = three(inputs=torch.randn(3, 4), targets=torch.tensor([0, 1, 2]))
    labels = three(inputs=torch.randn(3, 4), targets=torch.ones(3, 3))
    with pytest.raises(ModelError, match=r"model=x: gives \[3, 2\] for inputs .* the loss of task=Multilabel fails"):
        check_fit(Multilabel(labels=3), nn.Linear(4, 2), labels, "model=x")
    numbers = three(inputs=torch.randn(3, 4), targets=torch.ones(3))
    with pytest.raises(ModelError, match=r"model=x: gives \[3, 2\] for targets \[3\]"):
        check_fit(Regression(), nn.Linear(4, 2), numbers, "model=x")
    for model, words in (
        (nn.Linear(5, 3), r"model=x: cannot be called with the data's inputs \[3, 4\], targets \[3\] \(RuntimeError"),
        (nn.Sequential(nn.Linear(4, 3), nn.Flatten(0)), r"model=x: gives \[\] logits an example"),
        (nn.Linear(4, 2), r"model=x: gives \[2\] logits an example for 3 classes"),
    ):
        with pytest.raises(ModelError, match=words) as caught:
            check_fit(Classification(classes=3), model, data, "model=x")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Classification(classes=1), "at least 2"),
        (lambda: Classification(classes=3, weights=[1, 2]), "give 3 numbers"),
        (lambda: Classification(classes=3, label_smoothing=1.0), r"\[0, 1\)"),
        (lambda: Classification(classes=3, top=[4]), "from 2 to 3"),
        (lambda: Classification(classes=3, call="somehow"), "keywords, positional, dictionary"),
        (lambda: Classification(classes=3, evaluation_batch=0), "at least 1"),
        (lambda: Regression(criterion="cubes"), "mse, mae, huber"),
        (lambda: Multilabel(labels=2, positive_weights=[0, 1]), "above 0"),
        (lambda: MaskedLanguageModelling(vocabulary=3, mask_token=3), "below 3"),
    ],
)
def test_options_without_a_meaning_are_refused(make, words):
    with pytest.raises(ConfigurationError, match=words):
        make()


def test_r2_of_large_numbers_is_that_of_small_ones():
    data = columns(targets=torch.randn(23, dtype=torch.float64))
    model, far = linear(4, 1), linear(4, 1)
    far.load_state_dict(model.state_dict())
    with torch.no_grad():
        far.bias += 1.7e9
    moved = Examples(**(data | {"targets": data["targets"] + 1.7e9}))
    for size in (1, 7, 1000):
        task = Regression(evaluation_batch=size)
        near = evaluate(task, model, Examples(**data))["r2"]
        assert evaluate(task, far, moved)["r2"] == pytest.approx(near, rel=1e-5)


def padded(data, left=False, more=3):
    """The same sequences with more padding, on the right or on the left."""
    tokens = F.pad(data["input_ids"], (more, 0) if left else (0, more), value=8)
    mask = F.pad(data["attention_mask"], (more, 0) if left else (0, more))
    return Examples(input_ids=tokens, attention_mask=mask)


def test_padding_counts_for_nothing():
    data, model = language(), Tokens().double()
    task = LanguageModelling()
    wanted = evaluate(task, model, data)
    for other in (padded(data), padded(data, left=True)):
        assert evaluate(task, model, other) == pytest.approx(wanted, rel=1e-6)
        assert float(task.count(dict(other))) == float(task.count(dict(data)))
    hidden = MaskedLanguageModelling(vocabulary=9, mask_token=8, share=0.4)
    assert evaluate(hidden, model, padded(data)) == pytest.approx(evaluate(hidden, model, data), rel=1e-6)


class Poor(Classification):
    """A classification with something wrong, by `fault`."""

    fault = ""

    def described(self):
        if self.fault == "nothing":
            raise NotImplementedError
        return () if self.fault == "empty" else (Metric("my metric" if self.fault == "name" else "right"),)

    def measures(self):
        return {} if self.fault == "lacking" else {"right": torchmetrics.MeanMetric()}

    def predictions(self, outputs, batch):
        return ((outputs.argmax(1) == batch["targets"]).float(),)

    def loss(self, outputs, batch, training=False):
        return super().loss(outputs, batch) / (len(outputs) if self.fault == "mean" else 1)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("nothing", "has no metrics: define described"),
        ("empty", "give at least one of its own"),
        ("name", "'my metric'.*letters, digits and underscores"),
        ("lacking", r"cannot be evaluated \(KeyError: 'right'\)"),
        ("mean", r"its loss of 4 examples together is 1\.304, and 5\.217 one by one: give the sum"),
    ],
)
def test_what_a_task_of_ones_own_lacks_is_said_before_training(fault, words):
    data = three(inputs=torch.randn(6, 4), targets=torch.tensor([0, 1, 2, 0, 1, 1]))
    task, model = Poor(classes=3), nn.Linear(4, 3)
    check_fit(task, model, data, "model=x")
    task.fault = fault
    with pytest.raises(ConfigurationError, match=words) as caught:
        check_fit(task, model, data, "model=x")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        (torchmetrics.MeanSquaredError(), r"MeanSquaredError takes .* that are float32 \[4, 3\] and int64 \[4\]"),
        (torchmetrics.Accuracy("multiclass", num_classes=3, average=None), "MulticlassAccuracy has no single number"),
    ],
)
def test_a_metric_of_the_wrong_kind_is_named(metric, words):
    data = three(inputs=torch.randn(6, 4), targets=torch.tensor([0, 1, 2, 0, 1, 1]))
    task = Classification(classes=3, metrics={"mine": metric})
    with pytest.raises(ConfigurationError, match=rf"^task\.metrics\.mine: {words}.* \(\w+Error: .*\): give "):
        check_fit(task, nn.Linear(4, 3), data, "model=x")


def test_metrics_with_one_name_are_refused():
    with pytest.raises(ConfigurationError, match="'accuracy', 'accuracy', 'loss'"):
        Classification(classes=3, metrics={"accuracy": torchmetrics.MeanSquaredError()}).all_metrics()


def test_a_metric_without_a_direction_is_asked_for_it():
    task = Classification(classes=3, metrics={"mine": torchmetrics.MeanMetric()})
    with pytest.raises(
        ConfigurationError, match=r"^task\.metrics\.mine: MeanMetric does not say .* \+\+task\.better\.mine="
    ):
        task.all_metrics()
    for word, higher in (("higher", True), ("lower", False)):
        found = {one.name: one.higher_is_better for one in replace(task, better={"mine": word}).all_metrics()}
        assert found == {"accuracy": True, "mine": higher, "loss": False}


def test_a_target_that_is_no_class_is_refused_wherever_it_comes():
    for wrong in (-100, -1, 3):
        with pytest.raises(DataError, match=f"Target {wrong} is out of bounds. There are 3 classes"):
            Classification(classes=3).loss(torch.zeros(2, 3), {"targets": torch.tensor([0, wrong])})


class Averaged(Classification):
    """Whose loss is torch's own mean, of what has weights or is not ignored."""

    options: ClassVar[dict] = {}

    def loss(self, outputs, batch, training=False):
        return nn.functional.cross_entropy(outputs, batch["targets"], **self.options)


@pytest.mark.parametrize("options", [{}, {"weight": torch.tensor([1.0, 2.0, 5.0])}, {"ignore_index": 1}])
def test_every_mean_is_refused_as_a_loss(options):
    data = three(inputs=torch.randn(6, 4), targets=torch.tensor([0, 1, 2, 0, 1, 2]))
    task = Averaged(classes=3)
    task.options = options | {"reduction": "sum"}
    check_fit(task, nn.Linear(4, 3), data, "model=x")
    task.options = options
    with pytest.raises(
        ConfigurationError, match=r"4 examples together is .* one by one: give the sum.*additive = False"
    ):
        check_fit(task, nn.Linear(4, 3), data, "model=x")


def test_a_loss_of_whole_batches_says_so():
    class Contrast(Classification):
        additive: ClassVar[bool] = False

        def loss(self, outputs, batch, training=False):
            return torch.logsumexp(outputs @ outputs.T, 1).sum()

    data = three(inputs=torch.randn(6, 4), targets=torch.tensor([0, 1, 2, 0, 1, 2]))
    check_fit(Contrast(classes=3), nn.Linear(4, 3), data, "model=x")


def test_metrics_of_probabilities_do_not_depend_on_the_batches():
    """torchmetrics would take logits for probabilities in a batch where all lie in [0, 1]."""
    data = Examples(inputs=torch.rand(40, 3), targets=torch.randint(3, (40,)))
    metric = torchmetrics.AUROC("multiclass", num_classes=3)
    tasks = [Classification(classes=3, metrics={"auroc": metric}, evaluation_batch=size) for size in (1, 7, 1000)]
    found = [evaluate(task, Same(), data)["auroc"] for task in tasks]
    wanted = torchmetrics.functional.auroc(data["inputs"].softmax(1), data["targets"], "multiclass", num_classes=3)
    assert found == pytest.approx([float(wanted)] * 3)
    labels = Examples(inputs=torch.randn(40, 3), targets=torch.randint(2, (40, 3)))
    ranking = torchmetrics.AUROC("multilabel", num_labels=3)
    wanted = torchmetrics.functional.auroc(labels["inputs"].sigmoid(), labels["targets"], "multilabel", num_labels=3)
    assert evaluate(Multilabel(labels=3, metrics={"auroc": ranking}), Same(), labels)["auroc"] == pytest.approx(
        float(wanted)
    )


class Same(nn.Module):
    """Gives its inputs, as they are."""

    def __init__(self):
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(()))

    def forward(self, inputs):
        return inputs + self.nothing


class Passing(nn.Module):
    """Whose outputs depend on how often it was called."""

    def __init__(self):
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(()))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, inputs):
        self.calls += 1
        return inputs + self.nothing + (self.calls - 1)


def test_an_evaluation_leaves_no_trace_in_the_model():
    data, model = Examples(inputs=torch.rand(4, 3), targets=torch.zeros(4, dtype=torch.int64)), Passing()
    task = Classification(classes=3, evaluation_batch=2)
    one, other = evaluate(task, model, data), evaluate(task, model, data)
    assert one == other
    assert float(model.calls) == 0


class Returning(nn.Linear):
    """Returns its outputs as `kind`, in train mode as `training`."""

    def __init__(self, kind, training=None):
        super().__init__(4, 3)
        self.kinds = kind, training or kind

    def forward(self, inputs):
        return self.kinds[self.training](super().forward(inputs))


@pytest.mark.parametrize(
    "kind",
    [lambda x: x, lambda x: {"logits": x, "hidden": 2 * x}, lambda x: (x,), lambda x: [x, None], SimpleNamespace],
)
def test_outputs_may_be_a_tensor_or_hold_logits(kind):
    kind = (lambda x: SimpleNamespace(logits=x)) if kind is SimpleNamespace else kind
    data = three(inputs=torch.randn(6, 4), targets=torch.tensor([0, 1, 2, 0, 1, 2]))
    model = Returning(kind)
    check_fit(Classification(classes=3), model, data, "model=x")
    plain = nn.Linear(4, 3)
    plain.load_state_dict(model.state_dict())
    found, wanted = (evaluate(Classification(classes=3), each, data.train) for each in (model, plain))
    assert found == wanted


def test_outputs_of_which_it_is_not_known_what_is_meant_are_refused_with_the_model():
    data = three(inputs=torch.randn(6, 4), targets=torch.tensor([0, 1, 2, 0, 1, 2]))
    for model, mode in (
        (Returning(lambda x: (x, x)), ""),
        (Returning(lambda x: x, lambda x: (x, x)), ", in train mode,"),
    ):
        with pytest.raises(ModelError, match=rf"^model=x{mode}: the model's output is no tensor"):
            check_fit(Classification(classes=3), model, data, "model=x")
    check_fit(Classification(classes=3), Returning(lambda x: x, lambda x: (x, x)), data, "model=x", trained=False)


def test_a_single_example_left_over_joins_the_part_before_it():
    batch = {"inputs": torch.arange(31)}
    assert [len(part["inputs"]) for part in chunks(batch, 2)] == [16, 15]
    assert [len(part["inputs"]) for part in chunks({"inputs": torch.arange(11)}, 5)] == [3, 3, 3, 2]
    assert [len(part["inputs"]) for part in chunks({"inputs": torch.arange(9)}, 4)] == [3, 3, 3]
    assert [len(part["inputs"]) for part in chunks({"inputs": torch.arange(7)}, 3)] == [3, 4]
    assert [len(part["inputs"]) for part in chunks({"inputs": torch.arange(3)}, 3)] == [1, 1, 1]
    assert torch.equal(torch.cat([part["inputs"] for part in chunks({"inputs": torch.arange(7)}, 3)]), torch.arange(7))


def test_a_measure_of_ones_own_task_is_blamed_as_such():
    class Mine(Classification):
        def measures(self):
            return {"accuracy": torchmetrics.MeanSquaredError()}

    data = Examples(inputs=torch.randn(4, 3), targets=torch.tensor([0, 1, 2, 0]))
    with pytest.raises(ConfigurationError, match=r"^task\.measures\(\)\.accuracy: MeanSquaredError takes no"):
        evaluate(Mine(classes=3), nn.Linear(3, 3), data)
