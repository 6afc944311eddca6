"""The support of a sparse update: the masks of what is trained, as a scorer ranks it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.adaptation import Method, Sparse
from experiments.adaptation.sparse import check_signs
from experiments.configuration.targets import instantiate
from experiments.running.basis import Basis
from experiments.running.setting import Setting
from experiments.running.stages.scoring import SEEN, check_scores, divergence_named, evidence_of, move, try_scorer
from experiments.runtime.seeding import seeded
from experiments.store import Artefact
from experiments.store.identity import EXECUTION, STRUCTURE, code
from experiments.store.networks import MASKS, Network, load
from pruning import Evidence, Masks
from pruning.errors import ConfigurationError
from pruning.parameters import named

_WITHOUT = ("learning_rate", "widen")
"""Options on which no support depends."""

_CHOICE = "choice.json"
"""How long the choice of a support took."""


def method_of(setting: Basis) -> Method:
    """The adaptation as it is configured. Raises `ConfigurationError` where the target makes another thing."""
    made = instantiate("adaptation", setting.config.adaptation)
    if not isinstance(made, Method):
        raise ConfigurationError(
            f"adaptation={setting.config.adaptation['_target_']}: makes a {type(made).__name__}: give a subclass of "
            "experiments.adaptation.Method"
        )
    return made


def check_support(setting: Setting) -> None:
    """Score a few examples for a support, as `check_scorer` does for what is pruned."""
    method = method_of(setting)
    if not isinstance(method, Sparse):
        return
    view = setting.only(*SEEN, "adaptation", "model")
    model = view.new_model()
    parameters = method.adapted(model)
    move(parameters, view.config.seed)
    before = named(view.new_model())
    masks = getattr(model, "starting_masks", None)
    evidence = _restricted(evidence_of(view, model, None), parameters, masks, before)
    check_signs(try_scorer(view, method.scorer, _scorer_name(view), evidence))


def obtain_support(setting: Setting, method: Sparse, network: Network, scored: Network) -> tuple[Artefact, float]:
    """The masks of what is trained of `network`, by the scores of `scored`; and the seconds that this took."""
    group = {name: value for name, value in setting.whole.adaptation.items() if name not in _WITHOUT}
    view = replace(setting, whole=replace(setting.whole, adaptation={**group, "learning_rate": 1.0}))
    view = view.only(*SEEN, "adaptation", after=scored.fields | network.fields)
    identity = {"from": network.key, "scored": scored.key, **code(__name__, without=(*EXECUTION, *STRUCTURE))}

    def make(folder: Path) -> None:
        began, masks = time.perf_counter(), network.load_masks()
        evidence = _evidence(view, method, network, scored, masks)
        with seeded(view.config.seed, "scoring noise"), divergence_named(scored):
            scores = method.scorer(evidence)
        check_scores(_scorer_name(view), scores, evidence.parameters)
        method.choose(scores, None if masks is None else masks_over(masks, scores)).to("cpu").save(folder / MASKS)
        (folder / _CHOICE).write_text(json.dumps({"seconds": round(time.perf_counter() - began, 3)}))

    made = view.obtain("supports", identity, make)
    return made, made.json(_CHOICE)["seconds"]


def _evidence(view: Setting, method: Sparse, base: Network, scored: Network, masks: Masks | None) -> Evidence:
    """What the scorer of a support sees: the parameters that may be adapted, and the base as their beginning."""
    model = load(view.new_model(), scored)
    before = named(load(view.new_model(), base))
    return _restricted(evidence_of(view, model, None), method.adapted(model), masks, before)


def _restricted(
    evidence: Evidence, parameters: Mapping[str, Any], masks: Masks | None, before: Mapping[str, Any]
) -> Evidence:
    """`evidence` of the `parameters` that may be adapted alone, under `masks`; their initial values are in `before`."""
    alive = None if masks is None else masks_over(masks, parameters)
    return replace(evidence, parameters=parameters, masks=alive, initial={name: before[name] for name in parameters})


def _scorer_name(view: Setting) -> str:
    return f"adaptation.scorer={view.config.adaptation['scorer']['_target_']}"


def masks_over(masks: Masks, parameters: Mapping[str, Tensor]) -> Masks:
    """The mask of every parameter, on its device; of one that is not pruned it keeps all."""
    given = ((name, masks[name] if name in masks else torch.ones(p.shape)) for name, p in parameters.items())
    return Masks({name: mask.to(parameters[name].device).bool() for name, mask in given})
