"""Losses that are means over something else than examples: how the data are cut into batches changes no score."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pruning import Evidence, prunable, scorers
from pruning.curvature import block_hessian, full_hessian, layer_hessian
from pruning.curvature.cotangents import cotangents
from pruning.curvature.examples import mean_squares
from pruning.errors import ScoreError

IGNORED = -100
CLASSES = torch.tensor([0.5, 2.0, 3.5], dtype=torch.float64)


class Tagger(nn.Module):
    """Tokens [n, 5] to logits [n, 5, 3]."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.hidden, self.output = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, tokens):
        return self.output(torch.tanh(self.hidden(self.embedding(tokens))))


def token_loss(model, batch):
    """Over the labels that are not ignored, by the weights of their classes: sequences are padded."""
    return F.cross_entropy(model(batch["tokens"]).flatten(0, 1), batch["labels"].flatten(), CLASSES)


def token_count(batch):
    labels = batch["labels"][batch["labels"] != IGNORED]
    return CLASSES[labels].sum()


def class_loss(model, batch):
    return F.cross_entropy(model(batch["inputs"]), batch["targets"], CLASSES)


def class_count(batch):
    return CLASSES[batch["targets"]].sum()


@pytest.fixture
def tagging():
    torch.manual_seed(0)
    model = Tagger().double()
    tokens = torch.randint(7, (9, 5))
    labels = torch.randint(3, (9, 5))
    for sequence, length in enumerate((5, 1, 3, 4, 2, 5, 0, 1, 2)):  # one without any label
        labels[sequence, length:] = IGNORED
    return model, {"tokens": tokens, "labels": labels}, token_loss, token_count


@pytest.fixture
def weighted():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    data = {"inputs": torch.randn(9, 4, dtype=torch.float64), "targets": torch.randint(3, (9,))}
    return model, data, class_loss, class_count


def evidence_of(case, sizes):
    model, data, loss, count = case
    parts = {name: column.split(sizes) for name, column in data.items()}
    batches = [dict(zip(parts, part, strict=True)) for part in zip(*parts.values(), strict=True)]
    return Evidence(model, prunable(model), batches, loss, count=count)


BY_DATA = {
    "taylor": scorers.taylor,
    "snip": scorers.snip,
    "gradient": scorers.gradient,
    "grasp": scorers.grasp,
    "wanda": scorers.wanda,
    "fisher": scorers.fisher,
    "woodfisher": scorers.woodfisher,
    "obd": scorers.obd,
    "obd by Fisher": partial(scorers.obd, curvature="empirical_fisher"),
    "obs by layer": partial(scorers.obs, hessian=layer_hessian),
    "obs of the whole": partial(scorers.obs, hessian=partial(full_hessian, damping=1e-3)),
}


@pytest.mark.parametrize("name", BY_DATA)
@pytest.mark.parametrize("case", ["tagging", "weighted"])
def test_scores_do_not_depend_on_how_the_data_are_cut(name, case, request):
    case = request.getfixturevalue(case)
    whole = BY_DATA[name](evidence_of(case, [9]))
    for sizes in ([3, 4, 2], [2, 5, 2], [1, 8]):
        found = BY_DATA[name](evidence_of(case, sizes))
        for key, scores in whole.items():
            assert scores.any(), key
            torch.testing.assert_close(found[key].double(), scores.double(), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("curvature", ["empirical_fisher", "gauss_newton", "true_fisher"])
def test_an_example_of_weight_three_counts_as_three_of_weight_one(curvature):
    """The definition of a weight, by repetition."""
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    inputs, targets = torch.randn(6, 4, dtype=torch.float64), torch.randint(3, (6,))
    times = torch.tensor([1, 3, 2, 0, 1, 2])

    def mean(model, batch):
        losses = F.cross_entropy(model(batch[0]), batch[1], reduction="none")
        return (losses * batch[2]).sum() / batch[2].sum()

    weighted = Evidence(
        model, prunable(model), [(inputs, targets, times.double())], mean, count=lambda batch: batch[2].sum()
    )
    again = torch.arange(6).repeat_interleave(times)
    repeated = Evidence(
        model, prunable(model), [(inputs[again], targets[again])], lambda m, b: F.cross_entropy(m(b[0]), b[1])
    )
    for method in (
        lambda evidence: mean_squares(evidence, cotangents(curvature)),
        partial(scorers.obs, hessian=partial(full_hessian, curvature=curvature)),
        partial(scorers.obs, hessian=partial(block_hessian, curvature=curvature, size=4)),
    ):
        found, wanted = method(weighted), method(repeated)
        for name, scores in wanted.items():
            torch.testing.assert_close(found[name], scores, rtol=1e-9, atol=1e-14)


def test_fisher_counts_sequences_by_their_labels(tagging):
    """Σ c_n·(∂L_n/∂w)² / Σ c_n by a loop, L_n the loss of sequence n alone."""
    model, data, loss, count = tagging
    found = scorers.fisher(evidence_of(tagging, [4, 5]))
    parameters = prunable(model)
    total, wanted = 0.0, {name: torch.zeros_like(p) for name, p in parameters.items()}
    for n in range(9):
        one = {name: column[n : n + 1] for name, column in data.items()}
        weight = float(count(one))
        if weight:
            total += weight
            gradients = torch.autograd.grad(loss(model, one), list(parameters.values()))
            for name, gradient in zip(wanted, gradients, strict=True):
                wanted[name] += weight * gradient.square()
    for name, squares in wanted.items():
        torch.testing.assert_close(found[name].double(), squares / total, rtol=1e-10, atol=1e-14)


def test_a_count_that_is_no_sum_over_examples_is_refused(weighted):
    model, data, loss, _ = weighted
    evidence = Evidence(model, prunable(model), [data], loss, count=lambda batch: 7.0)
    with pytest.raises(ScoreError, match="gives 7 for a batch, and 63 for its examples"):
        scorers.fisher(evidence)
