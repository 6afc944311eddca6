"""Masks and weights block by block: each is scored, pruned and compensated with what the pruned ones before it give."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor, nn

from experiments.configuration.targets import instantiate, short_name
from experiments.data.examples import take
from experiments.running.conditions import conditions
from experiments.running.setting import Setting
from experiments.running.stages.scoring import SCORED, Scoring, check_scores, divergence_named, seen_batches
from experiments.runtime.seeding import seeded
from experiments.store.identity import EXECUTION, STRUCTURE, code
from experiments.store.networks import MASKS, Network, load, save
from pruning import Evidence, Masks
from pruning import prune as selected
from pruning.errors import ConfigurationError, ScoreError, SequenceError
from pruning.evidence import with_layouts
from pruning.owl import OWL, owl_densities
from pruning.sequential import blocks, sequentially


def prune_blocks(setting: Setting, network: Network, density: float | None, scoring: Scoring) -> Network:
    """`network` pruned to `density` block by block, within its masks, and compensated where that is configured.

    `scoring` is `stages.score`, which OWL asks for the scores of the whole network.
    """
    setting = setting.only(*SCORED, "granularity", "allocation", "calibration", "compensate", after=network.fields)
    identity = {"from": network.key, "density": density} | code(__name__, without=(*EXECUTION, *STRUCTURE))

    def make(folder: Path) -> None:
        model = load(setting.new_model(), network).to(setting.device)
        parameters, within = setting.prunable(model), network.load_masks()
        names = {id(parameter): name for name, parameter in parameters.items()}
        with divergence_named(network):
            own = _densities(setting, density, network, scoring)
        scorer = instantiate("scorer", setting.config.scorer)
        compensate = instantiate("compensate", setting.config.compensate) if setting.config.compensate else None

        def step(evidence: Evidence) -> Mapping[str, Tensor]:
            scores = scorer(evidence)
            check_scores(setting.config.scorer["_target_"], scores, evidence.parameters)
            here = {names[id(parameter)] for parameter in evidence.parameters.values()}
            share, allocation = density, setting.allocation
            if isinstance(allocation, OWL):
                shares = {own[name] for name in here}
                if len(shares) > 1:
                    raise ConfigurationError(
                        f"allocation=owl: {evidence.block} has several of its blocks, which go by the first number of "
                        "a name: set calibration=whole"
                    )
                (share,), allocation = shares, allocation.inner
            scores = with_layouts(scores, evidence)
            masks = selected(scores, share, setting.granularity, allocation, within=evidence.masks)
            made = None if compensate is None else compensate(evidence, masks)
            return masks if made is None else made  # a sweep may choose masks itself

        task = setting.task
        batches = [task.inputs(batch) for batch in seen_batches(setting)]
        with divergence_named(network), seeded(setting.config.seed, "scoring noise"):
            alive = None if within is None else within.to(setting.device)
            found = sequentially(model, batches, step, parameters=parameters, masks=alive)
        masks = Masks({name: found[name] for name in parameters}).to("cpu")
        if compensate is None:  # the weights are those that were there
            masks.save(folder / MASKS)
            return
        before = network.history
        length = {"steps": 0, "position": before["position"], "epoch_steps": 1}
        under = conditions(setting.whole.as_dict(), setting.device)
        save(folder, model.to("cpu"), masks, length, [], network, under, before["diverged"])

    made = setting.obtain("pruned", identity, make)
    return Network(made if setting.config.compensate else network.weights, made)


def check_blocks(setting: Setting, model: nn.Module) -> None:
    """Raise `ConfigurationError` where something is to be pruned that is in no block, or in units of several.

    `SequenceError`: `model` has no blocks.
    """
    try:
        inside = tuple(f"{name}." for name in blocks(model))
    except SequenceError as error:
        raise ConfigurationError(
            f"calibration=sequential: {type(model).__name__} has no blocks: set it to whole"
        ) from error
    outside = [name for name in setting.prunable(model) if not name.startswith(inside)]
    if outside:
        raise ConfigurationError(
            f"{outside[0]}: is in no block: set exclude=[{','.join(outside)}], or calibration=whole"
        )
    if setting.structured:
        raise ConfigurationError("granularity=channels: units reach across blocks: set calibration=whole")


def check_block_scorer(setting: Setting, count: int = 4) -> None:
    """Score the first block by a few examples, as `check_scorer` does the network, with the initial weights, and
    compensate it with nothing removed.
    """
    setting = setting.only(*SCORED, "model", "compensate")
    target = setting.config.scorer["_target_"]
    compensate = instantiate("compensate", setting.config.compensate) if setting.config.compensate else None
    model = setting.new_model().to(setting.device)
    scorer = instantiate("scorer", setting.config.scorer)
    first = blocks(model)[0]
    inside = {name: p for name, p in setting.prunable(model).items() if name.startswith(f"{first}.")}

    def step(evidence: Evidence) -> Mapping[str, Tensor]:
        check_scores(target, scorer(evidence), evidence.parameters)
        if compensate is not None:
            compensate(evidence, Masks.dense(evidence.parameters))
        return Masks.dense(evidence.parameters)

    few = [setting.task.inputs(take(setting.splits.train, count, setting.device))]
    with seeded(setting.config.seed, "scoring noise"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # four examples make a poor estimate
        try:
            sequentially(model, few, step, names=(first,), parameters=inside)
        except ScoreError as error:
            raise ScoreError(f"scorer={short_name(setting.config.scorer)}, calibration=sequential: {error}") from error


def _densities(
    setting: Setting, density: float | None, network: Network, scoring: Callable[[Network], Mapping[str, Tensor]]
) -> Mapping[str, float]:
    """Densities of tensors where blocks differ, by what the whole network scores; none where they do not."""
    allocation = setting.allocation
    if not isinstance(allocation, OWL):
        return {}
    if density is None:
        raise ConfigurationError("density=null: OWL shares one out among blocks: give a density")
    return owl_densities(scoring(network), density, allocation.multiple, allocation.spread)
