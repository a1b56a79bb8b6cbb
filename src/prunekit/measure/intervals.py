"""How far a measured percentile may lie from the true one, where neighbours are alike."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy

Times = npt.NDArray[np.float64]

CONFIDENCE = 0.95
BATCHES = (5, 10, 20)
"""Into how many stretches a measurement is cut to see whether neighbours are alike."""


@dataclass(frozen=True)
class Interval:
    """A measured figure with the interval that holds the true one.

    Attributes:
        value: as measured.
        low: end of the interval; 0 where too few runs lie below to tell.
        high: the other end; infinite where too few runs lie above to tell.
        confidence: of the interval, in (0, 1).
        runs: that were measured.
        independent: runs that these are worth, because neighbours are alike; at most ``runs``.
    """

    value: float
    low: float
    high: float
    confidence: float
    runs: int
    independent: int

    @property
    def is_told(self) -> bool:
        """Whether there were enough runs for both ends."""
        return self.low > 0 and math.isfinite(self.high)

    @property
    def half_width(self) -> float:
        """How far the further end lies from the value, relative to the value; infinite without both ends."""
        return max(self.high - self.value, self.value - self.low) / self.value if self.is_told else math.inf

    def inverse(self, of: float) -> Interval:
        """The same of ``of / value``, which falls as the value rises: a throughput from a time."""
        low, high = of / self.high, of / self.low if self.low > 0 else math.inf
        return Interval(of / self.value, low, high, self.confidence, self.runs, self.independent)

    def as_dict(self) -> dict[str, Any]:
        """The same as what JSON can hold: an end that is not told is None."""
        low, high = self.low if self.low > 0 else None, self.high if math.isfinite(self.high) else None
        return {**asdict(self), "low": low, "high": high}


def interval_of_percentile(times: Times, percentile: float, *, confidence: float = CONFIDENCE) -> Interval:
    """A percentile of times or of quotients, with an interval that assumes nothing about their distribution.

    Of m independent runs the number that lie below the true percentile p is binomial (m, p). So the interval
    goes from the r-th smallest, where r is the largest number with ``P(fewer than r lie below) <= tail``, to
    the s-th, where s is the smallest with ``P(s or more lie below) <= tail``, and ``tail = (1 - confidence) /
    2``. An end that would lie beyond all runs is not told.

    Times drift with the machine, quotients of pairs less, but they do. So n runs count as the
    ``m = independent_runs(times, percentile)`` that they are worth, and the ranks are those of m runs times
    ``(n + 1) / (m + 1)``, rounded outward.

    Args:
        times: ``[runs]``, > 0, in the order in which they were measured.
        percentile: in (0, 100).
        confidence: in (0, 1).

    Source: Hahn, Meeker, 1991, Statistical Intervals, section 5.2; where all runs are independent it is the
    confidence interval of ``scipy.stats.quantile_test``. Deviation: the discount for dependence, as in
    Heidelberger, Lewis, 1984, Quantile Estimation in Dependent Sequences,
    https://doi.org/10.1287/opre.32.1.185, with batch means in the place of their spectrum.
    """
    share, runs = percentile / 100, len(times)
    independent = independent_runs(times, percentile)
    tail = (1 - confidence) / 2
    stretch = (runs + 1) / (independent + 1)
    first = math.floor(float(scipy.stats.binom.ppf(tail, independent, share)) * stretch + 1e-9)
    last = scipy.stats.binom.ppf(1 - tail, independent, share) + 1
    ordered, value = np.sort(times), float(np.percentile(times, percentile))
    low = float(ordered[first - 1]) if first >= 1 else 0.0
    high = math.inf
    if last <= independent:
        high = float(ordered[math.ceil(float(last) * stretch - 1e-9) - 1])
    return Interval(value, min(low, value), max(high, value), confidence, runs, independent)


def independent_runs(times: Times, percentile: float) -> int:
    """How many independent runs tell a percentile as well as these do, at most as many as there are.

    With batches of b runs in a row and ``below[i]`` the share of batch i that lies at or below the
    percentile p: the runs over ``max(1, b * variance(below) / (p * (1 - p)))``, which is about 1 for
    independent runs and b where each batch is all below or all above. Of 5, 10 and 20 batches
    (:data:`BATCHES`) those count that find the runs most alike: batches see only what is forgotten well
    within one of them, so slow drift takes a few long ones, and few alone are an uncertain estimate.

    Args:
        times: ``[runs]``, in order.
        percentile: in (0, 100).

    Source: batch means: Schmeiser, 1982, Batch Size Effects in the Analysis of Simulation Output,
    https://doi.org/10.1287/opre.30.3.556, who recommends 10 to 30. Deviations: the worst of three numbers of
    batches in the place of Student's quantile for one; never below 1, since batches that happen to agree are
    no evidence of runs that are better than independent.
    """
    below = times <= np.percentile(times, percentile)
    share = float(below.mean())
    if share in (0.0, 1.0):
        return len(times)
    alike = 1.0
    for batches in BATCHES:
        size = len(times) // batches
        if size < 2:  # Batches of one run say nothing about neighbours.
            break
        means = below[: batches * size].reshape(batches, size).mean(axis=1)
        alike = max(alike, size * float(means.var(ddof=1)) / (share * (1 - share)))
    return max(1, math.floor(len(times) / alike))


def fewest_runs(percentile: float, *, confidence: float = CONFIDENCE) -> int:
    """Independent runs without which a percentile has no interval: 6 for the median, 368 for the 99th.

    The smallest n with ``max(p, 1 - p) ** n <= (1 - confidence) / 2``: with fewer, even the largest run may
    lie below the percentile, or the smallest above it.
    """
    likelier = max(percentile, 100 - percentile) / 100
    return math.ceil(math.log((1 - confidence) / 2) / math.log(likelier))
