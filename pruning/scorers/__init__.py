"""Scorers: plain functions from `Evidence` to name → score, where higher = keep."""

from pruning.scorers.activation import wanda
from pruning.scorers.change import change
from pruning.scorers.controls import absolute, inverted, layer_shuffled
from pruning.scorers.fisher import fisher
from pruning.scorers.gradient import gradient
from pruning.scorers.grasp import grasp
from pruning.scorers.hessian import obd
from pruning.scorers.magnitude import lamp, magnitude
from pruning.scorers.movement import Movement, movement
from pruning.scorers.obs import obs, woodfisher
from pruning.scorers.random import random
from pruning.scorers.snip import snip
from pruning.scorers.synflow import synflow
from pruning.scorers.taylor import taylor

__all__ = [
    "Movement",
    "absolute",
    "change",
    "fisher",
    "gradient",
    "grasp",
    "inverted",
    "lamp",
    "layer_shuffled",
    "magnitude",
    "movement",
    "obd",
    "obs",
    "random",
    "snip",
    "synflow",
    "taylor",
    "wanda",
    "woodfisher",
]
