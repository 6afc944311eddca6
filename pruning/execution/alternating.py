"""A training that runs sparsely whenever its regime has no use for the dense weights."""

import logging
from collections.abc import Sequence
from functools import cached_property

from pruning.dynamic.held import Held
from pruning.errors import ExecutionError, StructureError
from pruning.execution.choosing import Choose, masked
from pruning.execution.cutting import can_be_cut, cut_dead, restore_dead
from pruning.execution.switching import dense_execution, sparse_execution
from pruning.inputs import Inputs
from pruning.masks import Masks
from pruning.parameters import unwrapped
from pruning.structure import Structure, trace

log = logging.getLogger("pruning")


class Execution:
    """Keeps the network of a regime in the form that its next step needs.

    In a training loop of one's own, beside what the regime needs:

        execution = Execution(regime, auto, inputs)
        for batch in loader:
            execution.ready()
            optimizer.zero_grad()
            loss(model, batch).backward()
            regime.before_step()
            optimizer.step()
            regime.after_step()
        execution.dense()
        masks = regime.finish()

    With masks that hold (`Held`) everything after the first `ready` is sparse. RigL and SET take their exchanges, and
    gradual pruning its prunings, on dense weights, a step each; movement and soft masks learn from dense gradients at
    every step and stay dense while they do.

    Attributes:
        layers: the names of the weights that run sparsely now; None: the network is in its dense form.
    """

    def __init__(self, regime: Held, choose: Choose, inputs: Inputs):
        """`choose` is asked whenever masks have changed, with `inputs`, a batch as large as those to come."""
        self.regime, self._choose, self._inputs = regime, choose, inputs
        self.layers: tuple[str, ...] | None = None
        self._chosen: tuple[Masks, tuple[str, ...]] | None = None

    def ready(self) -> None:
        """Call it before every forward pass."""
        if self.regime.needs_dense:
            self.dense()
        elif self.layers is None and self._choose is not masked:
            masks = self.regime.masks
            if self._chosen is None or self._chosen[0] is not masks:
                self._chosen = masks, self._choose(self.regime.model, masks, self._inputs)
            self.sparse(self._chosen[1])

    def sparse(self, layers: Sequence[str]) -> None:
        """Let these layers run sparsely, and others without dead units, until the regime needs their weights.

        An optimizer that cannot is told once.
        """
        regime = self.regime
        structure = self._structure if can_be_cut(regime.model, layers) else None
        regime.release(layers)
        try:
            self.layers = sparse_execution(regime.model, regime.masks, regime.optimizer, layers=layers)
        except ExecutionError as error:
            regime.rebind()
            self._choose = masked
            log.warning("masked execution: %s", error)
        else:
            cut_dead(regime.model, regime.masks, structure)

    def dense(self) -> tuple[str, ...]:
        """Give the regime the dense weights; the names of those that ran sparsely until now."""
        if self.layers is None:
            return ()
        before, self.layers = self.layers, None
        restore_dead(self.regime.model)
        dense_execution(self.regime.model, self.regime.optimizer)
        self.regime.rebind()
        return before

    @cached_property
    def _structure(self) -> Structure | None:
        """By which dead units are known; None where that cannot be found out."""
        try:
            return trace(unwrapped(self.regime.model), self._inputs)
        except StructureError as error:
            log.debug("units without a reader are not looked for: %s", error)
            return None
