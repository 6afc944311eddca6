"""A training that runs sparsely whenever its regime has no use for the dense weights."""

import logging
from collections.abc import Collection, Mapping

from pruning.dynamic.regime import Regime
from pruning.errors import ExecutionError
from pruning.execution.choosing import ExecutionPolicy, masked
from pruning.execution.cutting import cut_dead, restore_dead
from pruning.execution.layout import features_first
from pruning.execution.switching import candidates, dense_execution, sparse_execution
from pruning.inputs import Inputs
from pruning.masks import Masks
from pruning.parameters import unwrapped
from pruning.structure import Structure

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

    With `FixedMasks` everything after the first `ready` is sparse. RigL and SET take their exchanges, and
    gradual pruning its prunings, on dense weights, a step each; movement, soft masks and codes learn from dense
    gradients at every step and stay dense while they do.

    Attributes:
        layers: the names of the weights that run sparsely now, each with the columns up to which its products are MKL's
            CSR ones (`Pattern.few`); None: the network is in its dense form.
    """

    def __init__(self, regime: Regime, policy: ExecutionPolicy, inputs: Inputs, structure: Structure | None = None):
        """Begin in the dense form.

        Args:
            regime: the masks, and when they change.
            policy: is asked whenever masks have changed: `auto`, `sparse` or `masked`.
            inputs: a batch as large as those to come.
            structure: of the model (`trace`), if nothing but its outputs is looked at; see `cut_dead`.

        Raises:
            ExecutionError: `regime` or `policy` is something else.
        """
        if not isinstance(regime, Regime):
            raise ExecutionError(
                f"{type(regime).__name__}: is no regime: give FixedMasks(model, optimizer, masks), RigL(…), …"
            )
        if not callable(policy):
            raise ExecutionError(f"policy={policy!r}: give one of pruning.execution.auto, sparse, masked")
        self.regime, self._policy, self._inputs, self._structure = regime, policy, inputs, structure
        self.layers: dict[str, int] | None = None
        self._chosen: tuple[Masks, Collection[str]] | None = None
        self._layouts: dict[tuple[str, ...], tuple[str, ...]] = {}  # of which layers, which are features first

    def ready(self) -> None:
        """Call it before every forward pass."""
        if self.regime.needs_dense:
            self.dense()
        elif self.layers is None and self._policy is not masked:
            masks = self.regime.masks
            if self._chosen is None or self._chosen[0] is not masks:
                if self._chosen is None and not candidates(self.regime.model, masks):
                    log.info("execution: no masked layer is a Linear or 1x1 convolution of float32 or float64 on a CPU")
                self._chosen = masks, self._policy(self.regime.model, masks, self._inputs)
            self.sparse(self._chosen[1])

    def sparse(self, layers: Collection[str]) -> None:
        """Let these layers run sparsely, and others without dead units, until the regime needs their weights.

        Warns once of an optimizer that cannot.
        """
        regime = self.regime
        possible = candidates(regime.model, regime.masks)
        for name in layers:
            if name not in possible:
                raise ExecutionError(f"{name}: is no layer that can run sparsely (see candidates()): choose others")
        regime.release(layers)
        try:
            names = sparse_execution(regime.model, regime.masks, regime.optimizer, layers=layers)
        except ExecutionError as error:
            regime.rebind()
            self._policy = masked
            log.warning("masked execution: %s", error)
            return
        few = layers if isinstance(layers, Mapping) else {}
        self.layers = {name: few.get(name, 0) for name in names}
        if names and names not in self._layouts:
            self._layouts[names] = features_first(regime.model, self._inputs)
        for path in self._layouts.get(names, ()):
            vars(unwrapped(regime.model).get_submodule(path))["row_major"] = False
        cut_dead(regime.model, regime.masks, self._structure)

    def dense(self) -> tuple[str, ...]:
        """Give the regime the dense weights; the names of those that ran sparsely until now."""
        if self.layers is None:
            return ()
        before, self.layers = self.layers, None
        restore_dead(self.regime.model)
        dense_execution(self.regime.model, self.regime.optimizer)
        self.regime.rebind()
        return tuple(before)
