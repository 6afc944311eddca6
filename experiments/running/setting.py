"""Setting of a run: its basis, and the units, granularity and allocation of its model, built when first needed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING

from experiments.configuration.targets import instantiate, short_name
from experiments.data.examples import take
from experiments.running.basis import Basis
from pruning.errors import ConfigurationError
from pruning.structure import trace

if TYPE_CHECKING:  # their code counts where the configuration names it
    from pruning.allocation import Allocation
    from pruning.granularity import Granularity
    from pruning.structure import Structure


@dataclass(frozen=True)
class Setting(Basis):
    """All that the stages of a run share."""

    def narrowed(self, width: float) -> Setting:
        """The same setting with all hidden widths of the model multiplied by `width`."""
        model = self.config["model"] | {"width": width * self.config["model"].get("width", 1.0)}
        return replace(self, config=self.config | {"model": model}, loaded=self.splits)

    @cached_property
    def structure(self) -> Structure:
        """The coupled units of the model; they depend on its form, not on its weights."""
        return trace(self.new_model(), self.task.inputs(take(self.splits.train, 2)))

    @property
    def structured(self) -> bool:
        """Whether units that are coupled across layers are pruned: then they are also removed."""
        return isinstance(instantiate("granularity", self.config["granularity"]), partial)

    @cached_property
    def granularity(self) -> Granularity:
        """The units that are removed as a whole."""
        made = instantiate("granularity", self.config["granularity"])
        granularity: Granularity = made(self.structure) if isinstance(made, partial) else made
        return granularity

    @cached_property
    def allocation(self) -> Allocation:
        """The rule by which a density is shared among layers."""
        made = instantiate("allocation", self.config["allocation"])
        if not isinstance(made, partial):
            allocation: Allocation = made
            return allocation
        if not self.structured:
            raise ConfigurationError(
                f"allocation={short_name(self.config['allocation'])}: a budget is of whole channels: set "
                "granularity=channels"
            )
        budget: Allocation = made(self.structure)
        return budget
