"""Codes: factors in [0, 1] of coupled units, made of a batch's activations, where layers read the units."""
