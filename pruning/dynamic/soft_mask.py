"""A learnable gate for every unit: hard-concrete noise while they learn, then the masks that they have found."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, Optimizer

from pruning.allocation import Allocation
from pruning.dynamic.regime import Regime, moment, starting
from pruning.errors import ScheduleError, ScoreError
from pruning.evidence import Evidence, Scores, accumulated
from pruning.granularity import TensorGranularity, Vectors
from pruning.layouts import LaidOut
from pruning.masks import Masks
from pruning.pipeline import prune
from pruning.seeding import generator


class SoftMask(Regime):
    """Gates z in [0, 1] multiply the weights of units; an L0 penalty closes them. Louizos et al. 2018, section 2.2.

    z = clip(s·(ζ - γ) + γ, 0, 1), s = σ((log u - log(1 - u) + log α) / β), u ~ U(0, 1), one draw a unit and a step; the
    penalty is λ times the expected share of gates that are open, each with probability σ(log α - β·log(-γ/ζ)). From
    `end` on the gates are what they are without noise: multiplied into their weights, and masks where they are closed.
    """

    def __init__(
        self,
        evidence: Evidence,
        optimizer: Optimizer,
        *,
        steps: int,
        density: float | None = None,
        seed: int = 0,
        granularity: TensorGranularity | None = None,
        allocation: Allocation | None = None,
        penalty: float = 1.0,
        rate: float = 0.05,
        start: float = 0.9,
        end: float = 0.75,
        temperature: float = 2 / 3,
        stretch: tuple[float, float] = (-0.1, 1.1),
    ):
        """Put a gate before every unit that lives.

        Args:
            evidence: model, prunable parameters and what lives at first.
            optimizer: of the weights.
            steps: optimizer steps of the whole training.
            density: of all units, in (0, 1], reached exactly: λ is moved, by `penalty` times how far the expected
                density lies above it, at every step, and at `end` the most open gates are kept. None: λ is `penalty`,
                and how much stays follows.
            seed: of the noise.
            granularity: what a gate multiplies; `Vectors(0)`, the output channels, if None.
            allocation: which gates compete where there is a density, as in `prune`.
            penalty: see `density`; in units of the loss.
            rate: learning rate of log α, by Adam of its own.
            start: how probably a gate is open at first, in (0, 1).
            end: share of the training in which gates learn, in (0, 1].
            temperature, stretch: β and (γ, ζ) of the hard-concrete distribution.

        Raises:
            ScheduleError: an argument out of range.
            ScoreError: a granularity whose units are not sums.
        """
        self._last = moment(end, steps, "end")
        low, high = stretch
        if self._last < 1 or not 0.0 < start < 1.0 or low >= 0.0 or high <= 1.0 or temperature <= 0.0:
            raise ScheduleError(
                f"end={end}, start={start}, stretch={stretch}, temperature={temperature}: need at least one step, "
                "0 < start < 1, a stretch beyond [0, 1] and a temperature above 0"
            )
        if granularity is not None and not isinstance(granularity, TensorGranularity):
            raise ScoreError(
                f"soft mask: a gate multiplies a unit of one tensor, {type(granularity).__name__} reach over several: "
                "give Vectors(0), or prune them by a scorer"
            )
        self._granularity = Vectors(0) if granularity is None else granularity
        if getattr(self._granularity, "pooling", "sum") != "sum":
            raise ScoreError("soft_mask: what a gate multiplies adds up over its weights: set pooling=sum")
        self._alive = starting(evidence)
        self._layouts = evidence.layouts
        super().__init__(evidence.model, optimizer, self._alive)
        self._density, self._penalty, self.seed = density, penalty, seed
        self._temperature, self._low, self._high = temperature, low, high
        self._multiplier = penalty if density is None else 0.0
        self._shift = temperature * math.log(-low / high)
        opened = math.log(start / (1 - start)) + self._shift
        self._allocation = allocation
        self._sizes = {
            name: self._pooled(name, self._alive[name].to(accumulated(p).dtype)) for name, p in self.parameters.items()
        }
        self.log_alpha = {
            name: torch.full_like(size, opened).requires_grad_(True) for name, size in self._sizes.items()
        }
        self._gates_optimizer = Adam(self.log_alpha.values(), lr=rate)
        self._weights: Scores = {name: p.detach().clone() for name, p in self.parameters.items()}
        self._draw()

    @property
    def needs_dense(self) -> bool:
        """As long as gates learn."""
        return self.step < self._last

    def before_step(self) -> None:
        """Gates take their step; the optimizer meets the weights themselves, with their own gradients."""
        if self.step >= self._last:
            return
        self._gates_optimizer.zero_grad()
        loss = self._multiplier * self.expected_density()
        for name, parameter in self.parameters.items():
            if parameter.grad is not None:
                gradient, weight = accumulated(parameter.grad), accumulated(self._weights[name])
                loss = loss + (self._gates[name] * self._pooled(name, gradient * weight)).sum()
                parameter.grad.mul_(self._expanded(name, self._gates[name].detach()).to(parameter.grad.dtype))
            with torch.no_grad():
                parameter.copy_(self._weights[name])
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own
        self._gates_optimizer.step()
        if self._density is not None:
            above = float(self.expected_density().detach()) - self._density
            self._multiplier = max(0.0, self._multiplier + self._penalty * above)

    def after_step(self) -> None:
        """Draw the next gates; at the end, the masks."""
        super().after_step()
        if self.step <= self._last:
            self._weights = {name: p.detach().clone() for name, p in self.parameters.items()}
            if self.step < self._last:
                self._draw()
            else:
                self._close()

    def finish(self) -> Masks:
        if self.step < self._last:
            self._close()
        return super().finish()

    def expected_density(self) -> Tensor:
        """The expected share of units whose gates are open, in [0, 1]; differentiable by log α."""
        opened = [(self._open(name) * (size > 0)).sum() for name, size in self._sizes.items()]
        return torch.stack(opened).sum() / sum(size.numel() for size in self._sizes.values())

    def state_dict(self) -> dict[str, Any]:
        gates = {name: value.detach() for name, value in self.log_alpha.items()}
        return super().state_dict() | {
            "log_alpha": gates,
            "gates_optimizer": self._gates_optimizer.state_dict(),
            "multiplier": self._multiplier,
            "weights": self._weights,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        with torch.no_grad():
            for name, value in self.log_alpha.items():
                value.copy_(state["log_alpha"][name])
        self._gates_optimizer.load_state_dict(state["gates_optimizer"])
        self._multiplier = state["multiplier"]
        self._weights = {name: value.to(self.parameters[name].device) for name, value in state["weights"].items()}
        if self.step < self._last:
            self._draw()

    def _draw(self) -> None:
        """New gates, a function of seed and step; the network computes with W·z until the next step."""
        draws = generator(f"gates {self.seed} {self.step}")
        self._gates = {}
        for name, log_alpha in self.log_alpha.items():
            u = torch.rand(log_alpha.shape, generator=draws).clamp(1e-6, 1 - 1e-6).to(log_alpha)
            self._gates[name] = self._stretched(((u.log() - (1 - u).log() + log_alpha) / self._temperature).sigmoid())
            self._multiply(name, self._gates[name].detach())

    @torch.no_grad()
    def _close(self) -> None:
        gates = {name: self._stretched(value.sigmoid()) for name, value in self.log_alpha.items()}
        if self._density is None:
            masks = Masks({name: self._expanded(name, z > 0) for name, z in gates.items()}) & self._alive
        else:
            scores = {
                name: self._expanded(name, log_alpha / self._sizes[name].clamp(min=1))
                for name, log_alpha in self.log_alpha.items()
            }
            masks = prune(
                LaidOut(scores, self._layouts), self._density, self._granularity, self._allocation, self._alive
            )
        for name, z in gates.items():
            self._multiply(name, z)
        self.replace(masks)

    def _multiply(self, name: str, gate: Tensor) -> None:
        with torch.no_grad():
            parameter = self.parameters[name]
            parameter.copy_(self._weights[name] * self._expanded(name, gate).to(parameter.dtype))

    def _open(self, name: str) -> Tensor:
        return (self.log_alpha[name] - self._shift).sigmoid()

    def _stretched(self, s: Tensor) -> Tensor:
        return (s * (self._high - self._low) + self._low).clamp(0, 1)

    def _pooled(self, name: str, values: Tensor) -> Tensor:
        return self._granularity.units(name, values, None, self._layouts[name]).scores

    def _expanded(self, name: str, values: Tensor) -> Tensor:
        return self._granularity.mask(values, self.parameters[name].shape, self._layouts[name])
