"""Structure: find what belongs together, remove it, prove that nothing changed."""

from pruning.structure.choosing.budget import Budget
from pruning.structure.choosing.channels import Channels
from pruning.structure.choosing.dead import without_dead
from pruning.structure.choosing.depth import Depth
from pruning.structure.choosing.influence import block_influence
from pruning.structure.choosing.latency import LatencyTable, measure_latency
from pruning.structure.coupling.structure import Structure
from pruning.structure.removing.blocks import Skip, find_blocks
from pruning.structure.removing.remove import remove, remove_
from pruning.structure.removing.saving import load, save
from pruning.structure.removing.verifying import TOLERANCE, verify
from pruning.structure.tracing import trace

__all__ = [
    "TOLERANCE",
    "Budget",
    "Channels",
    "Depth",
    "LatencyTable",
    "Skip",
    "Structure",
    "block_influence",
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
