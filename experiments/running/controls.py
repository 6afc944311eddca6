"""Networks to compare a ticket with, at every level: is it its weights, its mask, its layers' densities, or its size?

    reinit       the ticket's mask, new weights
    shuffle      the ticket's weights, its mask shuffled inside each layer
    random       both: new weights, shuffled mask
    small_dense  a dense network of the same architecture, narrower, with as many parameters

`reinit`, `random` and `small_dense` are trained as the dense network was, from the first step to the last. `shuffle`
begins where the ticket began and recovers as it did. With a distillation all of them have the ticket's teacher: what is
compared is not who had one.
"""

import inspect
import logging
from collections.abc import Iterator
from typing import Any

import torch
from hydra.utils import get_object

from experiments.running import stages
from experiments.running.levels import Level, evaluate
from experiments.running.setting import Setting
from experiments.store.networks import Network
from pruning.errors import ConfigurationError, ModelError

log = logging.getLogger("experiments")


def controls(
    setting: Setting, begun: Network, ticket: dict[str, Any], level: Level, dense: Network
) -> Iterator[dict[str, Any]]:
    """The rows of the controls that the configuration asks for.

    Args:
        setting: of the run.
        begun: what the ticket's recovery started from, under the ticket's masks.
        ticket: the ticket's row.
        level: where in the run it stands.
        dense: the run's dense network.
    """
    teaching = stages.teaching(setting) if stages.is_distilled(setting.config) else None
    for control in setting.config.controls:
        if control == "small_dense":
            yield from _small_dense(setting, ticket, level, dense, teaching)
            continue
        masked = stages.shuffle(setting, begun, control) if control in ("shuffle", "random") else begun
        if control in ("reinit", "random"):
            fresh = stages.initial(setting, f"weights of {control}")
            network = stages.train_whole(setting, Network(fresh.weights, masked.masks), f"{level}, {control}", teaching)
        else:
            network = stages.recover(setting, masked, level.density, False, f"{level}, {control}")
        yield evaluate(setting, network, level, dense) | {"control": control}


def check(setting: Setting) -> None:
    """Raise `ConfigurationError` where a control cannot be made."""
    target = setting.config.model["_target_"]
    wanted = "small_dense" in setting.config.controls
    if wanted and "width" not in inspect.signature(get_object(target)).parameters:
        raise ConfigurationError(f"controls=small_dense: {target} has no option width: leave this control out")
    if wanted:
        try:
            stages.check_teaching(setting, setting.narrowed(0.5).new_model())
        except (ConfigurationError, ModelError) as error:
            raise ConfigurationError(f"controls=small_dense: {error}, or leave this control out") from error
    for control in setting.config.controls:
        if control in ("reinit", "random"):
            _check_new(setting, control)


def _check_new(setting: Setting, control: str) -> None:
    """Raise `ConfigurationError` where a control's new weights would be the old ones, as of a model from files."""
    drawn = (setting.prunable(setting.new_model(draw)) for draw in ("initial weights", f"weights of {control}"))
    for (name, one), other in zip(*(found.items() for found in drawn), strict=True):
        if torch.equal(one, other[1]) and one.min() < one.max():
            raise ConfigurationError(
                f"controls={control}: {name} has the same weights at every draw of the model: leave this control out"
            )


def _small_dense(
    setting: Setting, ticket: dict[str, Any], level: Level, dense: Network, teaching: stages.Teaching | None
) -> Iterator[dict[str, Any]]:
    """Train a small dense network and evaluate it.

    Its row counts as that of a subnetwork of the large network: density and MACs are shares of the large one.
    """
    small = _narrowed(setting, ticket["nonzero"])
    if small is None:
        log.info("small_dense: even the narrowest network has more than %d parameters", ticket["nonzero"])
        return
    network = stages.train_whole(small, stages.initial(small), f"{level}, small_dense", teaching)
    row = evaluate(small, network, level, dense)
    shares = {"prunable": ticket["prunable"], "parameters": ticket["parameters"], "dense_macs": ticket["dense_macs"]}
    shares |= {"density": row["kept"] / ticket["prunable"], "requested_density": ticket["requested_density"]}
    yield row | shares | {"control": "small_dense"}


def _narrowed(setting: Setting, budget: int) -> Setting | None:
    """The widest network of at most `budget` parameters, by bisection over the width."""

    def count(width: float) -> int:
        with torch.device("meta"):
            return sum(p.numel() for p in setting.narrowed(width).new_model().parameters())

    low, high = 1e-6, 1.0
    if count(low) > budget:
        return None
    if count(high) <= budget:
        return setting
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if count(middle) <= budget else (low, middle)
    return setting.narrowed(low)
