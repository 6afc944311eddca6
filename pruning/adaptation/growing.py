"""A support that follows the training: small differences are given up, and others begin where the gradient is large."""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, Literal

import torch
from torch import Tensor
from torch import distributed as dist
from torch.optim import Optimizer

from pruning.adaptation.tuning import Tuning
from pruning.dynamic.gradients import DenseGradients
from pruning.dynamic.regrowth import Exchanges, exchange
from pruning.errors import AdaptationError
from pruning.evidence import Scores
from pruning.parameters import named
from pruning.seeding import generator
from pruning.selection import check_finite


class Regrown:
    """Drops the smallest |difference| and grows where the |gradient| is largest, or at random; as RigL and SET do.

    What is dropped goes back to its base, not to 0. Ansell et al. 2024 (SpIEL) grow supports so. Every tensor keeps
    its number of places.

        growing = Regrown(tuning, optimizer, steps=epochs * len(loader))
        for batch in loader:
            optimizer.zero_grad()
            loss(model, batch).backward()
            growing.before_step()
            optimizer.step()
            growing.after_step()

    Attributes:
        step: optimizer steps done.
    """

    def __init__(
        self,
        tuning: Tuning,
        optimizer: Optimizer,
        steps: int,
        every: int = 100,
        fraction: float = 0.3,
        end: float = 0.75,
        growth: Literal["gradient", "random"] = "gradient",
        within: Mapping[str, Tensor] | None = None,
        seed: int = 0,
    ):
        """Exchange places of `tuning`, which `optimizer` follows, every `every` steps.

        Args:
            steps, every, fraction, end: as in `pruning.dynamic.SET`. With `growth="gradient"` an exchange takes the
                place of a step, whose gradients are set to None.
            growth: what decides where differences begin.
            within: masks, True = may be trained: the survivors of a pruning, so that its zeros stay.
            seed: of random growth.

        Raises:
            AdaptationError: an unknown `growth`, or `within` lacks a tensor or a place of the support.
            ScheduleError: an argument out of range.
        """
        if growth not in ("gradient", "random"):
            raise AdaptationError(f"growth={growth!r}: choose gradient or random")
        self._exchanges = Exchanges(steps, every, fraction, end)
        for name, mask in tuning.support.items() if within is not None else ():
            assert within is not None
            if name not in within or bool((mask & ~within[name].to(mask.device)).any()):
                raise AdaptationError(f"{name}: within= does not have all that is trained: give masks of what may be")
        self.tuning, self.step = tuning, 0
        self._optimizer, self._growth, self._within, self._seed = optimizer, growth, within, seed
        weights = named(tuning.model)
        self._gradients = DenseGradients(tuning.model, {name: weights[name] for name in tuning.values})
        self._reading = ExitStack()

    def before_step(self) -> None:
        """Call it after the backward pass, before the optimizer's step."""
        if self._growth == "gradient" and self._exchanges.at(self.step):
            self._exchange(self._taken())
            for group in self._optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None

    def after_step(self) -> None:
        """Call it after the optimizer's step."""
        self.step += 1
        if self._exchanges.at(self.step):
            if self._growth == "random":
                self._exchange(self._drawn())
            else:
                self._read()

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` goes on from; the support is in the state of the tuning."""
        return {"step": self.step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`, after the tuning has."""
        self.step = state["step"]
        if self._growth == "gradient" and self._exchanges.at(self.step):
            self._read()

    @torch.no_grad()
    def _exchange(self, growth: Mapping[str, Tensor]) -> None:
        share, masks = self._exchanges.share(self.step), {}
        for name, mask in self.tuning.support.items():
            check_finite(name, growth[name])
            sizes = torch.zeros(mask.shape, dtype=self.tuning.values[name].dtype, device=mask.device)
            sizes[mask] = self.tuning.values[name].abs()
            within = None if self._within is None else self._within[name].to(mask.device)
            masks[name] = exchange(mask, sizes, growth[name], share, within)
        self.tuning.replace(masks, self._optimizer)

    def _read(self) -> None:
        """Read the dense gradients of all backward passes until they are taken."""
        self._reading.close()
        self._reading.enter_context(self.tuning.dense_gradients())
        self._gradients.collect()

    def _taken(self) -> Scores:
        """|gradient| of every place, of those of all processes."""
        found = self._gradients.take()
        self._reading.close()
        for gradient in found.values():
            if self.tuning.averaged:
                dist.all_reduce(gradient)
            gradient.abs_()
        return found

    def _drawn(self) -> Scores:
        """A function of seed and step, drawn on the CPU: the same on every device and in every process."""
        draws = generator(f"support {self._seed} {self.step}")
        return {
            name: torch.rand(mask.shape, generator=draws).to(mask.device) for name, mask in self.tuning.support.items()
        }
