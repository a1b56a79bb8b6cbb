"""Measuring a pruned model beside the dense one until the figure is as precise as the goal asks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from prunekit.errors import MeasurementError
from prunekit.measure import LatencyComparison, Runner, compare_latency
from prunekit.plan import Goal

FIRST_PAIRS = 40
MOST_PAIRS = 2000
SECONDS = 30.0
"""That one measurement may take."""

SHARE = 0.25
"""The half-width of the interval that is aimed at, as a share of the goal's tolerance."""

BEYOND = 20
"""Calls that should lie beyond a percentile for it to be told."""


@dataclass(frozen=True)
class Precision:
    """How well a speed-up is known.

    Attributes:
        half_width: of the interval of the speed-up, relative to its median.
        pairs: that were timed.
        needed: that would be needed for the asked tolerance, as intervals shrink with the root of the pairs.
    """

    half_width: float
    pairs: int
    needed: int


def precision(comparison: LatencyComparison, tolerance: float) -> Precision:
    """How well a comparison knows the speed-up, and what would be needed to know it to ``tolerance``."""
    speedup = comparison.speedup
    half = (speedup.high - speedup.low) / 2 / speedup.median
    return Precision(half, speedup.pairs, math.ceil(speedup.pairs * (half / tolerance) ** 2))


def measure_beside(
    dense: Runner,
    pruned: Runner,
    *,
    tolerance: float,
    percentile: float | None = None,
    seconds: float = SECONDS,
    seed: int = 0,
) -> LatencyComparison:
    """Compare two models with as many pairs as the tolerance needs, within the time given.

    Args:
        dense: the parent.
        pruned: the smaller model.
        tolerance: of the goal, relative.
        percentile: of the goal, where it has one: then enough calls lie beyond it.
        seconds: after which no further pair is begun.
        seed: of the orders.
    """
    wanted = SHARE * tolerance
    pairs = FIRST_PAIRS
    if percentile is not None:
        pairs = max(pairs, math.ceil(BEYOND / (1 - percentile / 100)))
    first = compare_latency(
        dense, pruned, pairs=pairs, min_pairs=8, warmup=5, max_seconds=seconds / 2, seed=seed
    )
    needed = precision(first, wanted).needed
    if needed <= first.speedup.pairs or first.stopped_early:
        return first
    return compare_latency(
        dense,
        pruned,
        pairs=min(MOST_PAIRS, max(needed, pairs)),
        min_pairs=8,
        warmup=1,
        max_seconds=seconds / 2,
        seed=seed + 1,
    )


def check_steady(comparison: LatencyComparison, goal: Goal) -> None:
    """Refuse a measurement that cannot tell whether a goal is met.

    Raises:
        MeasurementError: the interval of the speed-up is wider than the goal's tolerance.
    """
    known = precision(comparison, goal.tolerance)
    if known.half_width > goal.tolerance:
        raise MeasurementError(
            f"After {known.pairs} pairs the speed-up is known to {known.half_width:.1%} only; "
            f"{comparison.noise.statement}",
            expected=f"the {goal.tolerance:.1%} that the goal's tolerance asks for",
            where=f"goal {goal}",
            remedy=f"About {known.needed:,} pairs would be needed: give the measurement more time, use an "
            "idle machine, or raise the tolerance",
        )


def timed_figure(goal: Goal, comparison: LatencyComparison, batch: int) -> float | None:
    """What a goal asks about, where a comparison beside the dense model tells it; else None.

    Args:
        goal: of any kind.
        comparison: of the pruned model.
        batch: examples in a call.
    """
    if goal.kind == "speedup":
        return comparison.speedup.median
    if goal.kind == "latency_ms":
        return milliseconds(comparison, goal.percentile)
    if goal.kind == "throughput":
        return 1000 * batch / comparison.pruned.p50_ms
    return None


def milliseconds(comparison: LatencyComparison, percentile: float | None) -> float:
    """The latency of the pruned model, at a percentile or the median."""
    return float(np.percentile(comparison.pruned_ms, 50 if percentile is None else percentile))
