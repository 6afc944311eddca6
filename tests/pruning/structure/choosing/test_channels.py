"""Channels: scores of units against brute force, minimum and multiple, budgets; on any scorer and allocation."""

import itertools
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pruning import Evidence, Masks, prunable, prune, scorers
from pruning.allocation import ERK, Densities, Global, Rates, Uniform
from pruning.errors import AllocationError, CoverageWarning, GranularityError, ScoreError
from pruning.structure import Budget, Channels, remove, trace, verify
from pruning.structure.choosing.channels import pool
from pruning.structure.choosing.latency import LatencyTable
from tests.pruning.structure.masking import masks_of
from tests.pruning.structure.zoo import build

NETWORKS = ("residual", "grouped", "depthwise", "attention", "tied embedding", "LSTM", "channels last")


def random_scores(model, seed, signed=True):
    generator = torch.Generator().manual_seed(seed)
    found = {name: torch.randn(p.shape, generator=generator) for name, p in prunable(model).items()}
    return found if signed else {name: score.abs() for name, score in found.items()}


def entries(structure, scores, within, unit):
    """All living scored weights in any slice of a unit, each once."""
    found = []
    for name, score in scores.items():
        for place in itertools.product(*(range(size) for size in score.shape)):
            inside = any(
                axis is not None and axis[i] == unit for axis, i in zip(structure.axes[name], place, strict=True)
            )
            if inside and (within is None or within[name][place]):
                found.append(float(score[place]))
    return np.array(found)


POOLED = {
    "sum": np.sum,
    "mean": np.mean,
    "max": np.max,
    "l2": lambda x: np.sqrt((x**2).sum()),
    "joint": lambda x: abs(x.sum()),
}


@pytest.mark.parametrize("pooling", POOLED)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_unit_s_score_is_of_all_its_weights_each_once(name, pooling):
    model, inputs = build(name)
    structure = trace(model, inputs)
    scores = random_scores(model, 1, signed=pooling != "l2")
    within = {n: torch.rand(s.shape, generator=torch.Generator().manual_seed(2)) < 0.7 for n, s in scores.items()}
    for alive in (None, within):
        found, lives = pool(structure, scores, alive, pooling)
        for unit in range(structure.size):
            expected = entries(structure, scores, alive, unit)
            assert bool(lives[unit]) == bool(len(expected))
            assert float(found[unit]) == pytest.approx(POOLED[pooling](expected) if len(expected) else 0.0, abs=1e-6)


def kept_of(structure, masks, family):
    """How many units of a family the masks keep: any of their weights is there."""
    kept = np.zeros(structure.size, bool)
    for name, mask in masks.items():
        for dim, units in enumerate(structure.axes[name]):
            if units is not None and (name, dim) not in structure.unmasked:
                alive = mask.movedim(dim, 0).flatten(1).any(1).numpy() if mask.dim() > 1 else mask.numpy()
                kept[units[(units >= 0) & alive]] = True
    return int(kept[family.units].sum())


@given(
    name=st.sampled_from(NETWORKS),
    density=st.floats(0.3, 1.0),
    seed=st.integers(0, 5),
    pooling=st.sampled_from(["sum", "mean", "max", "joint"]),
    normalise=st.sampled_from([None, "mean", "max", "l2"]),
)
@settings(max_examples=30, deadline=None)
def test_counts_are_exact_and_the_best_stay(name, density, seed, pooling, normalise):
    model, inputs = build(name)
    structure = trace(model, inputs)
    scores = random_scores(model, seed)
    masks = prune(scores, density, Channels(structure, pooling=pooling, normalise=normalise))
    counts = [kept_of(structure, masks, family) for family in structure.families]
    assert sum(counts) == max(round(density * structure.size), len(structure.families))
    small = remove(model, masks, structure)
    assert verify(model, masks, small, inputs) <= 1e-5


def test_the_units_that_stay_are_the_highest_scored():
    model, inputs = build("flatten")
    structure = trace(model, inputs)
    scores = random_scores(model, 3)
    total, _ = pool(structure, scores, None, "sum")
    masks = prune(scores, 0.5, Channels(structure))
    kept = [u for u in range(structure.size) if kept_of_unit(structure, masks, u)]
    assert set(kept) == set(torch.argsort(total, descending=True)[: len(kept)].tolist())


def kept_of_unit(structure, masks, unit):
    return any(
        masks[name].movedim(dim, 0)[torch.from_numpy(axis == unit)].any()
        for name in masks
        for dim, axis in enumerate(structure.axes[name])
        if axis is not None and (axis == unit).any()
    )


@pytest.mark.parametrize("multiple", [2, 3, 4, 5])
def test_families_keep_multiples_and_their_minimum(multiple):
    model, inputs = build("residual")
    structure = trace(model, inputs)
    scores = random_scores(model, 0)
    for density in (0.7, 0.85, 1.0):
        masks = prune(scores, density, Channels(structure, multiple_of=multiple))
        for family in structure.families:
            count = kept_of(structure, masks, family)
            assert count % multiple == 0 or count == family.size
        remove(model, masks, structure)
    masks = prune(scores, 0.5, Channels(structure, minimum={"conv1": 3}))
    assert kept_of(structure, masks, structure.families[1]) >= 3
    assert [family.name for family in structure.families] == ["stem", "conv1"]
    masks = prune(scores, 0.5, Channels(structure, exclude="stem"))
    assert [kept_of(structure, masks, family) for family in structure.families] == [6, 2]


@pytest.mark.parametrize(
    "allocation",
    [Global(), Global(minimum=2), Uniform(), ERK(), Densities({"conv1": 0.5, "*": 0.9}), Rates(0.3)],
    ids=repr,
)
def test_every_allocation_works_in_rounds(allocation):
    model, inputs = build("residual")
    structure = trace(model, inputs)
    within = None
    for density in (0.8, 0.6, 0.5):
        scores = random_scores(model, 0)
        asked = None if isinstance(allocation, Rates) else density
        masks = prune(scores, asked, Channels(structure), allocation, within)
        if within is not None:
            assert all(bool((within[name] | ~mask).all()) for name, mask in masks.items())
        remove(model, masks, structure)
        within = masks


def test_units_are_removed_everywhere():
    model, inputs = build("residual")
    structure = trace(model, inputs)
    masks = prune(random_scores(model, 0), 0.5, Channels(structure))
    assert set(masks) >= {"stem.weight", "stem.bias", "norm.weight", "norm.bias", "head.weight", "conv2.weight"}
    masks.apply_(model)
    seen = {}
    hooks = [m.register_forward_hook(lambda m, _, out: seen.setdefault(m, out)) for m in (model.norm, model.norm1)]
    model(inputs)
    for hook in hooks:
        hook.remove()
    assert torch.equal(
        seen[model.norm][:, ~masks["norm.weight"]], torch.zeros_like(seen[model.norm])[:, ~masks["norm.weight"]]
    )
    assert bool((~masks["norm.weight"]).any())


def test_unstructured_masks_may_follow_structured_ones():
    model, inputs = build("residual")
    structure = trace(model, inputs)
    scores = random_scores(model, 0)
    channels = prune(scores, 0.6, Channels(structure))
    masks = prune(scores, 0.1, within=channels)
    assert set(masks) == set(channels)
    assert torch.equal(masks["norm.bias"], channels["norm.bias"])
    small = remove(model, masks, structure)
    assert verify(model, masks, small, inputs) <= 1e-5
    assert sum(int((p != 0).sum()) for n, p in small.named_parameters() if n in scores) == sum(
        int(masks[n].sum()) for n in scores
    )


def brute_budget(structure, order, of, density):
    """The longest run of the best units that fits."""
    reserved = [next(u for u in order if f.first <= u < f.units.stop) for f in structure.families]
    rest = [u for u in order if u not in reserved]
    best = None
    for count in range(len(rest) + 1):
        kept = np.zeros(structure.size, bool)
        kept[[*reserved, *rest[:count]]] = True
        if structure.cost(of, kept) <= density * structure.cost(of):
            best = kept
    return best


@pytest.mark.parametrize("of", ["parameters", "macs"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_budget_is_met_within_one_unit(name, of):
    model, inputs = build(name)
    structure = trace(model, inputs)
    scores = random_scores(model, 4)
    total, _ = pool(structure, scores, None, "sum")
    order = torch.argsort(total, descending=True, stable=True).tolist()
    for density in (0.6, 0.8, 1.0):
        expected = brute_budget(structure, order, of, density)
        if expected is None:
            with pytest.raises(AllocationError, match="cannot go"):
                prune(scores, density, Channels(structure), Budget(structure, of))
            continue
        masks = prune(scores, density, Channels(structure), Budget(structure, of))
        assert masks == prune_like(structure, scores, expected)
        small = remove(model, masks, structure)
        if of == "parameters":
            assert sum(p.numel() for p in small.parameters()) <= density * sum(p.numel() for p in model.parameters())


def prune_like(structure, scores, kept):
    dense = {name: torch.ones(score.shape, dtype=torch.bool) for name, score in scores.items()}
    return Masks(dense | dict(masks_of(structure, kept)))


def test_a_table_of_times_is_a_budget_too():
    model, inputs = build("flatten")
    structure = trace(model, inputs)
    table = LatencyTable(structure, 10.0, ((1, 3, 5), (1, 3, 6)), ((6.0, 4.0, 0.0), (3.0, 1.5, 0.0)), 1)
    scores = random_scores(model, 0)
    for density in (0.3, 0.5, 0.9):
        masks = prune(scores, density, Channels(structure), Budget(structure, table))
        counts = [kept_of(structure, masks, family) for family in structure.families]
        spent = 10 - np.interp(counts[0], (1, 3, 5), (6, 4, 0)) - np.interp(counts[1], (1, 3, 6), (3, 1.5, 0))
        assert spent <= density * 10


@pytest.mark.parametrize(
    "scorer",
    ["magnitude", "lamp", "taylor", "snip", "grasp", "synflow", "obd", "fisher", "wanda", "random", "gradient"],
)
def test_every_scorer_prunes_channels(scorer):
    model, inputs = build("residual")
    structure = trace(model, inputs)
    targets = torch.tensor([0, 2])
    loss = lambda m, batch: nn.functional.cross_entropy(m(batch[0]), batch[1])  # noqa: E731
    evidence = Evidence(model, prunable(model), [(inputs, targets)], loss)
    masks = prune(getattr(scorers, scorer)(evidence), 0.5, Channels(structure))
    assert verify(model, masks, remove(model, masks, structure), inputs) <= 1e-5


def chain(width=8, depth=3):
    torch.manual_seed(0)
    layers = [nn.Linear(4, width), nn.ReLU()]
    for _ in range(depth - 1):
        layers += [nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 2)), torch.randn(2, 4)


@pytest.mark.parametrize("density", [0.25, 0.6, 1.0])
@pytest.mark.parametrize("how", ["frozen", "excluded", "weight_norm"])
@pytest.mark.parametrize("allocation", [Global(), Uniform(), ERK()], ids=repr)
def test_families_that_nobody_scored_stay_whole_and_do_not_count(how, density, allocation):
    model, inputs = chain()
    options = {}
    if how == "frozen":
        for layer in (model[0], model[2]):
            layer.requires_grad_(False)
    elif how == "excluded":
        options = {"exclude": ["0.*", "2.*"]}
    else:
        for layer in (model[0], model[2]):
            nn.utils.parametrizations.weight_norm(layer)
    structure = trace(model, inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CoverageWarning)
        parameters = prunable(model, **options)
    scores = scorers.magnitude(Evidence(model, parameters))
    masks = prune(scores, density, Channels(structure), allocation)
    counts = [kept_of(structure, masks, family) for family in structure.families]
    scored = [any(name in scores for name, _ in family.members) for family in structure.families]
    assert False in scored
    assert [count for count, one in zip(counts, scored, strict=True) if not one] == [8] * scored.count(False)
    kept = sum(count for count, one in zip(counts, scored, strict=True) if one)
    assert kept == round(density * 8) * scored.count(True)
    small = remove(model, masks, structure)
    assert verify(model, masks, small, inputs) <= 1e-5
    again = prune(scores, density / 2, Channels(structure), allocation, masks)
    for family in (f for f, one in zip(structure.families, scored, strict=True) if not one):
        assert kept_of(structure, again, family) == 8


def test_budgets_count_families_that_nobody_scored_as_they_are():
    model, inputs = chain()
    model[0].requires_grad_(False)
    model[2].requires_grad_(False)
    structure = trace(model, inputs)
    masks = prune(scorers.magnitude(Evidence(model, prunable(model))), 0.7, Channels(structure), Budget(structure))
    assert kept_of(structure, masks, structure.families[0]) == 8
    small = remove(model, masks, structure)
    assert small[0].out_features == 8
    left = sum(layer.weight.numel() for layer in small if isinstance(layer, nn.Linear))
    assert left <= 0.7 * sum(layer.weight.numel() for layer in model if isinstance(layer, nn.Linear))


def test_channels_of_nothing_that_was_scored_are_refused():
    model, inputs = chain(depth=1)
    model.append(nn.Linear(2, 2))
    structure = trace(model, inputs)
    frozen = {"3.weight": torch.ones(2, 2)}
    with pytest.raises(GranularityError, match=r"no weight of any family \(0, …\) was scored") as caught:
        prune(frozen, 0.5, Channels(structure, exclude="2"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"pooling": "median"}, "pooling"),
        ({"normalise": "sum"}, "normalise"),
        ({"exclude": "conv9"}, "matches no family"),
        ({"minimum": {"conv9": 2}}, "matches no family"),
        ({"minimum": 0}, "minimum=0"),
        ({"multiple_of": 2.5}, "multiple_of=2.5"),
        ({"exclude": "*"}, "no family of units is left"),
    ],
    ids=str,
)
def test_options_that_do_not_exist_are_refused(options, said):
    model, inputs = build("residual")
    with pytest.raises(GranularityError, match=said):
        Channels(trace(model, inputs), **options)


def test_scores_that_do_not_fit_are_refused():
    model, inputs = build("residual")
    structure = trace(model, inputs)
    with pytest.raises(GranularityError, match="other: no tensor of this name"):
        prune({"other": torch.ones(3, 3)}, 0.5, Channels(structure))
    with pytest.raises(GranularityError, match="pooling=l2 loses the sign"):
        prune(random_scores(model, 0), 0.5, Channels(structure, pooling="l2"))
    with pytest.raises(ScoreError, match="NaN"):
        prune({name: s * torch.nan for name, s in random_scores(model, 0).items()}, 0.5, Channels(structure))
    with pytest.raises(AllocationError, match="Budget"):
        Budget(structure, "flops")
    with pytest.raises(AllocationError, match="traced structure"):
        prune(random_scores(model, 0), 0.5, allocation=Budget(structure))
