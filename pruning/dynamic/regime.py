"""Masks on a network in training: what every regime shares, and what it takes to change masks between two steps."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pruning.attachment import Attachment, optimizers_in
from pruning.errors import ScheduleError
from pruning.evidence import Evidence, Scores
from pruning.masks import Masks
from pruning.parameters import first_names, named


class Regime:
    """Masks on a network in training: the base of all regimes, which hold masks or change them.

    In a training loop of one's own:

        regime = RigL(evidence, optimizer, steps=epochs * len(loader))
        for batch in loader:
            optimizer.zero_grad()
            loss(model, batch).backward()
            regime.before_step()
            optimizer.step()
            regime.after_step()
        masks = regime.finish()

    Attributes:
        masks: those that hold now.
        step: optimizer steps done.
        whole_batches: whether every step is to be one forward pass of one process, of the whole batch.
    """

    whole_batches: ClassVar[bool] = False

    def __init__(self, model: nn.Module, optimizer: Optimizer, masks: Masks, resting: bool = False):
        """Hold `masks` from now on.

        Args:
            model: with the weights as they are; wrappers (DDP, `torch.compile`) are looked through.
            optimizer: updates the masked parameters.
            masks: on the parameters' devices. Over the processes of a DDP-wrapped model those of the first one hold.
            resting: removed weights keep the values that they had, aside, and return with them; else they return as 0.

        Raises:
            MaskError: the masks do not fit.
        """
        masks.check(model)
        masks = masks.agreed(model)
        self.model, self.optimizer, self.masks, self.step = model, optimizer, masks, 0
        self.parameters: dict[str, nn.Parameter] = {}
        self._resting: dict[str, Tensor] | None = {} if resting else None
        self._take(masks)
        self._attachment = masks.hold(model, optimizer)

    def before_step(self) -> None:
        """Call it after the backward pass, before the optimizer's step."""

    def after_step(self) -> None:
        """Call it after the optimizer's step."""
        self.step += 1

    @property
    def needs_dense(self) -> bool:
        """Whether the step to come reads or changes dense weights, or their gradients: see `pruning.execution`."""
        return False

    def release(self, names: Collection[str]) -> None:
        """Hold the masks of all but these, which sparse layers keep for a while; under any of their names."""
        self._attachment.detach()
        first = first_names(self.model)
        gone = {first[name] for name in names}
        left = {name: mask for name, mask in self.masks.items() if first[name] not in gone}
        if not left:
            self._attachment = Attachment({}, {}, ())
            return
        held = {id(self.parameters[name]) for name in left}
        trained = any(id(p) in held for group in self.optimizer.param_groups for p in group["params"])
        self._attachment = Masks(left).hold(self.model, *([self.optimizer] if trained else []))  # or they are frozen

    def rebind(self) -> None:
        """Hold all masks again."""
        self._attachment.detach()
        self._attachment = self.masks.hold(self.model, self.optimizer)

    def finish(self) -> Masks:
        """End holding: the masks at the end; removed weights are zero."""
        self._attachment.detach()
        return self.masks

    def _take(self, names: Iterable[str]) -> None:
        """Hold these parameters too."""
        every = named(self.model)
        for name in names:
            if name not in self.parameters:
                self.parameters[name] = every[name]
                if self._resting is not None:
                    self._resting[name] = every[name].detach().clone()

    @torch.no_grad()
    def replace(self, masks: Masks) -> None:
        """Hold other masks from now on. What returns has its resting value, or 0, and no past in the optimizer.

        They may be of more parameters than before, as channels reach into biases and norms, but not of fewer.
        Over the processes of a DDP-wrapped model those of the first one hold.
        """
        masks = masks.agreed(self.model)
        if masks == self.masks:
            return
        self._attachment.detach()
        self._take(masks)
        for name, parameter in self.parameters.items():
            after = masks[name]
            before = self.masks[name] if name in self.masks else torch.ones_like(after)
            returning = after & ~before
            if self._resting is not None:
                resting = self._resting[name]
                parameter.copy_(torch.where(returning, resting, parameter))
                resting.copy_(torch.where(before & ~after, parameter, resting))
            self._forget(parameter, returning)
        self.masks = masks
        self._attachment = masks.hold(self.model, self.optimizer)

    def whole(self) -> Scores:
        """The weights, with removed ones at their resting values."""
        weights = {name: parameter.detach() for name, parameter in self.parameters.items()}
        if self._resting is None:
            return weights
        return {name: torch.where(self.masks[name], w, self._resting[name]) for name, w in weights.items()}

    def state_dict(self) -> dict[str, Any]:
        """Plain data and tensors from which `load_state_dict` goes on; weights and optimizer are saved apart."""
        return {"step": self.step, "masks": dict(self.masks), "resting": self._resting}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`. Load model and optimizer afterwards, so that these masks hold on them."""
        self._attachment.detach()
        self.step = state["step"]
        self._take(state["masks"])
        masks = {name: mask.to(self.parameters[name].device) for name, mask in state["masks"].items()}
        self.masks = Masks(masks).agreed(self.model)
        if self._resting is not None:
            for name, value in state["resting"].items():
                self._resting[name].copy_(value)
        self._attachment = self.masks.hold(self.model, self.optimizer)

    def _forget(self, parameter: nn.Parameter, returning: Tensor) -> None:
        """The optimizer's state of `returning` as before their first step: zero, but for two optimizers."""
        for optimizer in optimizers_in(self.optimizer):
            for group in optimizer.param_groups:
                if not any(p is parameter for p in group["params"]):
                    continue
                for key, value in optimizer.state.get(parameter, {}).items():
                    if isinstance(value, Tensor) and value.shape == parameter.shape:
                        value.masked_fill_(returning, initial_state(optimizer, group, key))


def initial_state(optimizer: Optimizer, group: Mapping[str, Any], key: str) -> float:
    """What the state `key` of a weight is before its first step."""
    if isinstance(optimizer, torch.optim.Rprop) and key == "step_size":
        return float(group["lr"])
    if isinstance(optimizer, torch.optim.Adagrad) and key == "sum":
        return float(group["initial_accumulator_value"])
    return 0.0


class FixedMasks(Regime):
    """Masks that hold as they are, to the end of the training."""


def starting(evidence: Evidence) -> Masks:
    """The masks that `evidence` comes with, or all that is prunable, on the parameters' devices."""
    if evidence.masks is None:
        return Masks.dense(evidence.parameters)
    every = named(evidence.model)  # masks of channels reach into biases and norms, which are not prunable
    return Masks({name: mask.to(every[name].device) for name, mask in evidence.masks.items()})


def moment(share: float, steps: int, name: str) -> int:
    """The step at `share` of a training of `steps` steps."""
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ScheduleError(f"steps={steps!r}: give the number of optimizer steps of the training, at least 1")
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0.0 <= share <= 1.0:
        raise ScheduleError(f"{name}={share!r}: give a share of the training, in [0, 1]")
    return round(share * steps)
