"""Exact top-k over many tensors, streamed, with a fixed order of ties.

Nothing is concatenated or sorted as a whole, and all passes go over chunks that fit the cache. Of many scores, a sample
brackets the k-th largest; one pass counts what lies above and collects what lies within. Of few, or should the bracket
miss, floats are mapped to integers of the same order and a histogram of these is refined 16 bits at a time. Of equal
scores the earlier position (tensor order, then flat index) is kept, so every rank and every machine picks the same.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from pruning.errors import AllocationError, ScoreError

_CHUNK = 1 << 17  # elements: half a megabyte of float32, so that a chunk and its keys stay in the cache
_RADIX = 16  # bits a pass
_SAMPLE = 1 << 18  # scores of which the k-th largest is bracketed by a sample of as many, where there are 16 times more


def kept_count(density: float, total: int) -> int:
    """round_half_even(density · total): the one place where a share becomes a count."""
    return round(density * total)


def check_finite(name: str, scores: Tensor) -> None:
    """Raise `ScoreError` naming the tensor if a score is NaN or infinite: neither can be ranked."""
    if not scores.is_floating_point() or scores.numel() == 0:
        return
    low, high = torch.aminmax(scores.detach())  # NaN propagates into both; no temporary tensor
    if not (torch.isfinite(low) and torch.isfinite(high)):
        bad = int(scores.numel() - torch.isfinite(scores).sum())
        raise ScoreError(
            f"{name}: {bad} of {scores.numel()} scores are NaN or infinite: check the scorer, its data, and that the "
            "network has not diverged"
        )


def top(scores: Sequence[Tensor], keep: int, alive: Sequence[Tensor] | None = None) -> list[Tensor]:
    """Masks (bool, of the scores' shapes) of the `keep` largest of all `scores` together.

    Args:
        scores: finite tensors of any shape; half precision is compared as float32, float64 and integers as float64.
        keep: how many stay, from 0 to the number of candidates.
        alive: bool tensors of the scores' shapes; only `True` positions are candidates.

    Raises:
        AllocationError: `keep` exceeds the number of candidates.
    """
    candidates = sum(s.numel() for s in scores) if alive is None else sum(int(a.sum()) for a in alive)
    if not 0 <= keep <= candidates:
        raise AllocationError(f"cannot keep {keep} of {candidates} live units: ask for a lower density")
    if keep == 0:
        return [torch.zeros(s.shape, dtype=torch.bool, device=s.device) for s in scores]
    if keep == candidates:
        kept = [torch.ones(s.shape, dtype=torch.bool, device=s.device) for s in scores]
        return kept if alive is None else [a.clone() for a in alive]
    threshold, ties = _kth_largest(scores, keep, alive)
    return _write(scores, threshold, ties, alive)


def top_of_rows(scores: Tensor, keep: int, alive: Tensor | None = None) -> Tensor:
    """Mask of the `keep` largest in each row of `scores` [rows, length]; rows with fewer live units keep all of them.

    Ties: the earlier column. Every row competes for itself, so this is a stable sort along the row, in blocks of rows.
    """
    rows, length = scores.shape
    mask = torch.zeros(rows, length, dtype=torch.bool, device=scores.device)
    keep = min(keep, length)
    if keep == 0 or rows == 0:
        return mask
    step = max(1, _CHUNK // length)
    for start in range(0, rows, step):
        block = _comparable(scores[start : start + step])
        if alive is not None:
            block = block.masked_fill(~alive[start : start + step], -torch.inf)
        order = block.sort(dim=1, descending=True, stable=True).indices[:, :keep]
        mask[start : start + step].scatter_(1, order, True)
    return mask if alive is None else mask & alive


def _kth_largest(scores: Sequence[Tensor], keep: int, alive: Sequence[Tensor] | None) -> tuple[float, int]:
    """The `keep`-th largest score and how many of the scores equal to it are kept."""
    dtype = _common_dtype(scores)
    found = _in_bracket(scores, keep, alive, dtype) if sum(s.numel() for s in scores) > 16 * _SAMPLE else None
    if found is not None:
        return found
    bits = torch.finfo(dtype).bits
    low = -(1 << (bits - 1))  # the keys still in question are low … low + 2^width - 1
    for width in range(bits, 0, -_RADIX):
        above = _counts(scores, alive, dtype, low, width).flip(0).cumsum(0)  # how many lie in or above a bin
        nth_from_top = int(torch.searchsorted(above, keep))
        if nth_from_top > 0:
            keep -= int(above[nth_from_top - 1])
        low += (above.numel() - 1 - nth_from_top) << (width - _RADIX)
    return _float(low, dtype), keep


def _in_bracket(
    scores: Sequence[Tensor], keep: int, alive: Sequence[Tensor] | None, dtype: torch.dtype
) -> tuple[float, int] | None:
    """As `_kth_largest`, with one pass over the scores; None if the sample led astray. Exact in any case: it counts."""
    low, high = _bracket(scores, keep, alive, dtype)
    above, within = 0, []
    for chunk, live in _chunks(scores, alive, dtype):
        over = chunk > high
        near = chunk >= low
        if live is not None:
            over &= live
            near &= live
        above += _count(over)
        within.append(_where(chunk, near ^ over))
    if not above < keep <= above + sum(part.numel() for part in within):
        return None
    ordered = torch.cat(within).sort(descending=True).values
    threshold = ordered[keep - above - 1]
    ties = keep - above - _count(ordered > threshold)
    if ties == _count(ordered == threshold):  # all of them stay, so nobody has to look for ties
        return float(torch.nextafter(threshold, threshold.new_tensor(-torch.inf))), 0
    return float(threshold), ties


def _bracket(
    scores: Sequence[Tensor], keep: int, alive: Sequence[Tensor] | None, dtype: torch.dtype
) -> tuple[float, float]:
    """Two values between which the `keep`-th largest lies, by six standard deviations of its rank in a sample."""
    step = max(1, sum(s.numel() for s in scores) // _SAMPLE)
    parts, candidates = [], 0
    for position, tensor in enumerate(scores):
        part = tensor.detach().reshape(-1)[::step]
        if alive is not None:
            part = part[alive[position].reshape(-1)[::step]]
            candidates += int(alive[position].sum())
        else:
            candidates += tensor.numel()
        parts.append(part.to(dtype).cpu())
    ordered = torch.cat(parts).sort(descending=True).values
    share, size = keep / candidates, ordered.numel()
    margin = 6 * (size * share * (1 - share)) ** 0.5 + 16
    first, last = int(share * size - margin), int(share * size + margin)
    return (
        float(ordered[last]) if last < size else -torch.inf,
        float(ordered[first]) if first >= 0 and size else torch.inf,
    )


def _where(values: Tensor, mask: Tensor) -> Tensor:
    """`values[mask]`; NumPy's is several times as fast where little is kept."""
    if values.device.type != "cpu":
        return values[mask]
    return torch.from_numpy(values.numpy()[mask.numpy()])


def _count(mask: Tensor) -> int:
    if mask.device.type != "cpu":
        return int(mask.sum())
    return int(np.count_nonzero(mask.numpy()))


def _counts(
    scores: Sequence[Tensor], alive: Sequence[Tensor] | None, dtype: torch.dtype, low: int, width: int
) -> Tensor:
    """Histogram, in 2^16 bins, of the candidates whose keys lie in low … low + 2^width - 1. Shards' counts add up."""
    counts = torch.zeros(1 << _RADIX, dtype=torch.int64)
    shift = width - _RADIX
    everything = width == torch.finfo(dtype).bits
    lowest, highest = _float(low, dtype), _float(low + (1 << width) - 1, dtype)
    for chunk, live in _chunks(scores, alive, dtype):
        if live is not None:
            chunk = _where(chunk, live)
        if not everything:
            chunk = _where(chunk, (chunk >= lowest) & (chunk <= highest))
        index = (_keys(chunk) >> shift) - (low >> shift)
        # 0.0 passes for -0.0 in the comparison above, one bin too high: hence the cut
        counts += torch.bincount(index, minlength=1 << _RADIX)[: 1 << _RADIX].cpu()
    return counts


def _write(scores: Sequence[Tensor], threshold: float, ties: int, alive: Sequence[Tensor] | None) -> list[Tensor]:
    """Masks of what lies above `threshold`, and of the first `ties` positions that equal it."""
    masks = [torch.empty(s.shape, dtype=torch.bool, device=s.device) for s in scores]
    targets = (part for mask in masks for part in torch.split(mask.view(-1), _chunk_size(mask)))
    for (chunk, live), target in zip(_chunks(scores, alive, _common_dtype(scores)), targets, strict=True):
        torch.gt(chunk, threshold, out=target)
        if live is not None:
            target &= live
        if ties:
            equal = chunk == threshold if live is None else (chunk == threshold) & live
            found = _count(equal)
            if found <= ties:
                target |= equal
            else:
                target[equal.nonzero().view(-1)[:ties]] = True
            ties = max(0, ties - found)
    return masks


def _chunks(
    scores: Sequence[Tensor], alive: Sequence[Tensor] | None, dtype: torch.dtype
) -> Iterator[tuple[Tensor, Tensor | None]]:
    for position, tensor in enumerate(scores):
        size = _chunk_size(tensor)
        parts = torch.split(tensor.detach().reshape(-1), size)
        lives = [None] * len(parts) if alive is None else torch.split(alive[position].reshape(-1), size)
        for part, live in zip(parts, lives, strict=True):
            yield part.to(dtype), live


def _chunk_size(tensor: Tensor) -> int:
    """Small chunks for a processor's cache; on an accelerator a whole tensor, where each launch costs more."""
    return _CHUNK if tensor.device.type == "cpu" else max(1, tensor.numel())


def _compared_as(dtype: torch.dtype) -> torch.dtype:
    """float32 holds every half exactly, float64 every score type but 64-bit integers above 2^53."""
    return torch.float32 if dtype in (torch.float32, torch.float16, torch.bfloat16) else torch.float64


def _common_dtype(scores: Sequence[Tensor]) -> torch.dtype:
    return torch.float64 if any(_compared_as(s.dtype) == torch.float64 for s in scores) else torch.float32


def _comparable(scores: Tensor) -> Tensor:
    return scores.detach().to(_compared_as(scores.dtype))


def _keys(chunk: Tensor) -> Tensor:
    """Integers in the order of the floats; -0.0 and 0.0 become the same key."""
    bits = (chunk + 0.0).view(torch.int32 if chunk.dtype == torch.float32 else torch.int64)
    largest = torch.iinfo(bits.dtype).max
    return bits ^ ((bits >> (torch.iinfo(bits.dtype).bits - 1)) & largest)


def _float(key: int, dtype: torch.dtype) -> float:
    """The float of a key: `_keys` undone; keys beyond the infinities are clamped to them."""
    integer = torch.int32 if dtype == torch.float32 else torch.int64
    infinity = int(torch.tensor(torch.inf, dtype=dtype).view(integer))
    key = min(max(key, -infinity - 1), infinity)
    bits = key if key >= 0 else key ^ torch.iinfo(integer).max
    return float(torch.tensor(bits, dtype=integer).view(dtype))
