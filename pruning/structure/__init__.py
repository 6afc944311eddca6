"""Structure: find what belongs together, remove it, prove that nothing changed."""

from pruning.structure.budget import Budget
from pruning.structure.channels import Channels
from pruning.structure.dead import without_dead
from pruning.structure.depth import Depth, Skip, find_blocks
from pruning.structure.latency import LatencyTable, measure_latency
from pruning.structure.removing import TOLERANCE, remove, remove_
from pruning.structure.saving import load, save
from pruning.structure.structure import Structure
from pruning.structure.tracing import trace
from pruning.structure.verifying import verify

__all__ = [
    "TOLERANCE",
    "Budget",
    "Channels",
    "Depth",
    "LatencyTable",
    "Skip",
    "Structure",
    "find_blocks",
    "load",
    "measure_latency",
    "remove",
    "remove_",
    "save",
    "trace",
    "verify",
    "without_dead",
]
