"""Tracking: where rows are sent besides."""

from experiments.tracking.base import Guarded, Nothing, TensorBoard, Tracker, Wandb, leave

__all__ = ["Guarded", "Nothing", "TensorBoard", "Tracker", "Wandb", "leave"]
