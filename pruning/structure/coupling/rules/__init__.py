"""What each ATen operator does to labels; one file a family, one function a kind of operator."""

from pruning.structure.coupling.labels import Rule
from pruning.structure.coupling.rules import (
    elementwise,
    lookup,
    normalisation,
    pieces,
    products,
    recurrent,
    reductions,
    shapes,
    transforms,
)

RULES: dict[str, Rule] = {
    **elementwise.RULES,
    **shapes.RULES,
    **pieces.RULES,
    **products.RULES,
    **reductions.RULES,
    **normalisation.RULES,
    **lookup.RULES,
    **recurrent.RULES,
    **transforms.RULES,
}
"""Operator name → rule."""
