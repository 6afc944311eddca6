"""Which weights may go, and what is kept: scores in, masks out, exact to the last weight."""

from pruning import schedules, scorers
from pruning.evidence import Evidence
from pruning.execution.deploying import deploy
from pruning.masks import Masks
from pruning.parameters import prunable
from pruning.pipeline import prune

__all__ = ["Evidence", "Masks", "deploy", "prunable", "prune", "schedules", "scorers"]
