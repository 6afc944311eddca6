"""Adaptation: a sparse subnetwork, chosen by any scorer, is all that is trained; or another small update."""

from pruning.adaptation.adapters import Adapters
from pruning.adaptation.beside import Beside
from pruning.adaptation.budget import Budget, largest, parse_budget
from pruning.adaptation.combining import Conflict, combined, conflicts
from pruning.adaptation.delta import Applied, Change, Delta
from pruning.adaptation.growing import Regrown
from pruning.adaptation.merging import Merged, merge
from pruning.adaptation.prefixes import Prefixes
from pruning.adaptation.prompts import Prompt
from pruning.adaptation.support import choose_support
from pruning.adaptation.tuning import Tuning

__all__ = [
    "Adapters",
    "Applied",
    "Beside",
    "Budget",
    "Change",
    "Conflict",
    "Delta",
    "Merged",
    "Prefixes",
    "Prompt",
    "Regrown",
    "Tuning",
    "choose_support",
    "combined",
    "conflicts",
    "largest",
    "merge",
    "parse_budget",
]
