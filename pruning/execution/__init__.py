"""How masks are executed: as zeros in dense weights, or as layers that have the kept weights alone."""

from pruning.execution.alternating import Execution
from pruning.execution.choosing import ExecutionPolicy, auto, masked, sparse
from pruning.execution.crossover import Crossover
from pruning.execution.deploying import Deployed, deploy
from pruning.execution.saving import load, save
from pruning.execution.switching import candidates, dense_execution, sparse_execution, sparse_layers

__all__ = [
    "Crossover",
    "Deployed",
    "Execution",
    "ExecutionPolicy",
    "auto",
    "candidates",
    "dense_execution",
    "deploy",
    "load",
    "masked",
    "save",
    "sparse",
    "sparse_execution",
    "sparse_layers",
]
