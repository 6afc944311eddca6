"""Families of one kind keep the same number of units: against brute force, in rounds, with budgets."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from pruning import Masks, prunable, prune
from pruning.allocation import ERK, Densities, Global, Uniform
from pruning.errors import AllocationError, GranularityError
from pruning.structure import Budget, Channels, remove, trace, verify
from pruning.structure.choosing.alike import kinds
from pruning.structure.choosing.channels import pool
from tests.pruning.structure.masking import masks_of


class Block(nn.Module):
    def __init__(self, heads, inner):
        super().__init__()
        self.heads, self.norm1, self.norm2 = heads, nn.LayerNorm(6), nn.LayerNorm(6)
        self.qkv, self.out = nn.Linear(6, 3 * heads * 2), nn.Linear(heads * 2, 6)
        self.up, self.down = nn.Linear(6, inner), nn.Linear(inner, 6)

    def forward(self, x):
        q, k, v = self.qkv(self.norm1(x)).view(*x.shape[:2], 3, -1, 2).permute(2, 0, 3, 1, 4)
        x = x + self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(self.up(self.norm2(x)).relu())


class Stacks(nn.Module):
    """Two stacks of `depths` layers; the last one's are wider if `unlike`."""

    def __init__(self, depths=(2, 1), unlike=False):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.ModuleList([Block(3, 5) for _ in range(depths[0])])
        self.decoder = nn.ModuleList([Block(3, 7 if unlike else 5) for _ in range(depths[1])])
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        for block in (*self.encoder, *self.decoder):
            x = block(x)
        return self.head(x)


def built(*args):
    model, inputs = Stacks(*args), torch.randn(2, 3, 6)
    return model, inputs, trace(model, inputs)


def random_scores(model, seed):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(p.shape, generator=generator) for name, p in prunable(model).items()}


def counts_of(structure, masks):
    """Family name → units of which any weight is left."""
    kept = np.zeros(structure.size, bool)
    for name, mask in masks.items():
        for dim, units in enumerate(structure.axes[name]):
            if units is not None:
                alive = mask.movedim(dim, 0).flatten(1).any(1).numpy() if mask.dim() > 1 else mask.numpy()
                kept[units[(units >= 0) & alive]] = True
    return {family.name: int(kept[family.units].sum()) for family in structure.families}, kept


def brute(structure, groups, total, density, minimum=1):
    """Of all numbers for each kind, in which no rank goes that is better than one that stays, those nearest to the
    density; [units]."""
    ranks = [
        torch.stack([total[f.units].sort(descending=True).values for f in group]).mean(0).tolist() for group in groups
    ]
    weights = [len(group) for group in groups]
    each = weights[0] if len(set(weights)) == 1 else 1  # where all bundles are of one size, these are counted
    asked = each * round(density * structure.size / each)
    found = []
    for numbers in itertools.product(*(range(minimum, len(own) + 1) for own in ranks)):
        stays = [score for own, k in zip(ranks, numbers, strict=True) for score in own[minimum:k]]
        goes = [score for own, k in zip(ranks, numbers, strict=True) for score in own[k:]]
        if not stays or not goes or min(stays) > max(goes):
            kept = sum(k * weight for k, weight in zip(numbers, weights, strict=True))
            found.append((abs(kept - asked), sum(numbers), numbers))
    kept = np.zeros(structure.size, bool)
    for group, number in zip(groups, min(found)[2], strict=True):
        for family in group:
            best = total[family.units].argsort(descending=True)[:number]
            kept[family.first + best.numpy()] = True
    return kept


@given(
    density=st.floats(0.3, 1.0),
    seed=st.integers(0, 50),
    depths=st.sampled_from([(2, 1), (3, 3), (1, 3), (2, 2)]),
    unlike=st.booleans(),
    equal=st.sampled_from([True, ("*qkv", "encoder*up", "decoder*up"), "*qkv"]),
    pooling=st.sampled_from(["sum", "mean", "max"]),
)
@example(density=0.75, seed=0, depths=(3, 3), unlike=True, equal=True, pooling="sum")  # between two bundles
@settings(max_examples=15, deadline=None)
def test_what_stays_is_what_brute_force_finds(density, seed, depths, unlike, equal, pooling):
    model, inputs, structure = built(depths, unlike)
    scores = random_scores(model, seed)
    channels = Channels(structure, pooling=pooling, equal=equal)
    masks = prune(scores, density, channels)
    counts, kept = counts_of(structure, masks)
    pattern = (lambda n: "qkv" if "qkv" in n else n.split(".")[0]) if equal is not True else None
    groups = {}
    for family in structure.families:
        where = family.name.split(".")
        groups.setdefault(pattern(family.name) if pattern else (where[0], where[2]), []).append(family)
    groups = list(groups.values())
    assert [len({counts[f.name] for f in group}) for group in groups] == [1] * len(groups)
    total, _ = pool(structure, scores, None, pooling)
    assert np.array_equal(kept, brute(structure, groups, total, density))
    if len({len(group) for group in groups}) == 1:  # no whole bundle comes closer
        assert abs(kept.sum() - density * structure.size) <= len(groups[0]) / 2 + 1e-6
    assert verify(model, masks, remove(model, masks, structure), inputs) <= 1e-5


def test_kinds_are_layers_of_one_stack_of_one_size_coupled_alike():
    structure = built((3, 2), True)[2]
    names = [[family.name for family in alike] for alike in kinds(structure.families, True)]
    assert names == [
        [f"encoder.{i}.qkv" for i in range(3)],
        [f"encoder.{i}.up" for i in range(3)],
        [f"decoder.{i}.qkv" for i in range(2)],
        [f"decoder.{i}.up" for i in range(2)],
    ]
    assert all(len(alike) == 1 for alike in kinds(structure.families, False))
    assert [len(alike) for alike in kinds(structure.families, ("*qkv",))] == [5, 3, 2]
    with pytest.raises(GranularityError, match=r"equal='\*up': encoder.0.up has 5 units, decoder.0.up 7: give one"):
        Channels(structure, equal="*up")
    with pytest.raises(GranularityError, match="matches no family"):
        Channels(structure, equal="*nothing")


def test_layers_of_one_name_that_are_coupled_otherwise_are_of_another_kind():
    class Shared(Stacks):
        """The first layer's inner units are read by a head, too."""

        def __init__(self):
            super().__init__((3, 1))
            self.other = nn.Linear(5, 2)

        def forward(self, x):
            first = self.encoder[0]
            return super().forward(x) + self.other(first.up(first.norm2(x)).relu())

    model, inputs = Shared(), torch.randn(2, 3, 6)
    ups = [
        [family.name for family in alike]
        for alike in kinds(trace(model, inputs).families, True)
        if alike[0].name.endswith("up")
    ]
    assert ups == [["encoder.0.up"], ["encoder.1.up", "encoder.2.up"], ["decoder.0.up"]]


@pytest.mark.parametrize("multiple", [1, 2, 3])
@pytest.mark.parametrize("allocation", [Global(), Global(minimum=2), Uniform(), ERK(), Densities({"*": 0.6})], ids=repr)
def test_counts_are_equal_in_rounds_with_every_allocation(allocation, multiple):
    model, _, structure = built((3, 2))
    channels = Channels(structure, equal=True, multiple_of=multiple)
    if allocation == Global(minimum=2) and multiple > 1:
        with pytest.raises(AllocationError, match="at most 40 are alive"):  # two bundles of each are all
            prune(random_scores(model, 0), 0.6, channels, Global(minimum=3))
        return
    within, before = None, structure.size
    for density, seed in ((0.9, 0), (0.75, 1), (0.6 if multiple < 3 else 0.75, 2)):  # of 3 and 5, 3 stay at least
        masks = prune(random_scores(model, seed), density, channels, allocation, within)
        counts, kept = counts_of(structure, masks)
        for alike in kinds(structure.families, True):
            found = {counts[family.name] for family in alike}
            assert len(found) == 1
            assert min(found) >= min(max(allocation.minimum, 1) * multiple, alike[0].size)
            assert min(found) % multiple == 0 or found == {alike[0].size}
        assert kept.sum() <= before
        if within is not None:
            assert all(bool((within[name] | ~mask).all()) for name, mask in masks.items())
        remove(model, masks, structure)
        within, before = masks, kept.sum()


def test_units_that_were_removed_unequally_before_leave_equal_ones():
    model, _, structure = built((3, 1))
    alive = np.ones(structure.size, bool)
    alive[structure.families[1].units][:2] = False  # of encoder.0.up
    alive[structure.families[1].first : structure.families[1].first + 2] = False
    within = dict(Masks.dense(dict(model.named_parameters()))) | dict(masks_of(structure, alive))
    masks = prune(random_scores(model, 0), 0.75, Channels(structure, equal=True), within=within)
    counts, kept = counts_of(structure, masks)
    assert counts["encoder.0.up"] == counts["encoder.1.up"] == counts["encoder.2.up"] <= 3
    assert not (kept & ~alive).any()


@pytest.mark.parametrize("of", ["parameters", "macs"])
def test_a_budget_is_met_within_one_bundle(of):
    model, _, structure = built((2, 1))
    scores = random_scores(model, 1)
    for density in (0.6, 0.75, 0.9):
        masks = prune(scores, density, Channels(structure, equal=True), Budget(structure, of))
        counts, kept = counts_of(structure, masks)
        groups = kinds(structure.families, True)
        assert all(len({counts[f.name] for f in alike}) == 1 for alike in groups)
        allowed = density * structure.cost(of)
        assert structure.cost(of, kept) <= allowed
        total, _ = pool(structure, scores, None, "sum")
        ranks = {
            alike[0].name: torch.stack([total[f.units].sort(descending=True).values for f in alike]).mean(0)
            for alike in groups
        }
        best = max(
            (float(ranks[alike[0].name][counts[alike[0].name]]), i)
            for i, alike in enumerate(groups)
            if counts[alike[0].name] < alike[0].size
        )
        for family in groups[best[1]]:  # the next bundle would not fit
            rest = total[family.units].masked_fill(torch.from_numpy(kept[family.units]), -torch.inf)
            kept[family.first + int(rest.argmax())] = True
        assert structure.cost(of, kept) > allowed


def test_a_density_below_what_must_stay_is_refused():
    model, _, structure = built((3, 1))
    with pytest.raises(AllocationError, match="at least 8 stay"):
        prune(random_scores(model, 0), 0.05, Channels(structure, equal=True))
