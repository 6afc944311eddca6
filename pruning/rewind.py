"""Rewind points: all that a training's future depends on, at one step. Weights alone are half of it.

Three recoveries after a pruning, as Renda et al. 2020 define them, in a training loop of one's own:

    finetune     nothing is restored; a new optimizer goes on at the last learning rate
    rewind       point.restore(model, optimizer, schedule): weights and schedule are those of step k again
    lr_rewind    point.restore(schedule=schedule): the weights stay, the schedule is replayed from step k

Then attach the masks. An optimizer's state goes into a round only if it is restored here, from the point.
"""

import copy
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pruning import snapshot
from pruning.errors import ArtefactError, RewindError, first_line
from pruning.parameters import unwrapped

_FIELDS = ("step", "model", "optimizer", "schedule", "order", "random")


@dataclass(frozen=True)
class RewindPoint:
    """A training at one step. What was not given to `capture` is None; nothing is shared with the training.

    Attributes:
        step: optimizer steps done.
        model: parameters and buffers, batch norm's statistics among them, by name.
        optimizer: its state and options, as `Optimizer.state_dict` gives them.
        schedule: the learning-rate scheduler's.
        order: the state of the generator that shuffles the data.
        random: the states of Python's, NumPy's and torch's global generators.
    """

    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Any] | None
    schedule: dict[str, Any] | None
    order: Tensor | None
    random: dict[str, Any]

    @classmethod
    def capture(
        cls,
        model: nn.Module,
        optimizer: Optimizer | None = None,
        schedule: LRScheduler | None = None,
        order: torch.Generator | None = None,
        step: int = 0,
    ) -> "RewindPoint":
        """The training as it stands now; wrappers (DDP, `torch.compile`) are looked through."""
        if step < 0:
            raise RewindError(f"step={step}: give the number of optimizer steps done, at least 0")
        return cls(
            step,
            _copied(unwrapped(model).state_dict()),
            None if optimizer is None else _copied(optimizer.state_dict()),
            None if schedule is None else _copied(schedule.state_dict()),
            None if order is None else order.get_state().clone(),
            _random_state(),
        )

    def restore(
        self,
        model: nn.Module | None = None,
        optimizer: Optimizer | None = None,
        schedule: LRScheduler | None = None,
        order: torch.Generator | None = None,
        random: bool = False,
    ) -> None:
        """Put back what is given, and no more; `random`: the global random states.

        A schedule puts its learning rate into its optimizer.

        Raises:
            RewindError: the point has no such part, or it does not fit.
        """
        given = {"optimizer": optimizer, "schedule": schedule, "order": order}
        for name, target in given.items():
            if target is not None and getattr(self, name) is None:
                raise RewindError(f"this rewind point holds no {name}: give it to RewindPoint.capture too")
        try:
            if model is not None:
                unwrapped(model).load_state_dict(self.model)
            if optimizer is not None:
                assert self.optimizer is not None
                optimizer.load_state_dict(_copied(self.optimizer))
            if schedule is not None:
                assert self.schedule is not None
                schedule.load_state_dict(_copied(self.schedule))
                for group, rate in zip(schedule.optimizer.param_groups, schedule.get_last_lr(), strict=True):
                    group["lr"] = rate
        except (RuntimeError, ValueError, KeyError) as error:
            reason = first_line(error)
            raise RewindError(f"this rewind point is of another training ({reason}): capture one of this") from error
        if order is not None:
            assert self.order is not None
            order.set_state(self.order)
        if random:
            _set_random_state(self.random)

    def as_dict(self) -> dict[str, Any]:
        """Plain data and tensors; `RewindPoint(**point.as_dict())` is the point again."""
        return {name: getattr(self, name) for name in _FIELDS}

    def save(self, path: str | PathLike[str]) -> None:
        """As one file, without pickle. Raises `OSError`, or `ArtefactError` for a state that is no plain data."""
        snapshot.save(path, self.as_dict())

    @classmethod
    def load(cls, path: str | PathLike[str]) -> "RewindPoint":
        """From `save`. Raises `ArtefactError` for what is cut, damaged or no rewind point."""
        tree = snapshot.load(path)
        if not isinstance(tree, dict) or set(tree) != set(_FIELDS):
            raise ArtefactError(f"{path}: is a snapshot, but not of a rewind point: give one from RewindPoint.save")
        return cls(**tree)


def step_of(moment: str | int, steps_per_epoch: int) -> int:
    """The step that a moment of training names: "500it" (iterations), "2ep" (epochs), or the number itself.

    Raises:
        RewindError: it names none.
    """
    if isinstance(moment, int) and not isinstance(moment, bool) and moment >= 0:
        return moment
    found = re.fullmatch(r"(\d+)(it|ep)", moment) if isinstance(moment, str) else None
    if found is None:
        raise RewindError(f"{moment!r} names no step: give one like 500it (iterations), 2ep (epochs), or a number")
    return int(found[1]) * (steps_per_epoch if found[2] == "ep" else 1)


def _copied(state: Mapping[str, Any]) -> dict[str, Any]:
    return copy.deepcopy(dict(state))


def _random_state() -> dict[str, Any]:
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.random.get_rng_state(),
        "cuda": devices,
    }


def _set_random_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.random.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
