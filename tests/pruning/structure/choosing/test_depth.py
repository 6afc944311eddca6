"""Whole blocks: which are found, how they are scored and removed, and that nothing else changes."""

import pytest
import torch

from pruning import Evidence, Masks, prunable, prune, scorers
from pruning.errors import GranularityError
from pruning.structure import Channels, Depth, Skip, find_blocks, load, remove, save, trace, verify
from tests.pruning.structure.blocks import BLOCKS, Deep, deep


@pytest.mark.parametrize("density", [0.75, 0.5, 0.25])
def test_the_lowest_scored_blocks_go(density):
    model, inputs = deep()
    structure = trace(model, inputs)
    scores = scorers.magnitude(Evidence(model, prunable(model)))
    masks = prune(scores, density, Depth(model, find_blocks(model, inputs)))
    means = [
        torch.cat([s.flatten() for name, s in scores.items() if name.startswith(f"{block}.")]).mean()
        for block in BLOCKS
    ]
    kept = {BLOCKS[i] for i in torch.stack(means).argsort(descending=True)[: round(4 * density)].tolist()}
    small = remove(model, masks, structure)
    assert {name for name in BLOCKS if not isinstance(small.get_submodule(name), Skip)} == kept
    assert verify(model, masks, small, inputs) <= 1e-5
    assert type(small) is Deep
    left = sum(
        p.numel() for name, p in model.named_parameters() if not any(name.startswith(b) for b in set(BLOCKS) - kept)
    )
    assert sum(p.numel() for p in small.parameters()) == left


def test_depth_and_width_go_together_and_are_saved(tmp_path):
    model, inputs = deep()
    structure = trace(model, inputs)
    scores = scorers.magnitude(Evidence(model, prunable(model)))
    depth = prune(scores, 0.5, Depth(model, BLOCKS))
    masks = prune(scores, 0.4, Channels(structure, exclude=_gone(structure, depth)), within=_everywhere(model, depth))
    small = remove(model, masks, structure)
    assert verify(model, masks, small, inputs) <= 1e-5
    assert sum(isinstance(m, Skip) for m in small.modules()) == 2
    save(small, tmp_path / "small.safetensors")
    read = load(tmp_path / "small.safetensors", Deep().eval())
    assert verify(model, masks, read, inputs) <= 1e-5


def _gone(structure, masks):
    """Families that lie in removed blocks."""
    return tuple(
        f.name for f in structure.families if f.name + ".weight" in masks and not masks[f.name + ".weight"].any()
    )


def _everywhere(model, masks):
    return Masks.dense(dict(model.named_parameters())) & _filled(model, masks)


def _filled(model, masks):
    return Masks(dict(Masks.dense(dict(model.named_parameters()))) | dict(masks))


@pytest.mark.parametrize(
    ("blocks", "options", "said"),
    [((), {}, "no blocks"), (("blocks.9",), {}, "is no module"), (BLOCKS, {"pooling": "max"}, "pooling")],
)
def test_what_is_no_block_is_refused(blocks, options, said):
    with pytest.raises(GranularityError, match=said):
        Depth(deep()[0], blocks, **options)
