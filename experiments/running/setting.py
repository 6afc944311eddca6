"""Setting of a run: its basis, and the units, granularity and allocation of its model, built when first needed."""

from __future__ import annotations

import inspect
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from hydra.utils import get_object

from experiments.configuration.targets import instantiate, short_name
from experiments.data.examples import take
from experiments.running.basis import Basis
from experiments.running.parts import made_from
from pruning.errors import ConfigurationError
from pruning.structure import trace

if TYPE_CHECKING:  # their code counts where the configuration names it
    from pruning.allocation import Allocation
    from pruning.granularity import Granularity
    from pruning.structure import Structure


_TRACED = ("model", "seed", "task", "data.load")
"""Fields of the configuration that coupled units depend on: units are found by running the model on examples."""


class Setting(Basis):
    """All that the stages of a run share."""

    def narrowed(self, width: float) -> Setting:
        """The same setting with all hidden widths of the model multiplied by `width`, an option that it has."""
        target = get_object(self.whole.model["_target_"])
        given = {"width": inspect.signature(target).parameters["width"].default} | self.whole.model
        model = given | {"width": width * given["width"]}
        return replace(self, whole=replace(self.whole, model=model), made={"splits": self.splits})

    @made_from(*_TRACED)
    def structure(self) -> Structure:
        """The coupled units of the model; they depend on its form, not on its weights."""
        return trace(self.new_model(), self.task.inputs(take(self.splits.train, 2)))

    @made_from("granularity")
    def structured(self) -> bool:
        """Whether units that are coupled across layers are pruned: then they are also removed."""
        return isinstance(instantiate("granularity", self.config.granularity), partial)

    @made_from("granularity", *_TRACED)
    def granularity(self) -> Granularity:
        """The units that are removed as a whole."""
        made = instantiate("granularity", self.config.granularity)
        granularity: Granularity = made(self.structure) if isinstance(made, partial) else made
        return granularity

    @made_from("allocation", "granularity", *_TRACED)
    def allocation(self) -> Allocation:
        """The rule by which a density is shared among layers."""
        made = instantiate("allocation", self.config.allocation)
        if not isinstance(made, partial):
            allocation: Allocation = made
            return allocation
        if not self.structured:
            raise ConfigurationError(
                f"allocation={short_name(self.config.allocation)}: a budget is of whole channels: set "
                "granularity=channels"
            )
        budget: Allocation = made(self.structure)
        return budget
