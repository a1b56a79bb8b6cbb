"""Times of a round belong together; the oracle is a clock that stands still but for the calls."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from prunekit.errors import MeasurementError
from prunekit.measure import rounds
from prunekit.measure.rounds import MOST_CALLS, collector_resting, time_rounds


class Clock:
    """A clock that only its runners move on."""

    def __init__(self) -> None:
        self.ns = 0

    def __call__(self) -> int:
        return self.ns


class Worker:
    """A runner that takes a time, written down; slower while the machine is."""

    def __init__(self, clock: Clock, ms: float) -> None:
        self.clock, self.ms, self.calls = clock, ms, 0

    def __call__(self):
        self.calls += 1
        self.clock.ns += round(self.ms * 1e6)


@pytest.fixture
def clock(monkeypatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(rounds.time, "perf_counter_ns", made)
    return made


@pytest.mark.parametrize("seed", range(3))
def test_times_are_those_of_the_runners(clock, seed):
    workers = [Worker(clock, ms) for ms in (0.002, 0.3, 4.0)]
    times = time_rounds(workers, rounds=5, seed=seed)
    assert times.shape == (3, 5)
    np.testing.assert_allclose(times, np.array([[0.002], [0.3], [4.0]]) * np.ones(5), rtol=1e-6)


def test_short_calls_are_repeated_until_a_sample_is_long_enough(clock):
    short, middle, long = (Worker(clock, ms) for ms in (1e-3, 0.25, 3.0))
    time_rounds([short, middle, long], rounds=2, sample_ms=1.0)
    assert [worker.calls - 2 for worker in (short, middle, long)] == [2 * MOST_CALLS, 2 * 4, 2]


@pytest.mark.parametrize(("count", "turns"), [(0, 3), (2, 0)])
def test_nothing_to_time(clock, count, turns):
    with pytest.raises(MeasurementError, match="at least one"):
        time_rounds([Worker(clock, 1.0)] * count, rounds=turns)


@pytest.mark.parametrize("collecting", [True, False])
def test_the_collector_is_as_it_was(collecting):
    before = gc.isenabled()
    try:
        (gc.enable if collecting else gc.disable)()
        with collector_resting():
            assert not gc.isenabled()
        assert gc.isenabled() == collecting
        with pytest.raises(ZeroDivisionError), collector_resting():
            raise ZeroDivisionError
        assert gc.isenabled() == collecting
    finally:
        (gc.enable if before else gc.disable)()
