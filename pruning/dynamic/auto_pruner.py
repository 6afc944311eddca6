"""A code for every coupled unit, made of activations, which training itself drives to 0 or 1."""

import inspect
import logging
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from pruning.allocation import Allocation, Uniform
from pruning.attachment import ELEMENTWISE, optimizers_in
from pruning.dynamic.codes.coding import Coding
from pruning.dynamic.codes.multiplying import CodedReads, Codes, check_unwrapped
from pruning.dynamic.codes.reading import readers
from pruning.dynamic.codes.targets import targets_of
from pruning.dynamic.regime import Regime, moment, starting
from pruning.errors import GranularityError, ScheduleError, ScoreError
from pruning.evidence import Evidence, accumulated
from pruning.granularity import Granularity
from pruning.masks import Masks
from pruning.selection import top
from pruning.structure import Channels

log = logging.getLogger("pruning")


class AutoPruner(Regime):
    """Codes v in (0, 1) multiply coupled units, and end as 0 or 1. Luo & Wu 2020 (AutoPruner).

    Every family of `Channels` has one code, v = σ(α·x), with x by a coding layer (`codes.Coding`) from a batch's
    activations: those that the first layer to read the family gets, after norms, ReLU and pooling. It multiplies what
    *every* layer reads of the family, so that coupled layers share it, behind residual sums too, and a network whose
    codes are zeros and ones is the masked one. α grows along a line, and λ·Σ (‖v‖₁ / C - r)² is added to the loss, a
    term a family. At `end` units with v > 1/2 stay, coding layers go, and the weights train on under the masks.

    While codes learn, a forward pass in eval mode, or without gradients, takes the codes of the last step as zeros and
    ones (v > 1/2): the network that would be left if the codes ended there, whatever is in its own batch. Before the
    first step it is the network as it was. Copies of the model are without codes.

    Coding layers train by an optimizer of their own, of the kind and with the options of the model's first parameter
    group: the authors train both by the same. Clipping the model's gradients leaves theirs as they are. The penalty is
    added in the backward pass, so that a reported loss is without it.

    How much stays follows from training: the penalty draws codes to `density` and may not get there. The log says how
    many units were asked for and how many stay. Families that `Channels` leaves out have no code.

    Unlike here, the authors' published code looks at activations before pooling; for MobileNet-v2, from which the
    defaults are, it has one α for all layers, which grows faster while any of them is undecided.

    Attributes:
        codings: the coding layer of each family.
        codes: those of the last step; empty before the first.
    """

    whole_batches: ClassVar[bool] = True

    def __init__(
        self,
        evidence: Evidence,
        optimizer: Optimizer,
        *,
        steps: int,
        density: float | None,
        seed: int = 0,
        granularity: Granularity | None = None,
        allocation: Allocation | None = None,
        penalty: float = 10.0,
        alpha: tuple[float, float] = (0.1, 100.0),
        rate: float = 1.0,
        final: float = 0.2,
        end: float = 0.75,
    ):
        """Multiply by codes from the next forward pass on.

        Args:
            evidence: model, prunable parameters and what lives at first.
            optimizer: of the weights; of torch.optim, element-wise.
            steps: optimizer steps of the whole training.
            density: share of units that codes are drawn to, in (0, 1].
            seed: of the first weights of coding layers.
            granularity: `Channels`. At least `minimum` units of a family stay, those of the largest codes; `pooling`
                and `normalise` are of scores, and unused.
            allocation: r of a family is the share of whole units that it would keep: `Uniform` if None, as in the
                paper, or ERK, Densities. Where families compete (Global) their codes have one term together.
            penalty: λ, in units of the loss.
            alpha: α at the first step and at the last one before `end`.
            rate: learning rate of coding layers, in units of that of the first parameter group.
            final: the last share of the steps before `end`, an epoch of the authors' five. There α of a family grows
                ten times as fast after a step at which less than 90 % of its codes were below 0.1 or above 0.9.
            end: share of the training in which codes learn, in (0, 1].

        Raises:
            ScheduleError: an argument out of range; an optimizer that is not element-wise; a model in a wrapper (DDP,
                `torch.compile`), as codes are of whole batches and multiply by hooks.
            GranularityError: other units than `Channels`, in multiples or in equal numbers; or a family that something
                else reads than Linear layers and convolutions.
            AllocationError: an allocation that needs scores (`Budget`), or a density that cannot be met.
        """
        self._last = moment(end, steps, "end")
        self._final = self._last - moment(final, max(1, self._last), "final")
        if not isinstance(alpha, Sequence) or len(alpha) != 2:
            raise ScheduleError(f"alpha={alpha!r}: give two values, at the first step and at the last, as [0.1, 100]")
        start, stop = alpha
        if self._last < 1 or not 0.0 < start <= stop or penalty < 0.0 or rate <= 0.0:
            raise ScheduleError(
                f"end={end}, alpha={tuple(alpha)}, penalty={penalty}, rate={rate}: need at least one step, "
                "0 < first alpha <= last alpha, a penalty of at least 0 and a rate above 0"
            )
        if not isinstance(granularity, Channels):
            kind = "single weights" if granularity is None else type(granularity).__name__
            raise GranularityError(
                f"auto_pruner: codes are of coupled channels, not of {kind}: give Channels(structure), "
                "granularity=channels"
            )
        check_unwrapped(evidence.model)
        alive = starting(evidence)
        like = {name: accumulated(parameter) for name, parameter in evidence.parameters.items()}
        self._pooled = granularity.gather({name: torch.ones_like(value) for name, value in like.items()}, alive)
        self._targets = targets_of(self._pooled.units, Uniform() if allocation is None else allocation, density)
        families = [family for family in granularity.families if family.name in self._targets]
        reading = readers(evidence.model, granularity.structure, families)
        self.codings = {}
        for family in families:
            lives = self._pooled.units[family.name].alive
            first = next(reader for reader in reading if bool(reader.reads(family.units).any()))
            assert lives is not None
            self.codings[family.name] = Coding(
                family, first, lives, next(iter(like.values())), float(start), f"codes {seed} {family.name}"
            )
        self._theirs = optimizers_in(optimizer)[-1]
        self._own = _alike(self._theirs, [t for coding in self.codings.values() for t in (coding.weight, coding.bias)])
        super().__init__(evidence.model, optimizer, alive)
        self._penalty, self._rate, self._stride = penalty, rate, (stop - start) / max(1, self._last - 1)
        self.codes: dict[str, Tensor] = {}
        self._fixed: dict[str, Tensor] = {}
        slices = {family.name: family.units for family in families}
        self._reads = CodedReads(self.model, reading, self.codings, slices, self._slope, self._zeros_and_ones)
        self._reads.listen()

    @property
    def needs_dense(self) -> bool:
        """As long as codes learn."""
        return self.step < self._last

    def before_step(self) -> None:
        """Coding layers take their step, and α grows."""
        if self.step >= self._last:
            return
        self.codes, self._fixed = self._reads.take(), {}
        (own,), theirs = self._own.param_groups, self._theirs.param_groups[0]
        own.update({name: value for name, value in theirs.items() if name != "params"})
        own["lr"] = theirs["lr"] * self._rate
        self._own.step()
        self._own.zero_grad()
        for name, coding in self.codings.items():
            fast = self.step >= self._final and coding.decided(self.codes[name]) < 0.9
            coding.alpha += self._stride * (10 if fast else 1)

    def after_step(self) -> None:
        """At the end, the masks."""
        super().after_step()
        if self.step == self._last:
            self._close()

    def finish(self) -> Masks:
        if self.step < self._last and self.codes:
            self._close()
        self._reads.stop()
        return super().finish()

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {
            "codes": self.codes,
            "alpha": {name: coding.alpha for name, coding in self.codings.items()},
            "coding": {name: (coding.weight.detach(), coding.bias.detach()) for name, coding in self.codings.items()},
            "coding_optimizer": self._own.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        with torch.no_grad():
            for name, coding in self.codings.items():
                coding.alpha = state["alpha"][name]
                for own, value in zip((coding.weight, coding.bias), state["coding"][name], strict=True):
                    own.copy_(value)
        self.codes = {name: code.to(self.codings[name].weight.device) for name, code in state["codes"].items()}
        self._fixed = {}
        self._own.load_state_dict(state["coding_optimizer"])
        self._reads.stop()
        if self.step < self._last:
            self._reads.listen()

    def _slope(self, name: str, codes: Codes) -> Tensor:
        """∂/∂v of λ·(‖v‖₁ / C - r)², the same for every code, as none is negative."""
        target = self._targets[name]
        total = torch.stack([codes[other].sum() for other in target.names]).sum()
        return 2 * self._penalty * (total - target.keep) / target.size**2

    def _zeros_and_ones(self) -> Codes | None:
        if self.codes and not self._fixed:
            self._fixed = {name: mask.to(self.codes[name].dtype) for name, mask in self._chosen().items()}
        return self._fixed or None

    def _chosen(self) -> dict[str, Tensor]:
        """Which units stay by the last codes: v > 1/2, or the largest where these are fewer than the least."""
        found = {}
        for name, code in self.codes.items():
            if not bool(code.isfinite().all()):
                raise ScoreError(
                    f"auto_pruner: {name}: its codes are no numbers, as the training has diverged: lower the learning "
                    "rate, or clip gradients"
                )
            found[name] = code > 0.5
            least = self._least(name)
            if int(found[name].sum()) < least:
                (found[name],) = top([code], least, [self.codings[name].alive])
        return found

    def _least(self, name: str) -> int:
        units = self._pooled.units[name]
        return min(units.minimum, units.live)

    def _close(self) -> None:
        chosen = self._chosen()
        self._report(chosen)
        self._reads.stop()
        found = self._pooled.expand(chosen)
        within = {name: mask & self.masks[name] if name in self.masks else mask for name, mask in found.items()}
        self.replace(Masks(dict(self.masks) | within))

    def _report(self, chosen: Mapping[str, Tensor]) -> None:
        for name, code in self.codes.items():
            above, least = int((code > 0.5).sum()), self._least(name)
            if above < least:
                log.warning(
                    "auto_pruner: %s: %d codes are above 1/2: the largest stay, so that %d do", name, above, least
                )
        targets = {id(target): target for target in self._targets.values()}.values()
        log.info(
            "auto_pruner: %d of %d units stay, %d were asked for; %d codes were still between 0.1 and 0.9",
            sum(int(mask.sum()) for mask in chosen.values()),
            sum(target.size for target in targets),
            sum(target.keep for target in targets),
            sum(int(((code >= 0.1) & (code <= 0.9)).sum()) for code in self.codes.values()),
        )


def _alike(optimizer: Optimizer, parameters: list[Tensor]) -> Optimizer:
    """An optimizer of `parameters` with the kind and options of `optimizer`'s first parameter group."""
    kind = type(optimizer)
    if kind not in ELEMENTWISE:
        raise ScheduleError(
            f"auto_pruner: coding layers train by an optimizer like the model's, and none can be made like a "
            f"{kind.__name__}: take an element-wise one of torch.optim, as SGD, Adam or AdamW"
        )
    taken = inspect.signature(kind).parameters
    options = {name: value for name, value in optimizer.param_groups[0].items() if name in taken and name != "params"}
    made: Optimizer = kind(parameters, **options)
    return made
