"""Tracking: where rows are sent besides."""

from experiments.tracking.base import Guarded, Nothing, Tracker, leave
from experiments.tracking.tensorboard import TensorBoard
from experiments.tracking.wandb import Wandb

__all__ = ["Guarded", "Nothing", "TensorBoard", "Tracker", "Wandb", "leave"]
