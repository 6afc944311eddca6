"""A training that runs sparsely whenever its regime has no use for the dense weights."""

import logging
from collections.abc import Sequence

from pruning.dynamic.held import Held
from pruning.errors import ExecutionError
from pruning.execution.choosing import Choose, masked
from pruning.execution.switching import dense_execution, sparse_execution
from pruning.inputs import Inputs
from pruning.masks import Masks

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
        layers: the names of the weights that run sparsely now.
    """

    def __init__(self, regime: Held, choose: Choose, inputs: Inputs):
        """`choose` is asked whenever masks have changed, with `inputs`, a batch as large as those to come."""
        self.regime, self._choose, self._inputs = regime, choose, inputs
        self.layers: tuple[str, ...] = ()
        self._asked: Masks | None = None

    def ready(self) -> None:
        """Call it before every forward pass."""
        if self.regime.needs_dense:
            self.dense()
        elif not self.layers and self._asked is not self.regime.masks:
            self._asked = self.regime.masks
            layers = self._choose(self.regime.model, self.regime.masks, self._inputs)
            if layers:
                self.sparse(layers)

    def sparse(self, layers: Sequence[str]) -> None:
        """Let these layers run sparsely until the regime needs their weights. An optimizer that cannot is told once."""
        regime = self.regime
        regime.release(layers)
        try:
            self.layers = sparse_execution(regime.model, regime.masks, regime.optimizer, layers=layers)
        except ExecutionError as error:
            regime.rebind()
            self._choose = masked
            log.warning("masked execution: %s", error)

    def dense(self) -> tuple[str, ...]:
        """Give the regime the dense weights; the names of those that ran sparsely until now."""
        before = self.layers
        if before:
            dense_execution(self.regime.model, self.regime.optimizer)
            self.regime.rebind()
            self.layers, self._asked = (), None
        return before
