"""Measuring a pruned model beside the dense one until the figures are as precise as the goals ask."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from prunekit.errors import MeasurementError
from prunekit.measure import (
    Interval,
    LatencyComparison,
    Runner,
    compare_latency,
    fewest_runs,
    interval_of_percentile,
)
from prunekit.measure.latency import MOST_PAIRS, joined
from prunekit.plan import Goal

FIRST_PAIRS = 40
MOST_SECONDS = 30.0
"""That one measurement may take, where more were not asked for."""

SHARE = 0.25
"""The half-width of the interval that is usually aimed at, as a share of the goal's tolerance."""

PATIENCE = 240.0
"""Seconds that one may take where a first one could not tell and the figure is to count."""

MARGIN = 1.5
"""How many times as many pairs such a figure gets as should be enough."""

BEYOND = 20
"""Calls that should lie beyond a percentile for it to be told."""

MEDIAN = 50.0


@dataclass(frozen=True)
class Effort:
    """What a measurement is given.

    Attributes:
        pairs: to begin with; more follow, as many as it takes.
        seconds: after which no further pair is begun.
        share: the half-width of the interval that is aimed at, as a share of the goal's tolerance.
    """

    pairs: int = FIRST_PAIRS
    seconds: float = MOST_SECONDS
    share: float = SHARE


USUAL_EFFORT = Effort()


@dataclass(frozen=True)
class Certainty:
    """How well a figure is known.

    Attributes:
        half_width: of its interval, to the further end, relative to the figure; infinite where there were too
            few runs for an end.
        runs: that were timed, or pairs.
        needed: that would be needed for the asked tolerance, as intervals shrink with the root of the runs;
            where an end is missing those that it takes to have one.
        is_enough: for the asked tolerance.
    """

    half_width: float
    runs: int
    needed: int
    is_enough: bool


def certainty(found: Interval, tolerance: float, percentile: float | None = None) -> Certainty:
    """How well a figure is known, and what would be needed to know it to ``tolerance``.

    Args:
        found: the figure.
        tolerance: relative.
        percentile: that it is; None = the median.
    """
    if found.is_told:
        needed = math.ceil(found.runs * (found.half_width / tolerance) ** 2)
    else:
        alike = found.runs / found.independent
        needed = math.ceil(fewest_runs(percentile or MEDIAN, confidence=found.confidence) * alike)
    return Certainty(found.half_width, found.runs, needed, found.half_width <= tolerance)


def measure_beside(
    dense: Runner,
    pruned: Runner,
    *,
    tolerance: float,
    goals: Sequence[Goal] = (),
    effort: Effort = USUAL_EFFORT,
    least_seconds: float = 0.0,
    known: LatencyComparison | None = None,
    seed: int = 0,
) -> LatencyComparison:
    """Compare two models with as many pairs as the tolerances need, within the time given.

    Args:
        dense: the parent.
        pruned: the smaller model.
        tolerance: to which the speed-up is to be known, relative.
        goals: what else is to be known, each to its own tolerance: goals of times. For one at a percentile
            enough calls lie beyond it.
        effort: how long.
        least_seconds: that timing takes where there are goals, in at most
            :data:`prunekit.measure.latency.MOST_PAIRS` pairs, even where the effort is less.
        known: an earlier measurement of the two, whose pairs count too.
        seed: of the orders.
    """
    asked = [goal.percentile for goal in goals if goal.percentile is not None]
    pairs = max([effort.pairs, *map(_enough_beyond, asked)])
    least = least_seconds if goals else 0.0
    seconds = max(least, effort.seconds)
    new = compare_latency(
        dense,
        pruned,
        pairs=pairs,
        min_pairs=8,
        warmup=5,
        min_seconds=least,
        max_seconds=seconds,
        seed=seed,
    )
    found, left = joined(known, new) if known is not None else new, seconds - new.seconds
    more = min(max(MOST_PAIRS, pairs), _needed(found, tolerance, goals, effort.share)) - found.speedup.pairs
    if more < 2 or left <= 0:
        return found
    rest = compare_latency(dense, pruned, pairs=more, min_pairs=2, warmup=1, max_seconds=left, seed=seed + 1)
    return joined(found, rest)


def _needed(found: LatencyComparison, tolerance: float, goals: Sequence[Goal], share: float) -> int:
    """The pairs that it takes to know everything to a share of its tolerance."""
    needed = [certainty(_interval_of_speedup(found), share * tolerance).needed]
    for goal in goals:
        figure = timed_interval(goal, found, batch=1)
        if figure is not None:
            needed.append(certainty(figure, share * goal.tolerance, goal.percentile).needed)
    return max(needed)


def enough_to_tell(comparison: LatencyComparison, goals: Sequence[Goal], *, counts: bool = False) -> Effort:
    """The effort that should tell whether goals are met.

    The usual one where the comparison can tell already; else :data:`MARGIN` times the pairs that it takes, as
    far as :data:`PATIENCE` goes.

    Args:
        comparison: of a pruned model.
        goals: any.
        counts: its pairs count too, so that so many fewer are needed.
    """
    if tells(comparison, goals):
        return USUAL_EFFORT
    done = comparison.speedup.pairs
    pairs = math.ceil(MARGIN * max(each.needed for each in _known(comparison, goals))) - (
        done if counts else 0
    )
    within = MARGIN * pairs * comparison.seconds / done
    return Effort(pairs, min(max(within, MOST_SECONDS), PATIENCE), share=1.0)


def tells(comparison: LatencyComparison, goals: Sequence[Goal]) -> bool:
    """Every figure that goals of times ask about is known to the goal's tolerance."""
    return all(each.is_enough for each in _known(comparison, goals))


def _known(comparison: LatencyComparison, goals: Sequence[Goal]) -> list[Certainty]:
    """How well what goals of times ask about is known."""
    found = [(timed_interval(goal, comparison, batch=1), goal) for goal in goals]
    return [certainty(each, goal.tolerance, goal.percentile) for each, goal in found if each is not None]


def check_steady(comparison: LatencyComparison, goal: Goal) -> None:
    """Refuse a measurement that cannot tell whether a goal is met; a goal of no time is always told.

    Raises:
        MeasurementError: the interval of what the goal asks about is wider than its tolerance, or there are
            too few runs for one.
    """
    found = timed_interval(goal, comparison, batch=1)
    if found is None:
        return
    known = certainty(found, goal.tolerance, goal.percentile)
    if known.is_enough:
        return
    runs = "pairs" if goal.kind == "speedup" else "calls"
    least = "" if found.is_told else "at least "
    raise MeasurementError(
        f"{_how_well(found, goal, runs)}; {_how_noisy(comparison, goal, found)}",
        expected=f"the {goal.tolerance:.1%} that the goal's tolerance asks for",
        where=f"goal {goal}",
        remedy=f"About {least}{known.needed:,} {runs} would be needed: give the measurement more time, use "
        "an idle machine, or raise the tolerance",
    )


def timed_interval(goal: Goal, comparison: LatencyComparison, batch: int) -> Interval | None:
    """What a goal asks about with its interval, where a comparison with the dense model tells it; else None.

    The speed-up is that of the pairs; a latency and a throughput are of the pruned model's calls alone.

    Args:
        goal: of any kind.
        comparison: of the pruned model.
        batch: examples in a call.
    """
    if goal.kind == "speedup":
        return _interval_of_speedup(comparison)
    if goal.kind == "latency_ms":
        asked = MEDIAN if goal.percentile is None else goal.percentile
        return interval_of_percentile(comparison.pruned_ms, asked)
    if goal.kind == "throughput":
        return interval_of_percentile(comparison.pruned_ms, MEDIAN).inverse(1000 * batch)
    return None


def timed_figure(goal: Goal, comparison: LatencyComparison, batch: int) -> float | None:
    """The figure of :func:`timed_interval` alone."""
    found = timed_interval(goal, comparison, batch)
    return None if found is None else found.value


def _interval_of_speedup(comparison: LatencyComparison) -> Interval:
    """As :func:`prunekit.measure.paired_speedup` has it, but that an end may be missing."""
    return interval_of_percentile(comparison.dense_ms / comparison.pruned_ms, MEDIAN)


def _enough_beyond(percentile: float) -> int:
    """Calls of which :data:`BEYOND` lie beyond a percentile, on its nearer side."""
    return math.ceil(round(100 * BEYOND / min(percentile, 100 - percentile), 6))


def _how_well(found: Interval, goal: Goal, runs: str) -> str:
    """What was measured, and how well it is known."""
    percentile = MEDIAN if goal.percentile is None else goal.percentile
    what = {
        "speedup": "the speed-up",
        "latency_ms": f"the {'median' if percentile == MEDIAN else f'{percentile:g}th percentile'} latency",
        "throughput": "the throughput",
    }[goal.kind]
    if found.is_told:
        return f"After {found.runs:,} {runs} {what} is known to {found.half_width:.1%} only"
    return f"{found.runs:,} {runs} are too few to say how well {what} is known"


def _how_noisy(comparison: LatencyComparison, goal: Goal, found: Interval) -> str:
    said = f"half of the calls lie within {comparison.noise.pruned:.1%} of their median"
    if goal.kind == "speedup":
        said = comparison.noise.statement
    if found.independent < found.runs:
        said += f", and neighbours are so alike that all count as {found.independent:,} independent ones"
    return said
