"""Figures that a paper could print, each with the numbers that it draws."""

from experiments.results.figures.curve import AXES, X, accuracy
from experiments.results.figures.style import COLOURS, LINES, MARKERS, STYLE, WIDTH, save

__all__ = ["AXES", "COLOURS", "LINES", "MARKERS", "STYLE", "WIDTH", "X", "accuracy", "save"]
