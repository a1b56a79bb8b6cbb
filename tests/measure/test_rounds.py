"""Times of a round belong together; the oracle is a clock that stands still but for the calls."""

from __future__ import annotations

import numpy as np
import pytest

from prunekit.errors import MeasurementError
from prunekit.measure import rounds
from prunekit.measure.rounds import MOST_CALLS, Pace, time_rounds


class Clock:
    """A clock that only its runners move on."""

    def __init__(self) -> None:
        self.ns, self.slow = 0, lambda: 1.0

    def __call__(self) -> int:
        return self.ns


class Worker:
    """A runner that takes a time, written down; longer by what the clock says while the machine is slow."""

    name = "worker"

    def __init__(self, clock: Clock, ms: float) -> None:
        self.clock, self.ms, self.calls = clock, ms, 0

    def __call__(self):
        self.calls += 1
        self.clock.ns += round(self.ms * self.clock.slow() * 1e6)


class Waiter(Worker):
    """The same, which does not care."""

    def __call__(self):
        self.clock.ns += round(self.ms * 1e6)


@pytest.fixture
def clock(monkeypatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(rounds.time, "perf_counter_ns", made)
    return made


@pytest.mark.parametrize("seed", range(3))
def test_times_are_those_of_the_runners_in_units_of_the_pace(clock, seed):
    workers, pace = [Worker(clock, ms) for ms in (0.002, 0.3, 4.0)], Pace(Worker(clock, 0.5))
    times = time_rounds(workers, pace, rounds=5, seed=seed)
    assert times.shape == (3, 5)
    np.testing.assert_allclose(times, np.array([[0.004], [0.6], [8.0]]) * np.ones(5), rtol=1e-6)
    np.testing.assert_allclose(pace.samples, [0.5] * 5, rtol=1e-6)


SLOW_ROUNDS = {
    "none": ("", 4, 4),
    "some": ("0110", 6, 4),
    "at first": ("111", 7, 4),
    "most": ("011111110111", 12, 2),
}


@pytest.mark.parametrize("slow", SLOW_ROUNDS)
def test_slow_rounds_count_only_where_there_are_too_few_quiet_ones(clock, slow):
    """What waits for memory is no slower while the machine computes slowly: its share is 2/3 then."""
    which, done, quiet = SLOW_ROUNDS[slow]
    pace = Pace(Worker(clock, 1.0))
    clock.slow = lambda: 1.5 if which[len(pace.samples) :][:1] == "1" else 1.0
    times = time_rounds([Waiter(clock, 1.0)], pace, rounds=4, most=12)
    assert len(pace.samples) == done
    np.testing.assert_allclose(sorted(times[0])[::-1], [1.0] * quiet + [2 / 3] * (4 - quiet))


def test_short_calls_are_repeated_until_a_sample_is_long_enough(clock):
    short, middle, long = (Worker(clock, ms) for ms in (1e-3, 0.25, 3.0))
    time_rounds([short, middle, long], Pace(Worker(clock, 1.0)), rounds=2, sample_ms=1.0)
    assert [worker.calls - 2 for worker in (short, middle, long)] == [2 * MOST_CALLS, 2 * 4, 2]


@pytest.mark.parametrize(("count", "turns"), [(0, 3), (2, 0)])
def test_nothing_to_time(clock, count, turns):
    with pytest.raises(MeasurementError, match="at least one"):
        time_rounds([Worker(clock, 1.0)] * count, Pace(Worker(clock, 1.0)), rounds=turns)
