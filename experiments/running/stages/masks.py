"""Masks of a density, by scores, granularity and allocation; and shuffled masks, to compare with."""

from collections.abc import Mapping
from pathlib import Path

import torch

from experiments.running.setting import Setting
from experiments.running.stages.scoring import SCORED, Scoring, divergence_named
from experiments.runtime.seeding import generator
from experiments.store.identity import EXECUTION, STRUCTURE, code
from experiments.store.networks import MASKS, Network
from pruning import Masks
from pruning import prune as selected
from pruning.granularity import Granularity
from pruning.layouts import LaidOut, Layout, layouts


def prune(setting: Setting, network: Network, density: float | None, scoring: Scoring) -> Network:
    """`network` with masks of `density`, within those it has. `scoring` is `stages.score`, which may be remembered."""
    setting = setting.only(*SCORED, "granularity", "allocation", after=network.fields)
    identity = {"from": network.key, "density": density} | _code(setting)

    def make(folder: Path) -> None:
        within = network.load_masks()
        with divergence_named(network):
            masks = selected(scoring(network), density, setting.granularity, setting.allocation, within=within)
        masks.to("cpu").save(folder / MASKS)

    return Network(network.weights, setting.obtain("masks", identity, make))


def shuffle(setting: Setting, network: Network, control: str) -> Network:
    """`network` with its masks shuffled inside each tensor or family of channels, otherwise for each `control`."""
    assert network.masks is not None
    setting = setting.only("seed", "granularity", "model", "task", "data.load")
    identity = {"from": network.masks.key, "control": control} | _code(setting)

    def make(folder: Path) -> None:
        masks = network.load_masks()
        assert masks is not None
        noise = generator(setting.config.seed, control, masks.kept)
        model = setting.new_model()
        known = layouts(model, dict(model.named_parameters()))
        shuffled(masks, setting.granularity, noise, known).save(folder / MASKS)

    return Network(network.weights, setting.obtain("masks", identity, make))


def shuffled(
    masks: Masks, granularity: Granularity, noise: torch.Generator, known: Mapping[str, Layout] | None = None
) -> Masks:
    """Masks with the same number of kept units in every tensor, or family of channels, at random places.

    `known` are the layouts of weights that have another than the standard one.
    """
    pooled = granularity.gather(LaidOut({name: mask.float() for name, mask in masks.items()}, known or {}), masks)
    found = {}
    for name, unit in pooled.units.items():
        assert unit.alive is not None
        kept = unit.alive.reshape(-1)
        order = torch.randperm(kept.numel(), generator=noise)
        found[name] = kept[order].view(unit.alive.shape)
    return Masks(pooled.expand(found))


def _code(setting: Setting) -> dict[str, str]:
    return code(__name__, without=EXECUTION if setting.structured else (*EXECUTION, *STRUCTURE))
