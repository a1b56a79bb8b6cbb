"""Paired differences between cells, with one interval over seeds and one over test examples."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

from prunekit.evaluate.statistics import paired_interval

CONFIDENCE, RESAMPLES = 0.95, 10_000

CONFIRMED, REFUTED, NOT_SEPARATED = "CONFIRMED", "REFUTED", "NOT SEPARATED"


@dataclass(frozen=True)
class Difference:
    """How much better one cell is than another, in the unit of the metric.

    Attributes:
        mean: over seeds and test examples.
        by_seed: the mean of each seed.
        over_seeds: interval over the seeds; infinite with a single one.
        over_examples: interval over the test examples, for these seeds.
    """

    mean: float
    by_seed: tuple[float, ...]
    over_seeds: tuple[float, float]
    over_examples: tuple[float, float]

    @property
    def low(self) -> float:
        """The lower of the lower ends: what both intervals agree to lie above."""
        return min(self.over_seeds[0], self.over_examples[0])

    @property
    def high(self) -> float:
        """The higher of the higher ends."""
        return max(self.over_seeds[1], self.over_examples[1])


def difference(first: np.ndarray, second: np.ndarray) -> Difference:
    """How much better ``first`` is than ``second``.

    The interval over seeds is Student's, of the paired differences of the seeds; the one over examples is the
    bootstrap of the differences of each test example, averaged over the seeds. The first says what other
    parents and orders of the data would change, the second what other test examples would.

    Args:
        first: ``[seeds, examples]``, the quality of each example, such as bool for right.
        second: the same seeds and examples.
    """
    apart = first.astype(np.float64) - second.astype(np.float64)
    by_seed = apart.mean(axis=1)
    found = paired_interval(
        apart.mean(axis=0), confidence=CONFIDENCE, resamples=RESAMPLES, rng=np.random.default_rng(0)
    )
    return Difference(
        mean=float(apart.mean()),
        by_seed=tuple(float(one) for one in by_seed),
        over_seeds=student(by_seed),
        over_examples=(found.low, found.high),
    )


def student(values: np.ndarray) -> tuple[float, float]:
    """Student's interval of the mean: ``mean -+ t(n - 1) * s / sqrt(n)``."""
    if len(values) < 2:
        return -math.inf, math.inf
    reach = stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return float(values.mean() - reach), float(values.mean() + reach)


def better(found: Difference) -> str:
    """The verdict on "the first is better than the second": both intervals have to say so."""
    return _verdict(found, 0.0)


def no_worse(found: Difference, margin: float) -> str:
    """The verdict on "the first is no worse than the second by more than ``margin``"."""
    return _verdict(found, -margin)


def together(verdicts: list[str]) -> str:
    """Of a claim that says all of it: refuted where one is, confirmed where all are."""
    if not verdicts:
        return NOT_SEPARATED
    if REFUTED in verdicts:
        return REFUTED
    return CONFIRMED if set(verdicts) == {CONFIRMED} else NOT_SEPARATED


def _verdict(found: Difference, line: float) -> str:
    if found.low > line:
        return CONFIRMED
    return REFUTED if found.high < line else NOT_SEPARATED
