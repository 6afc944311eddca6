"""An adaptation of peft's put into the weights of a pruned network: its zeros stay, or it is said how many go."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pruning.errors import AdaptationError
from pruning.masks import Masks
from pruning.parameters import named


@dataclass(frozen=True)
class Merged:
    """A model with an adaptation in its weights.

    Attributes:
        model: the base model, without wrappers.
        filled: how many removed weights the adaptation would have filled; None without masks.
        masks: what is left of the masks: themselves, or without `keep` all that is not zero.
    """

    model: nn.Module
    filled: int | None
    masks: Masks | None


@torch.no_grad()
def merge(wrapped: nn.Module, masks: Masks | None = None, keep: bool = True) -> Merged:
    """Add an adaptation to the weights, in place: W + ΔW ⊙ mask, or W + ΔW without `keep`.

    The unmerged model computes with the whole ΔW, so a model with zeros kept is another one: evaluate what is merged.

    Args:
        wrapped: a model that peft has wrapped, whose method merges: LoRA, DoRA, IA3, SHiRA and others.
        masks: of the base model, by its own names; its removed weights must be zero.
        keep: whether removed weights stay zero.

    Raises:
        AdaptationError: no such model, a method that is not in the weights (prompts, prefixes), or weights that are
            not zero where they were removed.
        MaskError: the masks do not fit the base model.
    """
    unload = getattr(wrapped, "merge_and_unload", None)
    if not callable(unload):
        raise AdaptationError(
            f"{type(wrapped).__name__}: cannot be merged: give a model that peft has wrapped, by a method that acts in "
            "weights (prompts and prefixes do not)"
        )
    if masks is not None and not masks.agree(wrapped):
        raise AdaptationError("removed weights are not zero: apply the masks before the adaptation is trained")
    merged: Any = unload()
    if masks is None:
        return Merged(merged, None, None)
    parameters = named(merged)
    dense = {name: parameters[name].detach() != 0 for name in masks}
    filled = sum(int((dense[name] & ~mask.to(dense[name].device)).sum()) for name, mask in masks.items())
    if not keep:
        return Merged(
            merged, filled, Masks({name: dense[name] | mask.to(dense[name].device) for name, mask in masks.items()})
        )
    masks.apply_(merged)
    return Merged(merged, filled, masks)
