"""Timing many runners together, beside one that tells how fast the machine goes at the moment."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from prunekit.errors import MeasurementError
from prunekit.measure.collector import collector_resting
from prunekit.measure.latency import Times
from prunekit.measure.runtimes import Runner

ROUNDS = 15
MOST_ROUNDS = 3 * ROUNDS
"""Of which the quietest count."""

QUIET = 1.15
"""A round is quiet where the pace took at most so many times what it takes when it is quick."""

SAMPLE_MS = 1.0
MOST_CALLS = 64


@dataclass(eq=False)
class Pace:
    """A runner that always computes the same, and how long that took again and again.

    Two processors of a shared machine may be one core's for a second, so that everything takes half as long
    again: what is timed then is compared with this.

    Attributes:
        runner: computes the same every time.
        samples: milliseconds of a call, in order.
    """

    runner: Runner
    samples: list[float] = field(default_factory=list)

    @property
    def quick_ms(self) -> float:
        """Milliseconds of a call while the machine is quick: nine of ten samples are longer."""
        return float(np.quantile(self.samples, 0.1, method="lower"))


def time_rounds(
    runners: Sequence[Runner],
    pace: Pace,
    *,
    rounds: int = ROUNDS,
    most: int = MOST_ROUNDS,
    sample_ms: float = SAMPLE_MS,
    seed: int = 0,
) -> Times:
    """Time each runner and the pace once in every round, in an order drawn anew for each.

    Within a round a runner is called again and again until ``sample_ms`` are spent, so that the clock and
    a short disturbance weigh little; the mean of these calls is its time. There are more rounds until enough
    were quiet (:data:`QUIET`); the quietest count.

    Args:
        runners: open together.
        pace: is told what its runner took.
        rounds: that count, at least 1.
        most: rounds at most.
        sample_ms: the time that a sample should take at least.
        seed: of the orders.

    Returns:
        ``[runners, rounds]`` float64: the time of a call over that of the pace's in the same round.

    Raises:
        MeasurementError: nothing to time.
    """
    if not runners or rounds < 1:
        raise MeasurementError(
            f"{len(runners)} models were to be timed in {rounds} rounds", expected="at least one of each"
        )
    rng, together = np.random.default_rng(seed), (pace.runner, *runners)
    times: list[Times] = []
    with collector_resting():
        calls = [_calls_for(runner, sample_ms) for runner in together]
        while len(times) < rounds or (len(times) < most and _quiet(times, pace) < rounds):
            times.append(_one_round(together, calls, rng))
            pace.samples.append(float(times[-1][0]))
    quietest = np.array(sorted(times, key=lambda one: one[0])[:rounds])
    return (quietest[:, 1:] / quietest[:, :1]).T


def _quiet(times: Sequence[Times], pace: Pace) -> int:
    """How many of these rounds were."""
    longest = QUIET * pace.quick_ms
    return sum(one[0] <= longest for one in times)


def _one_round(runners: Sequence[Runner], calls: Sequence[int], rng: np.random.Generator) -> Times:
    """``[runners]`` milliseconds of a call."""
    times, clock = np.empty(len(runners)), time.perf_counter_ns
    for place in rng.permutation(len(runners)).tolist():
        runner, count = runners[place], calls[place]
        begin = clock()
        for _ in range(count):
            runner()
        times[place] = (clock() - begin) / count / 1e6
    return times


def _calls_for(runner: Runner, sample_ms: float) -> int:
    runner()
    begin = time.perf_counter_ns()
    runner()
    spent_ms = max((time.perf_counter_ns() - begin) / 1e6, 1e-4)
    return int(np.clip(np.ceil(sample_ms / spent_ms), 1, MOST_CALLS))
