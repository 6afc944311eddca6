"""Exact top-k over many tensors, streamed, with a fixed order of ties.

Of equal scores the earlier position (tensor order, then flat index) is kept, so every rank and every machine picks the
same. Nothing is sorted as a whole, and no large tensor is copied: see `pruning.selection.pieces`.
"""

from pruning.selection.finite import check_all_finite, check_finite
from pruning.selection.pieces import count, elements
from pruning.selection.rows import top_of_rows
from pruning.selection.together import kept_count, top, top_share

__all__ = ["check_all_finite", "check_finite", "count", "elements", "kept_count", "top", "top_of_rows", "top_share"]
