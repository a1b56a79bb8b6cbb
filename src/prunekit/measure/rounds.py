"""Timing many runners together, round after round, so that what slows the machine slows all of them."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from prunekit.errors import MeasurementError
from prunekit.measure.latency import Times
from prunekit.measure.runtimes import Runner

ROUNDS = 9
SAMPLE_MS = 1.0
MOST_CALLS = 64


def time_rounds(
    runners: Sequence[Runner],
    *,
    rounds: int = ROUNDS,
    sample_ms: float = SAMPLE_MS,
    seed: int = 0,
) -> Times:
    """Time each runner once in every round, in an order drawn anew for each.

    Within a round a runner is called again and again until :data:`SAMPLE_MS` is spent, so that the clock and
    a short disturbance weigh little; the mean of these calls is its time.

    Args:
        runners: open together.
        rounds: at least 1, after one that is not counted.
        sample_ms: the time that a sample should take at least.
        seed: of the orders.

    Returns:
        ``[runners, rounds]`` float64, milliseconds of one call.

    Raises:
        MeasurementError: nothing to time.
    """
    if not runners or rounds < 1:
        raise MeasurementError(
            f"{len(runners)} models were to be timed in {rounds} rounds", expected="at least one of each"
        )
    rng, clock = np.random.default_rng(seed), time.perf_counter_ns
    times = np.empty((len(runners), rounds))
    with collector_resting():
        calls = [_calls_for(runner, sample_ms) for runner in runners]
        for turn in range(rounds):
            for place in rng.permutation(len(runners)).tolist():
                runner, count = runners[place], calls[place]
                begin = clock()
                for _ in range(count):
                    runner()
                times[place, turn] = (clock() - begin) / count / 1e6
    return times


@contextmanager
def collector_resting() -> Iterator[None]:
    """Keep the garbage collector from running meanwhile."""
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _calls_for(runner: Runner, sample_ms: float) -> int:
    runner()
    begin = time.perf_counter_ns()
    runner()
    spent_ms = max((time.perf_counter_ns() - begin) / 1e6, 1e-4)
    return int(np.clip(np.ceil(sample_ms / spent_ms), 1, MOST_CALLS))
