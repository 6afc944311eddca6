"""Figures that a paper could print, each with the numbers that it draws."""

from experiments.figures.curve import AXES, X, accuracy
from experiments.figures.style import COLOURS, LINES, MARKERS, STYLE, WIDTH, save

__all__ = ["AXES", "COLOURS", "LINES", "MARKERS", "STYLE", "WIDTH", "X", "accuracy", "save"]
