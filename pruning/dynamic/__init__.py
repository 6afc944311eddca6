"""Masks that change while a network trains. Every regime is an object with `before_step`, `after_step` and `finish`."""

from pruning.dynamic.auto_pruner import AutoPruner
from pruning.dynamic.gradual import Gradual
from pruning.dynamic.movement import Movement
from pruning.dynamic.regime import FixedMasks, Regime
from pruning.dynamic.regrowth import SET, RigL
from pruning.dynamic.soft_mask import SoftMask

__all__ = ["SET", "AutoPruner", "FixedMasks", "Gradual", "Movement", "Regime", "RigL", "SoftMask"]
