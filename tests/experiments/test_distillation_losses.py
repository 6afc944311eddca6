"""Distillation losses against their definitions, written out in numpy; they are sums, however batches are cut."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from experiments.data.examples import chunks
from experiments.distillation import Attention, Combined, DistillationLoss, Hidden, Logits, Pass, forward
from experiments.distillation.loss import example_counts
from experiments.distillation.passes import undisturbed, with_attention
from experiments.tasks import (
    Classification,
    Completion,
    LanguageModelling,
    MaskedLanguageModelling,
    Metric,
    Multilabel,
    Regression,
    Task,
)
from pruning.errors import ConfigurationError, ModelError


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def softened(logits: torch.Tensor, temperature: float) -> np.ndarray:
    powers = np.exp(logits.numpy() / temperature)
    return powers / powers.sum(-1, keepdims=True)


def kl(teacher: torch.Tensor, student: torch.Tensor, temperature: float) -> np.ndarray:
    """Row by row, as Hinton et al. write it, with the factor T²."""
    p, q = softened(teacher, temperature), softened(student, temperature)
    return temperature**2 * (p * np.log(p / q)).sum(-1)


def logits_loss(student, teacher, task, batch, temperature=1.0) -> torch.Tensor:
    return Logits(temperature=temperature)(Pass(student), Pass(teacher), task, batch)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("weights", [None, [1.0, 0.5, 3.0, 0.0]])
def test_of_classes(temperature, weights):
    student, teacher, targets = noise(7, 4), noise(7, 4, seed=1), torch.tensor([0, 1, 2, 3, 3, 2, 0])
    task = Classification(classes=4, weights=weights, label_smoothing=0.3)
    own = np.ones(7) if weights is None else np.array(weights)[targets.numpy()]
    student.requires_grad_(True)
    found = logits_loss(student, teacher, task, {"inputs": student, "targets": targets}, temperature)
    assert found.item() == pytest.approx((own * kl(teacher, student.detach(), temperature)).sum(), rel=1e-12)
    (gradient,) = torch.autograd.grad(found, student)
    want = temperature * (softened(student.detach(), temperature) - softened(teacher, temperature))
    np.testing.assert_allclose(gradient, own[:, None] * want, rtol=1e-10, atol=1e-12)


def test_at_high_temperatures_it_matches_centred_logits():
    """Hinton et al. 2015, section 2.1: half the squared difference, divided by the number of classes."""
    student, teacher = noise(3, 5), noise(3, 5, seed=1)
    task, batch = Classification(classes=5), {"inputs": student, "targets": torch.zeros(3, dtype=torch.int64)}
    centred = [one - one.mean(1, keepdim=True) for one in (student, teacher)]
    want = (centred[0] - centred[1]).square().sum() / (2 * 5)
    assert float(logits_loss(student, teacher, task, batch, 1e4)) == pytest.approx(float(want), rel=1e-3)


TOKENS = torch.tensor([[3, 1, 4, 1, 0], [2, 0, 1, 3, 4], [1, 2, 0, 0, 0]])


@pytest.mark.parametrize("more", ["all", "padded", "labels"])
def test_of_next_tokens_at_positions_that_count(more):
    student, teacher = noise(3, 5, 6), noise(3, 5, 6, seed=1)
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    labels = torch.where(torch.arange(5) % 2 == 0, TOKENS, -100)
    batch = {"input_ids": TOKENS} | {"all": {}, "padded": {"attention_mask": mask}, "labels": {"labels": labels}}[more]
    want, count = 0.0, 0
    for row in range(3):
        for place in range(4):  # what follows it is predicted there
            counts = {"all": True, "padded": bool(mask[row, place] and mask[row, place + 1]),
                      "labels": bool(labels[row, place + 1] != -100)}[more]  # fmt: skip
            want += counts * kl(teacher[row, place], student[row, place], 2.0)
            count += counts
    task = LanguageModelling()
    assert float(task.count(batch)) == count
    student.requires_grad_(True)
    found = logits_loss(student, teacher, task, batch, 2.0)
    assert found.item() == pytest.approx(want, rel=1e-12)
    assert torch.equal(logits_loss(student, teacher, Completion(), batch, 2.0), found)
    assert bool((torch.autograd.grad(found, student)[0][:, -1] == 0).all())


def test_of_hidden_tokens():
    task = MaskedLanguageModelling(vocabulary=6, mask_token=5, share=0.4)
    student, teacher, batch = noise(3, 5, 6), noise(3, 5, 6, seed=1), {"input_ids": TOKENS}
    chosen = task.labels(batch) != -100
    assert 0 < int(chosen.sum()) < 15
    want = kl(teacher, student, 3.0)[chosen.numpy()].sum()
    assert float(logits_loss(student, teacher, task, batch, 3.0)) == pytest.approx(want, rel=1e-12)


def test_of_labels_each_is_there_or_not():
    student, teacher = noise(6, 3), noise(6, 3, seed=1)
    batch = {"inputs": student, "targets": torch.ones(6, 3)}
    for weights in (None, [1.0, 2.0, 9.0]):
        task = Multilabel(labels=3, positive_weights=weights)
        pairs = [torch.stack([one, torch.zeros_like(one)], -1) for one in (teacher, student)]  # two classes each
        want = kl(*pairs, 2.0).sum()
        assert float(logits_loss(student, teacher, task, batch, 2.0)) == pytest.approx(want, rel=1e-10)


@pytest.mark.parametrize("criterion", ["mse", "mae", "huber"])
def test_of_numbers_it_is_the_tasks_own_loss_of_the_teachers(criterion):
    student, teacher, targets = noise(6, 2), noise(6, 2, seed=1), noise(6, 2, seed=2)
    task, batch = Regression(outputs=2, criterion=criterion), {"inputs": student, "targets": targets}
    apart = np.abs((student - teacher).numpy())
    want = {"mse": apart**2, "mae": apart, "huber": np.where(apart < 1, apart**2 / 2, apart - 0.5)}[criterion].sum()
    assert float(logits_loss(student, teacher, task, batch)) == pytest.approx(want, rel=1e-12)
    with pytest.raises(ConfigurationError, match=r"distillation.temperature=4.0: outputs of task=regression .* to 1"):
        logits_loss(student, teacher, task, batch, 4.0)


class Own(Task):
    def described(self):
        return (Metric("own"),)

    def loss(self, outputs, batch, training=False):
        return outputs.sum()


class Knowing(Own):
    def divergence(self, student, teacher, batch, temperature):
        return temperature * (student - teacher).abs().sum()


def test_a_task_of_ones_own_says_it_or_is_refused():
    student, teacher, batch = noise(4, 2), noise(4, 2, seed=1), {"inputs": noise(4, 2)}
    assert float(logits_loss(student, teacher, Knowing(), batch, 2.0)) == float(2 * (student - teacher).abs().sum())
    with pytest.raises(ConfigurationError, match=r"task=Own does not say .*: define divergence\(self, student,"):
        logits_loss(student, teacher, Own(), batch)


def test_a_teacher_of_another_task_is_refused():
    with pytest.raises(ModelError, match=r"distillation.teacher: gives outputs \[5\] an example, the student \[4\]"):
        logits_loss(noise(2, 4), noise(2, 5), Classification(classes=4), {"targets": torch.tensor([0, 1])})


# Hidden states


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def two_passes(modules) -> tuple[Pass, Pass, dict]:
    student, teacher = net(), net()
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    batch = {"inputs": noise(4, 6), "targets": torch.tensor([0, 1, 2, 1])}
    task = Classification(classes=3)
    return *(forward(task, model, batch, modules) for model in (student, teacher)), batch


@pytest.mark.parametrize("measure", ["mse", "relative"])
@pytest.mark.parametrize("weights", [None, [1.0, 0.5, 3.0]])
def test_of_hidden_states_is_the_mean_over_layers_and_units(measure, weights):
    loss, task = Hidden(layers=["0", "3"], measure=measure), Classification(classes=3, weights=weights)
    assert loss.modules(net()) == ("0", "3")
    student, teacher, batch = two_passes(("0", "3"))
    per_example = np.zeros(4)
    for name in ("0", "3"):
        own, given = (one.states[name][0].detach().numpy() for one in (student, teacher))
        each = ((own - given) ** 2).mean(1)
        per_example += (each / ((given**2).mean(1) + 1e-6) if measure == "relative" else each) / 2
    counts = np.ones(4) if weights is None else np.array(weights)[batch["targets"].numpy()]
    assert loss(student, teacher, task, batch).item() == pytest.approx((per_example * counts).sum(), rel=1e-10)


def test_a_state_is_what_its_module_gave_though_the_next_works_in_place():
    student, _, batch = two_passes(("0", "1"))
    want = net()[0](batch["inputs"])
    assert torch.equal(student.states["0"][0], want)
    assert torch.equal(student.states["1"][0], want.relu())
    assert not net()[0]._forward_hooks


def test_states_of_text_are_compared_where_there_is_no_padding():
    own, given = noise(2, 4, 3), noise(2, 4, 3, seed=1)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    batch = {"input_ids": torch.zeros(2, 4, dtype=torch.int64), "attention_mask": mask, "targets": torch.tensor([0, 1])}
    found = Hidden(layers=["x"])(Pass(0, {"x": [own]}), Pass(0, {"x": [given]}), Classification(classes=2), batch)
    squares = ((own - given) ** 2).numpy()
    assert float(found) == pytest.approx(squares[0, :2].mean() + squares[1].mean(), rel=1e-12)
    count = (0 + 1) + 3  # of tokens that are predicted, in the task of the next token
    found = Hidden(layers=["x"])(Pass(0, {"x": [own]}), Pass(0, {"x": [given]}), LanguageModelling(), batch)
    assert float(LanguageModelling().count(batch)) == count
    assert float(found) == pytest.approx(1 * squares[0, :2].mean() + 3 * squares[1].mean(), rel=1e-6)


def test_modules_that_are_called_twice_or_give_no_rows():
    class Twice(nn.Module):
        def __init__(self, times):
            super().__init__()
            self.inner, self.times = nn.Linear(3, 3).double(), times

        def forward(self, inputs):
            for _ in range(self.times):
                inputs = self.inner(inputs)
            return inputs

    batch, task = {"inputs": noise(4, 3), "targets": torch.zeros(4, dtype=torch.int64)}, Classification(classes=3)
    torch.manual_seed(0)
    twice, again, thrice = (forward(task, Twice(times), batch, ["inner"]) for times in (2, 2, 3))
    want = np.mean([((a - b) ** 2).mean(1).detach().numpy() for a, b in
                    zip(twice.states["inner"], again.states["inner"], strict=True)], 0).sum()  # fmt: skip
    assert Hidden(layers=["*"])(twice, again, task, batch).item() == pytest.approx(want, rel=1e-10)
    with pytest.raises(ModelError, match="inner is called 2 times in the student and 3 in the teacher"):
        Hidden(layers=["*"])(twice, thrice, task, batch)
    rows = Pass(0, {"x": [noise(3, 4)]})
    with pytest.raises(ModelError, match=r"x gives \[3, 4\] for 4 examples"):
        Hidden(layers=["x"])(rows, rows, task, batch)
    wide = Pass(0, {"x": [noise(4, 9)]})
    with pytest.raises(ModelError, match=r"x gives \[4\] an example in the student and \[9\] in the teacher"):
        Hidden(layers=["x"])(Pass(0, {"x": [noise(4, 4)]}), wide, task, batch)


# Attention


def bert(seed: int, **more) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    options = {"vocab_size": 11, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2}
    options |= {"num_attention_heads": 2, "max_position_embeddings": 16, "num_labels": 3}
    options |= {"attention_probs_dropout_prob": 0.0} | more
    torch.manual_seed(seed)
    made = transformers.BertForSequenceClassification(transformers.BertConfig(initializer_range=1.0, **options))
    return made.double()


PADDED = {
    "input_ids": torch.randint(11, (3, 5), generator=torch.Generator().manual_seed(0)),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]]),
    "targets": torch.tensor([0, 2, 1]),
}


@pytest.mark.parametrize("layers", [None, [-1]])
@pytest.mark.parametrize("measure", ["kl", "mse"])
def test_of_attention_is_the_mean_over_layers_heads_and_queries(layers, measure):
    task, models = Classification(classes=3, weights=[1.0, 0.5, 3.0]), (bert(0), bert(1))
    for model in models:
        with_attention(model)
    student, teacher = (forward(task, model.eval(), PADDED, attention=True) for model in models)
    assert len(student.attention) == 2
    want, weights = 0.0, [1.0, 3.0, 0.5]
    for example, real in enumerate((5, 3, 1)):
        found = []
        for layer in (0, 1) if layers is None else (1,):
            for head in range(2):
                for query in range(real):
                    q, p = (one.attention[layer][example, head, query, :real].detach().numpy()
                            for one in (student, teacher))  # fmt: skip
                    found.append((p * np.log(p / q)).sum() if measure == "kl" else ((p - q) ** 2).mean())
        want += weights[example] * np.mean(found)
    loss = Attention(layers=layers, measure=measure)
    assert want > 1e-3
    assert float(loss(student, teacher, task, PADDED)) == pytest.approx(want, rel=1e-6)
    loss.check(student)


def test_attention_that_cannot_be_compared_is_refused_by_name():
    task = Classification(classes=3)
    with pytest.raises(ModelError, match="Sequential has no attention: choose distillation=logits or hidden"):
        with_attention(net())
    student = bert(0, attention_probs_dropout_prob=0.3)
    with_attention(student)
    with pytest.raises(ModelError, match=r"dropped out in training, .* set its dropout to 0"):
        Attention().check(forward(task, student.train(), PADDED, attention=True))
    few, many = (Pass(0, attention=(noise(3, heads, 5, 5),)) for heads in (2, 4))
    with pytest.raises(ModelError, match=r"the student has \[\[2, 5, 5\]\], the teacher \[\[4, 5, 5\]\]"):
        Attention()(few, many, task, PADDED)
    with pytest.raises(ConfigurationError, match=r"layers=\[1\]: there are 1 layers with attention, from 0 to 0"):
        Attention(layers=[1])(few, few, task, PADDED)


# All of them


def test_a_combination_is_the_weighted_sum_and_terms_see_their_own_layers_alone():
    student, teacher, batch = two_passes(("0", "3"))
    task = Classification(classes=3)
    terms = {"logits": Logits(temperature=2.0), "first": Hidden(layers=["0"]), "second": Hidden(layers=["3"])}
    loss = Combined(terms=terms, weights={"logits": 0.5, "first": 2.0, "second": 3.0})
    alone = {"logits": float(terms["logits"](student, teacher, task, batch))}
    for name, layer in (("first", "0"), ("second", "3")):
        own, given, _ = two_passes((layer,))
        alone[name] = float(terms[name](own, given, task, batch))
    want = 0.5 * alone["logits"] + 2 * alone["first"] + 3 * alone["second"]
    assert float(loss(student, teacher, task, batch)) == pytest.approx(want, rel=1e-12)
    assert loss.modules(net()) == ("0", "3")
    assert (loss.outputs_alone, loss.attends) == (False, False)
    logits = Combined(terms={"logits": Logits()}, weights={"logits": 1.0})
    assert (logits.outputs_alone, logits.modules(net())) == (True, ())


@pytest.mark.parametrize("parts", [2, 3, 5])
@pytest.mark.parametrize("kind", ["classes", "tokens", "padded", "attention"])
def test_sums_do_not_depend_on_how_a_batch_is_cut(parts, kind):
    n, mask = 5, torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 0, 0]])
    text = {"input_ids": torch.randint(6, (n, 4)), "attention_mask": mask}
    weighted = Classification(classes=6, weights=[1, 2, 3, 4, 5, 6])
    task, batch = {
        "classes": (weighted, {"x": noise(n, 3), "targets": torch.arange(n)}),
        "tokens": (LanguageModelling(), text),
        "padded": (weighted, text | {"targets": torch.arange(n)}),
        "attention": (Classification(classes=6), text | {"targets": torch.arange(n)}),
    }[kind]  # fmt: skip
    outputs, states = (n, 4, 6) if kind == "tokens" else (n, 6), (n, 3) if kind == "classes" else (n, 4, 3)
    columns = {}
    for seed, who in enumerate(("student", "teacher")):
        maps = noise(n, 2, 4, 4, seed=seed).masked_fill(mask[:, None, None] == 0, -1e9).softmax(3)
        columns |= {f"{who} outputs": noise(*outputs, seed=seed), f"{who} x": noise(*states, seed=seed)}
        columns |= {f"{who} maps": maps}
    terms = {"a": Logits(temperature=2.0), "b": Hidden(layers=["x"], measure="relative")}
    terms |= {} if kind == "classes" else {"c": Attention(), "d": Attention(measure="mse")}
    loss = Combined(terms=terms, weights=dict.fromkeys(terms, 1.0))

    def total(part) -> float:
        seen = {name: part[name] for name in batch}
        passes = [
            Pass(part[f"{who} outputs"], {"x": [part[f"{who} x"]]}, (part[f"{who} maps"],))
            for who in ("student", "teacher")
        ]
        return float(loss(*passes, task, seen))

    whole = batch | columns
    assert sum(map(total, chunks(whole, parts))) == pytest.approx(total(whole), rel=1e-6)


@given(st.integers(0, 10_000), st.floats(0.3, 20.0))
def test_it_is_zero_for_the_teacher_itself_and_above_for_others(seed, temperature):
    student, teacher = noise(4, 3, seed=seed), noise(4, 3, seed=seed + 1)
    batch = {"inputs": student, "targets": torch.tensor([0, 1, 2, 1])}
    for task in (Classification(classes=3), Multilabel(labels=3)):
        assert float(logits_loss(student, teacher, task, batch, temperature)) > 0
        assert float(logits_loss(teacher, teacher, task, batch, temperature)) == pytest.approx(0, abs=1e-9)


def test_half_precision_is_summed_in_single():
    student, teacher = noise(400, 3).bfloat16(), noise(400, 3, seed=1)
    batch = {"inputs": student, "targets": torch.zeros(400, dtype=torch.int64)}
    found = logits_loss(student, teacher.float(), Classification(classes=3), batch, 2.0)
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(kl(teacher, student.double(), 2.0).sum(), rel=1e-5)


def test_what_an_example_counts_adds_up_to_the_tasks_count():
    targets = torch.tensor([0, 2, 1])
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    for task, batch in (
        (Classification(classes=3), {"x": noise(3, 2), "targets": targets}),
        (Classification(classes=3, weights=[1, 2, 4]), {"x": noise(3, 2), "targets": targets}),
        (Multilabel(labels=2), {"x": noise(3, 2), "targets": torch.ones(3, 2)}),
        (Regression(), {"x": noise(3, 2), "targets": noise(3)}),
        (LanguageModelling(), {"input_ids": TOKENS, "attention_mask": mask}),
        (Own(), {"x": noise(3, 2)}),
    ):
        counts = example_counts(task, batch)
        assert counts.shape == (3,)
        assert float(counts.sum()) == float(task.count(batch))
    assert example_counts(Classification(classes=3, weights=[1, 2, 4]), {"x": noise(3), "targets": targets})[1] == 4


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Logits(temperature=0), "distillation.temperature=0: give a number above 0"),
        (lambda: Hidden(layers="fc1"), "distillation.layers=fc1: give a list of globs"),
        (lambda: Hidden(layers=[]), r"distillation.layers=\[\]: give a list of globs"),
        (lambda: Hidden(layers=["fc1"], measure="l3"), "distillation.measure=l3: choose mse or relative"),
        (lambda: Hidden(layers=["fc1"]).modules(net()), "distillation.layers: there is no 'fc1': choose 0, 1, 2, 3, 4"),
        (lambda: Attention(layers=[0.5]), r"distillation.layers=\[0.5\]: give a list of numbers"),
        (lambda: Attention(measure="l3"), "distillation.measure=l3: choose kl or mse"),
        (lambda: Combined(terms={}, weights={}), "distillation.weights: are of nothing, and .* of nothing"),
        (lambda: Combined(terms={"a": Logits()}, weights={"b": 1.0}), "weights: are of b, and distillation.terms of a"),
        (lambda: Combined(terms={"a": F.relu}, weights={"a": 1.0}), "terms.a: is a function: give a loss of"),
        (lambda: Combined(terms={"a": Logits()}, weights={"a": 0.0}), "weights.a=0.0: give a factor above 0"),
    ],
)
def test_options_that_mean_nothing_are_refused(make, said):
    with pytest.raises(ConfigurationError, match=said):
        make()


def test_a_module_without_a_tensor_is_refused_by_name():
    class Named(nn.Module):
        def forward(self, inputs):
            return {"x": inputs}

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Named()

        def forward(self, inputs):
            return self.inner(inputs)["x"]

    with pytest.raises(ModelError, match=r"distillation.layers: inner gives a dict, not a tensor"):
        forward(Classification(classes=3), Whole(), {"inputs": noise(2, 3), "targets": torch.zeros(2)}, ["inner"])


def test_the_base_says_nothing_of_its_own():
    with pytest.raises(TypeError, match="abstract method __call__"):
        DistillationLoss()


def test_random_states_are_put_back_and_gradients_are_off():
    before = random.getstate(), np.random.get_state()[1].copy(), torch.random.get_rng_state()
    with undisturbed(torch.device("cpu")):
        random.random(), np.random.rand(), torch.rand(1)
        assert not torch.is_grad_enabled()
    assert random.getstate() == before[0]
    assert (np.random.get_state()[1] == before[1]).all()
    assert torch.equal(torch.random.get_rng_state(), before[2])
