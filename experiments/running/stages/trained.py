"""Networks at their initialisation and after a training, with or without masks that hold."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from torch import nn

from experiments.running.basis import Basis
from experiments.running.conditions import conditions
from experiments.runtime.processes import world_size
from experiments.store import Artefact
from experiments.store.identity import EXECUTION, STRUCTURE, code
from experiments.store.networks import MASKS, NO_STEPS, POINT, Network, load, save
from experiments.training.loop import MakeObjective, MakeRegime, Trained, train
from experiments.training.recipe import Recipe
from pruning.execution import ExecutionPolicy, masked
from pruning.rewind import RewindPoint

if TYPE_CHECKING:  # the code of a teaching counts where a training is distilled
    from experiments.adaptation import Attached
    from experiments.configuration import Configuration
    from experiments.running.stages.teaching import Teaching

log = logging.getLogger("experiments")

B = TypeVar("B", bound=Basis)


@dataclass(frozen=True)
class Adapting:
    """What a training trains in the place of all weights.

    Attributes:
        attach: puts it on the model, as the view of the training has it.
        keep: writes it to the folder of the artefact, and ends it: the model whose weights are kept.
        identity: what the result depends on besides the field `adaptation`.
    """

    attach: Callable[[Basis, nn.Module], Attached]
    keep: Callable[[Path, Trained, Basis], nn.Module]
    identity: Mapping[str, Any]


TRAINED = (
    *(
        f"training.{name}"
        for name in ("batch_size", "accumulate", "clip", "best_on_validation", "precision", "trainable")
    ),
    *("seed", "task", "optimizer", "learning_rate", "data.load", "data.augment"),
)
"""Fields of the configuration that a training depends on, besides its start; its steps stand for lengths in epochs."""


def initial(setting: Basis, draw: str = "initial weights") -> Network:
    """The network at its initialisation; another `draw` is another initialisation with the same seed.

    It is under the `starting_masks` of its model, which that of another run may have.
    """
    setting = setting.only("seed", "model")
    # What comes from files is the same with every seed, and known by its content
    view = setting.only("model") if setting.whole.when == "pretrained" else setting
    identity = {"draw": draw} | _code()

    def make(folder: Path) -> None:
        model = setting.new_model(draw)
        masks = getattr(model, "starting_masks", None)
        save(folder, model, masks, NO_STEPS, [], None, conditions(setting.whole.as_dict()))

    found = replace(view.obtain("initial", identity, make), fields=setting.fields)
    return Network(found, found if found.has(MASKS) else None)


def dense(setting: Basis) -> Network:
    """The network trained without masks, or as it comes; all scorers of a sweep share it."""
    if setting.config.when == "pretrained":
        return initial(setting)
    return _dense(setting, "dense", setting.total_steps)


def rewind_point(setting: Basis) -> Network:
    """The network of the dense training at step `recovery.to`, where its optimizer is kept too."""
    step = setting.rewind_step
    return initial(setting) if step == 0 else _dense(setting, "point", step)


def is_distilled(config: Configuration) -> bool:
    """Whether trainings under masks have a teacher, and it has a weight."""
    return bool(config.distillation) and config.distillation["alpha"] > 0


def train_whole(setting: Basis, start: Network, title: str, teaching: Teaching | None = None) -> Network:
    """`start` under its masks, trained as the dense network was, from the first step to the last; with `teaching`, by
    a teacher too.
    """
    return _trained_over(setting, "recovered", start, setting.total_steps, title, teaching)


def _dense(setting: Basis, kind: str, stop: int) -> Network:
    return _trained_over(setting, kind, initial(setting), stop, "dense")


def _trained_over(
    setting: Basis, kind: str, start: Network, stop: int, title: str, teaching: Teaching | None = None
) -> Network:
    total = setting.total_steps
    setting = training_view(setting, start, *(teaching.fields if teaching else ()))
    recipe = setting.recipe(range(stop), setting.learning_rate, total)
    if kind == "point":  # of that step itself, whichever epoch before was the best
        recipe = replace(recipe, keep_end=True, best_on_validation=False)
    identity, objective = (teaching.identity, teaching.objective) if teaching else ({}, None)
    return Network(trained(setting, kind, identity, start, recipe, title, objective=objective), start.masks)


def training_view(
    setting: B, start: Network, *fields: str, changing: bool = False, adapting: Adapting | None = None
) -> B:
    """The view of a training from `start`, which takes these `fields` too. Under masks, that hold or are `changing`,
    its execution counts as well, unless it is `adapting`: `trained` adds it to the identity.
    """
    executed = frozenset[str]()
    if adapting is None and (changing or start.masks is not None):
        executed = frozenset({"execution"})
    return setting.only(*TRAINED, *fields, after=start.fields | executed)


def trained(
    setting: Basis,
    kind: str,
    identity: Mapping[str, Any],
    start: Network,
    recipe: Recipe,
    title: str,
    begin: Callable[[], nn.Module] | None = None,
    point: Network | None = None,
    regime: MakeRegime | None = None,
    adapting: Adapting | None = None,
    objective: MakeObjective | None = None,
) -> Artefact:
    """Train from `start` under its masks, or under those of `regime`, which change.

    Args:
        setting: the view of this training.
        kind: of the artefact.
        identity: what its result depends on besides the view, `start` and the steps of `recipe`.
        start: the network before it, whose key, masks, and epochs and seconds until now count.
        recipe: how it is trained, made from the view.
        title: what its progress says of it.
        begin: the model that the training begins with; None: that of `start`.
        point: the network whose optimizer and random state the training begins with, if it has them.
        regime: instead of the masks of `start`.
        adapting: what is trained in the place of all weights; the masks of `start` are its own business.
        objective: instead of the task's loss; `identity` says which.
    """
    masks = start.load_masks()
    steps = [recipe.steps.start, recipe.steps.stop, recipe.total]
    identity = {"from": start.key, "steps": steps} | dict(identity) | _code()
    # More than rounding: each process has a batch norm and a dropout of its own part of a batch
    identity |= {"processes": world_size()}
    policy: ExecutionPolicy = masked
    if adapting is None and (masks is not None or regime is not None):
        policy = setting.execution
        identity |= _execution_part(setting)

    def make(folder: Path) -> None:
        model = load(setting.new_model(), start) if begin is None else begin()
        if kind == "dense":
            log.info("seed %s: training the dense network, %s steps", recipe.seed, len(recipe.steps))
        found = train(
            model,
            setting.splits.train,
            setting.splits.validation,
            recipe,
            setting.task,
            setting.new_accelerator(),
            masks=None if regime is not None or adapting is not None else masks,
            regime=regime,
            begin=None if adapting is not None else _optimizer_of(point),
            progress=setting.progress(title),
            checkpoints=setting.checkpoints(kind, identity),
            policy=policy,
            adapt=None if adapting is None else partial(adapting.attach, setting),
            objective=objective,
        )
        if policy is not masked:
            log.info("weights that ran sparsely: %s", ", ".join(found.sparse) or "none")
        if found.end is not None:
            found.end.save(folder / POINT)
        if adapting is not None:
            model = adapting.keep(folder, found, setting)
        final = found.masks if found.adapted is None else found.adapted.masks
        final = None if final is None else final.to("cpu")
        length = {"steps": len(recipe.steps), "position": recipe.steps.stop, "epoch_steps": setting.epoch_steps}
        under = conditions(setting.whole.as_dict(), setting.device, found.sparse)
        epochs, lost = list(map(asdict, found.epochs)), found.diverged
        save(folder, model.to("cpu"), final, length, epochs, start, under, lost, found.first_loss)

    return setting.obtain(kind, identity, make)


def _optimizer_of(network: Network | None) -> RewindPoint | None:
    if network is None or not network.weights.has(POINT):
        return None
    return RewindPoint.load(network.weights.file(POINT))


def _execution_part(setting: Basis) -> dict[str, Any]:
    """Identity of an execution; where masks are zeros in dense weights, no layer and no structure counts."""
    if setting.execution is masked:
        here = ("experiments.training.execution", "pruning.execution.alternating")
        return {"execution": setting.config.execution} | code(*here, without=(*EXECUTION, *STRUCTURE))
    return setting.only("execution").identity() | code("experiments.training.execution")


def _code() -> dict[str, str]:
    return code(__name__, without=EXECUTION)
