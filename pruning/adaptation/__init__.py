"""Adaptation: a sparse subnetwork, chosen by any scorer, is all that is trained; or another small update."""

from pruning.adaptation.delta import Applied, Change, Delta
from pruning.adaptation.tuning import Tuning

__all__ = ["Applied", "Change", "Delta", "Tuning"]
