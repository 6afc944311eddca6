"""The k-th largest of many: a sample brackets it, and one pass counts what lies above and collects what lies within.

Should the bracket miss, a histogram decides. The answer is exact in any case: it is counted.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import chain

import numpy as np

from pruning.selection import histogram, pieces
from pruning.selection.arrays import Values, on_host, true, where
from pruning.selection.histogram import Threshold
from pruning.selection.pieces import Run

FEW = 1 << 21  # scores: so few are ranked without a sample, as NumPy's partition uses vectors where the cache holds it
SAMPLE = 1 << 18  # scores in a sample at most

_PRIMES = 2 * 3 * 5 * 7 * 11 * 13


def kth_largest(found: Sequence[Run], keep: int, candidates: int) -> Threshold:
    """The `keep`-th largest of `candidates` scores; what else `found` holds is NaN."""
    total = sum(run.size for run in found)
    answer = None if total <= FEW else _within(found, keep, total, *_bracket(found, keep, candidates, total))
    if answer is None and total <= pieces.HELD:
        values = np.concatenate([on_host(piece) for piece in chain.from_iterable(found)])
        return _among(values if candidates == total else values[~np.isnan(values)], keep)
    return answer or histogram.kth_largest(found, keep)


def _among(values: Values, keep: int) -> Threshold:
    """Of an array that may be reordered. By one place: NumPy partitions by two without vectors, ten times slower."""
    place = values.size - keep
    values.partition(place)
    threshold = values[place]
    if place == 0 or values[:place].max() < threshold:
        return Threshold(float(threshold), None)
    return Threshold(float(threshold), keep - true(values[place:] > threshold))


def _within(found: Sequence[Run], keep: int, total: int, low: float, high: float) -> Threshold | None:
    """As `kth_largest` if it lies in low … high, else None.

    Values equal to an end are only counted, as there may be any number of them, and only if the answer is not between.
    """
    above, size, between = 0, 0, []
    for piece in chain.from_iterable(found):
        upper = piece >= high
        above += true(upper)
        between.append(where(piece, (piece > low) > upper))  # of booleans, a > b is a and not b
        size += between[-1].shape[0]
        if size > pieces.CHUNK + total // 4:
            return None
    if above < keep <= above + size:
        return _among(np.concatenate([on_host(part) for part in between]), keep - above)
    end = high if keep <= above else low
    above = sum(true(piece > end) for piece in chain.from_iterable(found))
    equal = sum(true(piece == end) for piece in chain.from_iterable(found))
    if not above < keep <= above + equal:
        return None
    return Threshold(end, None if keep == above + equal else keep - above)


def _bracket(found: Sequence[Run], keep: int, candidates: int, total: int) -> tuple[float, float]:
    """Two values between which the `keep`-th largest lies, by four standard deviations of its rank in a sample."""
    sample = _sample(chain.from_iterable(found), max(total // SAMPLE, round(total ** (1 / 3))))
    if candidates < total:
        sample = sample[~np.isnan(sample)]
    size, removed = sample.size, 1 - keep / candidates
    margin = 4 * math.sqrt(size * removed * (1 - removed)) + 8
    first, last = math.floor(size * removed - margin), math.ceil(size * removed + margin)
    places = [place for place in (first, last) if 0 <= place < size]
    if places:
        sample.partition(places)
    return (
        float(sample[first]) if first in places else -math.inf,
        float(sample[last]) if last in places else math.inf,
    )


def _sample(found: Iterable[Values], step: int) -> Values:
    """One value of every `step`, or of a few more, so that no period of the scores, as rows have one, divides it."""
    while math.gcd(step, _PRIMES) > 1:
        step += 1
    parts, start = [], 0
    for piece in found:
        parts.append(on_host(piece[-start % step :: step]))
        start += piece.shape[0]
    return np.concatenate(parts)
