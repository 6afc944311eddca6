"""What can be wrong with an adaptation, tried on a throw-away network before any training."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from experiments.adaptation import Sparse
from experiments.configuration.targets import short_name
from experiments.data.examples import take
from experiments.running.setting import Setting
from experiments.running.stages.adaptation import with_options
from experiments.running.stages.support import masks_over, method_of
from experiments.running.stages.teaching import check_teaching
from experiments.tasks.task import call
from experiments.training.parts import check_adapted
from pruning.errors import ConfigurationError
from pruning.evidence import untouched
from pruning.modes import eval_mode

log = logging.getLogger("experiments")


def check_adaptation(setting: Setting, densities: Sequence[float | None]) -> None:
    """Attach the adaptation once to a throw-away network, so that it raises its errors before any training."""
    budgets = method_of(setting).budgets
    for budget in budgets:
        _check_attaching(with_options(setting, budget=budget), densities)
    if len(budgets) > 1 and not _once(setting):
        raise ConfigurationError(
            "adaptation.budget: with several, later rounds would go on from the last: give one, or schedule=one_shot"
        )


def _once(setting: Setting) -> bool:
    """Whether no round follows an adaptation."""
    return setting.config.recovery.rounds == "last" or short_name(setting.config.schedule) == "one_shot"


def _check_attaching(setting: Setting, densities: Sequence[float | None]) -> None:
    method = method_of(setting)
    model = setting.new_model()
    masks = getattr(model, "starting_masks", None)
    support = None
    if isinstance(method, Sparse):
        adapted = method.adapted(model)
        sizes = {name: p.detach().abs() for name, p in adapted.items()}
        support = method.choose(sizes, None if masks is None else masks_over(masks, sizes))
        if masks is None and not setting.structured:
            prunable = setting.prunable(model)
            for density in densities:
                if density is not None:
                    method.check_room(adapted, prunable, density)
    count = method.size(method.adapted(model)).count if method.sized else None
    attached = method.attach(model, masks, support)
    attached.rate = method.rates[0]
    check_adapted(setting.recipe(range(0), setting.learning_rate, 1), attached)
    with torch.no_grad(), untouched(attached.model), eval_mode(attached.model):
        call(setting.task, attached.model, take(setting.splits.train, 2))
    check_teaching(setting, attached.model)
    if count is not None and 2 * attached.count < count:
        log.warning(
            "adaptation=%s: %s weights are the most that it trains here, of a budget of %s",
            *(method.name, f"{attached.count:,}", f"{count:,}"),
        )
    if not attached.merges and not _once(setting):
        raise ConfigurationError(
            f"adaptation={type(method).__name__}: stays beside the weights, so that later rounds cannot prune the "
            "network with it: set schedule=one_shot, or recovery.rounds=last"
        )
    attached.finish()
