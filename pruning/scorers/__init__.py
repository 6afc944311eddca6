"""Scorers: plain functions from `Evidence` to name → score, where higher = keep."""

from pruning.scorers.magnitude import lamp, magnitude
from pruning.scorers.random import random
from pruning.scorers.snip import snip
from pruning.scorers.taylor import taylor

__all__ = ["lamp", "magnitude", "random", "snip", "taylor"]
