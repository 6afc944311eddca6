"""The mean of a sample and its confidence interval, by Student's t or by the bootstrap."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from pruning.errors import RecordsError


@dataclass(frozen=True)
class Interval:
    """A mean over `n` values, its two-sided confidence interval, and their sample standard deviation (n − 1).

    All in the values' own unit. For n = 1, `low`, `high` and `std` are NaN: one value says nothing of its spread.
    """

    mean: float
    low: float
    high: float
    std: float
    n: int


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Student's t-interval of the mean: mean ± t(n − 1, (1 + confidence) / 2) · std / √n.

    `values` has shape (n,) with n ≥ 1; `confidence` lies in (0, 1). The values are taken as independent draws, near
    normal: with three seeds t is 4.3, so the interval is wide, and that is the truth of three seeds. It may reach
    beyond what is possible (an accuracy above 1); it is not cut. Student 1908, "The probable error of a mean".

    Raises `RecordsError` for no values or a value that is not finite, `ValueError` for another confidence.
    """
    sample = _sample(values, confidence)
    n, mean = sample.size, float(sample.mean())
    if n == 1:
        return Interval(mean, math.nan, math.nan, math.nan, 1)
    std = float(sample.std(ddof=1))
    half = float(stats.t.ppf((1 + confidence) / 2, n - 1)) * std / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, std, n)


def bootstrap_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """The percentile bootstrap interval of the mean, of 10,000 resamples drawn with a fixed seed.

    Arguments and errors as those of `mean_interval`. It supposes nothing of the distribution, and never leaves the
    range of the values: of few seeds it is narrower than it says, since what was not drawn cannot be resampled.
    Efron 1979, "Bootstrap methods: another look at the jackknife".
    """
    sample = _sample(values, confidence)
    n, mean = sample.size, float(sample.mean())
    if n == 1:
        return Interval(mean, math.nan, math.nan, math.nan, 1)
    found = stats.bootstrap(
        (sample,),
        np.mean,
        n_resamples=10_000,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Interval(mean, float(found.low), float(found.high), float(sample.std(ddof=1)), n)


INTERVALS: Mapping[str, Callable[[Sequence[float]], Interval]] = {"t": mean_interval, "bootstrap": bootstrap_interval}
"""The intervals by the names that commands use."""
NAMES = {"t": "t-interval", "bootstrap": "bootstrap interval"}
"""What figures and tables call them."""


def written(mean: float, low: float, high: float, interval: str, digits: int = 4, sign: str = "±") -> str:
    """ "94.10 ± 0.35"; of the bootstrap, which is not symmetric, "94.10 [93.70, 94.42]"; the mean alone for one value.

    `sign` stands between the mean and half of the interval, where "±" cannot be shown.
    """
    text = f"{mean:.{digits}f}"
    if math.isnan(low):
        return text
    if interval == "t":
        return f"{text} {sign} {(high - low) / 2:.{digits}f}"
    return f"{text} [{low:.{digits}f}, {high:.{digits}f}]"


def described(interval: str, sign: str = "±") -> str:
    """Caption for what `written` returns: "mean ± half of the 95 % t-interval"."""
    name = NAMES[interval]
    return f"mean {sign} half of the 95 % {name}" if interval == "t" else f"mean and 95 % {name}"


def _sample(values: Sequence[float], confidence: float) -> np.ndarray:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence}: it must lie between 0 and 1, for example 0.95")
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or sample.size == 0:
        raise RecordsError(f"no mean of values of shape {sample.shape}: give at least one value, in one dimension")
    if not np.isfinite(sample).all():
        raise RecordsError(f"no mean of {sample.tolist()}: a value is not finite; leave out that run or repeat it")
    return sample
