"""An adaptation in the place of a recovery: its support, and the best of its trainings at several learning rates."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from experiments.adaptation import Attached, Sparse
from experiments.records.metrics import LOSS
from experiments.running.basis import Basis
from experiments.running.setting import Setting
from experiments.running.stages.recovery import retrain, trains
from experiments.running.stages.support import method_of, obtain_support
from experiments.running.stages.trained import Adapting
from experiments.store import Artefact
from experiments.store.identity import EXECUTION, STRUCTURE, code
from experiments.store.networks import ADAPTATION, ADAPTED, HISTORY, MASKS, Network, Search, finite
from experiments.tasks import evaluate
from experiments.training.loop import Trained
from pruning import Masks

_FULL = {"_target_": "experiments.adaptation.Whole", "name": "full", "trains": ["*"], "budget": None}
"""Full fine-tuning, as conf/adaptation/full.yaml has it: it is trained once for both."""


def adapt(setting: Setting, network: Network, density: float | None, title: str = "adaptation") -> Iterator[Network]:
    """`network` adapted within each of the budgets."""
    for budget in method_of(setting).budgets:
        named_budget = title if budget is None else f"{title}, {budget}"
        yield _searched(with_options(setting, budget=budget), network, density, named_budget)


def _searched(setting: Setting, network: Network, density: float | None, title: str) -> Network:
    """`network` adapted at the learning rate whose result is the best on the validation part.

    While the best is the lowest or the highest rate, `widen` more are tried beyond it, each as far away as its
    neighbours are from each other. Test data are not seen.
    """
    method = method_of(setting)
    if not trains(setting, network):
        return Network(network.weights, network.masks, untrained=True)
    support, support_seconds = None, None
    if isinstance(method, Sparse):
        scored = _scored(setting, network, method, density, title)
        support, support_seconds = obtain_support(setting, method, network, scored)
        if scored is not network and scored.search is not None:
            support_seconds = round(support_seconds + scored.search.seconds, 3)
    identity = {"support": None if support is None else support.key, **_code()}
    headline = setting.task.all_metrics()[0]
    sign = 1.0 if headline.higher_is_better else -1.0
    made: dict[float, Artefact] = {}
    tried: dict[float, float | None] = {}
    losses: dict[float, float | None] = {}

    def attempt(rate: float) -> None:
        at = with_options(setting, learning_rate=rate, widen=0)
        adapting = Adapting(partial(_attached, network, support), _keep, identity)
        named_rate = f"{title}, rate {rate:.2g}" if len(method.rates) > 1 else title
        made[rate] = retrain(at, network, named_rate, network, adapting=adapting)
        found: Mapping[str, Any] = made[rate].json(ADAPTED)
        losses[rate] = found["validation"][LOSS.name]
        tried[rate] = None if losses[rate] is None else found["validation"][headline.name]  # NaN has an accuracy too

    def value(rate: float) -> tuple[float, float]:
        """How good it is: where the metric is the same, the loss decides; a training that diverged is the worst."""
        metric, loss = tried[rate], losses[rate]
        return (-math.inf, -math.inf) if metric is None or loss is None else (sign * metric, -loss)

    for rate in method.rates:
        attempt(rate)
    for _ in range(method.widen if len(method.rates) > 1 else 0):
        rates = sorted(made)
        best = max(rates, key=value)
        if best == rates[0]:
            attempt(_rounded(rates[0] ** 2 / rates[1]))
        elif best == rates[-1]:
            attempt(_rounded(rates[-1] ** 2 / rates[-2]))
    best = max(sorted(made), key=value)
    found = made[best]
    masks = found if found.has(MASKS) else None
    others = tuple(one.key for rate, one in sorted(made.items()) if rate != best)
    seconds = round(sum(one.json(HISTORY)["seconds"] for one in made.values()), 3)
    return Network(found, masks, search=Search(tuple(sorted(tried.items())), others, seconds, support_seconds))


def _scored(setting: Setting, network: Network, method: Sparse, density: float | None, title: str) -> Network:
    """The network that is scored for a support: `network`, or what full fine-tuning makes of it."""
    if method.scored != "tuned":
        return network
    full = {**_FULL, "learning_rate": method.tuned, "widen": method.widen}
    full |= {name: setting.whole.adaptation.get(name) for name in ("dense", "dense_rate")}
    whole = replace(setting, whole=replace(setting.whole, adaptation=full))
    return _searched(whole, network, density, f"{title}, before the support")


def _code() -> dict[str, str]:
    return code(__name__, without=(*EXECUTION, *STRUCTURE))


def with_options(setting: Setting, **options: Any) -> Setting:
    """The setting with other options of its adaptation; its parts are shared."""
    group = {**setting.whole.adaptation, **options}
    return replace(setting, whole=replace(setting.whole, adaptation=group))


def _rounded(rate: float) -> float:
    """To two digits: √10 · 3e-3 is one rate, however it was reached."""
    return float(f"{rate:.1e}")


def _attached(network: Network, support: Artefact | None, view: Basis, model: nn.Module) -> Attached:
    """The adaptation of `view` on `model`, which has the weights of `network`."""
    method = method_of(view)
    masks = network.load_masks()
    chosen = None if support is None else Masks.load(support.file(MASKS))
    device = next(model.parameters()).device
    attached = method.attach(
        model, None if masks is None else masks.to(device), None if chosen is None else chosen.to(device)
    )
    attached.rate, attached.dense_rate = method.rates[0], method.dense_rate
    if not attached.own():  # a linear probe, of which the search is that of its rate
        attached.dense_rate = method.rates[0]
    return attached


def _keep(folder: Path, trained: Trained, setting: Basis) -> nn.Module:
    """Keep what `trained` has adapted in `folder`, and end it: the model without it, or with it in its weights.

    Its validation metrics are those of the network that is kept: with the adaptation beside it, or merged.
    """
    attached = trained.adapted
    assert attached is not None
    kept = not attached.merges or trained.diverged is None
    size = sum(parameter.nbytes for parameter in attached.own().values()) if kept else None
    if kept and (
        attached.separate or not attached.merges
    ):  # otherwise the network's own file has its weights as they are
        attached.save(folder / ADAPTATION)
        size = (folder / ADAPTATION).stat().st_size
    dense = sum(parameter.numel() for parameter in attached.dense.values())
    count, found = attached.count, {}
    if not attached.merges:
        found = evaluate(setting.task, attached.model, setting.splits.validation)
    model = attached.finish()
    if attached.merges:
        found = evaluate(setting.task, model, setting.splits.validation)
    numbers = {
        "method": None if attached.merges else dict(setting.config.adaptation),
        "budget": setting.config.adaptation["budget"],
        "rate": attached.rate,
        "trained": count,
        "dense": dense,
        "bytes": size,
        "optimizer_bytes": trained.optimizer_bytes,
        "step_ms": 1000 * sum(epoch.seconds for epoch in trained.epochs) / max(1, trained.steps),
        "filled": attached.filled,
        "validation": {name: finite(value) for name, value in found.items()},
    }
    (folder / ADAPTED).write_text(json.dumps(numbers, allow_nan=False))
    return model
