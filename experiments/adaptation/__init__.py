"""Adaptations of a network, each of which trains little of it: one file, and one YAML, for each."""

from experiments.adaptation.inserted import Bottlenecks, Prefix, PromptTuning
from experiments.adaptation.low_rank import LowRank
from experiments.adaptation.method import Attached, Method
from experiments.adaptation.rescaling import Rescaling
from experiments.adaptation.sparse import Sparse
from experiments.adaptation.whole import Whole

__all__ = ["Attached", "Bottlenecks", "LowRank", "Method", "Prefix", "PromptTuning", "Rescaling", "Sparse", "Whole"]
