"""Curvature of single examples: networks and losses in which an example is not alone are refused by name."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pruning import Evidence, prunable, scorers
from pruning.errors import ScoreError, ToleranceWarning

SCORERS = (scorers.fisher, scorers.woodfisher, scorers.obd)


class Recurrent(nn.Module):
    """[time, sequences, 4] to [time, sequences, 3]."""

    def __init__(self, kind):
        super().__init__()
        self.hidden, self.output = kind(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.output(self.hidden(x)[0])


class Causal(nn.Module):
    """Each row of a batch knows those before it; or, backwards, those after it."""

    def __init__(self, backwards=False):
        super().__init__()
        self.a, self.b, self.backwards = nn.Linear(4, 5), nn.Linear(5, 3), backwards

    def forward(self, x):
        hidden = torch.tanh(self.a(x))
        return self.b(hidden.flip(0).cumsum(0).flip(0) if self.backwards else hidden.cumsum(0))


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0)

    def forward(self, x):
        return self.layer(x, src_mask=nn.Transformer.generate_square_subsequent_mask(len(x), dtype=x.dtype))[..., :3]


def over_all(model, batch):
    outputs = model(batch[0])
    return F.cross_entropy(outputs.reshape(-1, 3), batch[1].reshape(-1))


def evidence_of(model, batch, loss=over_all, **options):
    model = model.double()
    return Evidence(model, prunable(model), [batch], loss, **options)


@pytest.mark.parametrize("scorer", SCORERS)
@pytest.mark.parametrize(
    "make",
    [
        lambda: Recurrent(nn.RNN),
        lambda: Recurrent(nn.LSTM),
        lambda: Recurrent(nn.GRU),
        Transformer,
        Causal,
        lambda: Causal(backwards=True),
    ],
)
def test_time_first_is_noticed_though_one_row_knows_nothing_of_the_others(scorer, make):
    torch.manual_seed(0)
    rows = (7,) if make in (Causal,) or isinstance(make(), Causal) else (7, 3)
    batch = torch.randn(*rows, 4, dtype=torch.float64), torch.randint(3, rows)
    with pytest.raises(ScoreError, match="put examples first") as caught:
        scorer(evidence_of(make(), batch))
    assert "\n" not in str(caught.value)


def in_batch_negatives(model, batch):
    outputs = model(batch[0])
    return F.cross_entropy(outputs @ batch[2].T, torch.arange(len(outputs)))


def summed(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1], reduction="sum")


def weighted(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1], torch.tensor([1.0, 5.0, 2.0], dtype=torch.float64))


def ignoring(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1].masked_fill(batch[1] == 2, -100))


@pytest.mark.parametrize("scorer", SCORERS)
@pytest.mark.parametrize("loss", [in_batch_negatives, summed, weighted, ignoring])
def test_losses_that_are_no_mean_over_examples_are_refused(scorer, loss):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    targets = torch.tensor([0, 1, 2, 0, 1, 0])
    batch = torch.randn(6, 4, dtype=torch.float64), targets, torch.randn(6, 3, dtype=torch.float64)
    with pytest.raises(ScoreError, match="no mean over its examples") as caught:
        scorer(evidence_of(model, batch, loss))
    assert "count=" in str(caught.value)


def test_an_estimate_that_is_not_as_sure_as_asked_for_warns():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    evidence = evidence_of(model, (torch.randn(20, 4, dtype=torch.float64), torch.randint(3, (20,))))
    with pytest.warns(
        ToleranceWarning, match=r"after 12 probes the standard error is 0\.\d+ of the diagonal, not 0.01"
    ):
        scorers.obd(evidence, "hutchinson", tolerance=0.01, probes=12)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ToleranceWarning)
        scorers.obd(evidence, "hutchinson", tolerance=10.0, probes=12)


def test_what_is_no_evidence_is_refused_in_one_line():
    model = nn.Linear(4, 3)
    with pytest.raises(ScoreError, match=r"generator, not name → parameter: give prunable\(model\)"):
        Evidence(model, model.parameters())
    with pytest.raises(ScoreError, match=r"magnitude: scores an Evidence, this is Linear"):
        scorers.magnitude(model)
