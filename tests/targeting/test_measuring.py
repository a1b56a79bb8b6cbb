"""A goal of a time is held to the interval of its own figure; the oracle is the times that are planted."""

from __future__ import annotations

import numpy as np
import pytest
from tests.targeting.conftest import comparison_of

from prunekit.errors import MeasurementError
from prunekit.measure import LatencyComparison, fewest_runs, interval_of_percentile
from prunekit.plan import Goal
from prunekit.targeting import measuring
from prunekit.targeting.measuring import (
    MOST_PAIRS,
    MOST_SECONDS,
    PATIENCE,
    USUAL_EFFORT,
    Effort,
    check_steady,
    enough_to_tell,
    measure_beside,
    timed_interval,
)

SPEEDUP = Goal("speedup", reach=2, tolerance=0.02)
MEDIAN = Goal("latency_ms", reach=1, tolerance=0.02)
TAIL = Goal("latency_ms", reach=1, tolerance=0.02, percentile=99)
RATE = Goal("throughput", reach=1000, tolerance=0.02)


def times(pairs: int, *, shared: float = 0.0, own: float = 0.0, seed: int = 0) -> LatencyComparison:
    """A pruned model of 1 ms and a dense one of 2; what disturbs a pair as a whole is ``shared``."""
    draw = np.random.default_rng(seed)
    machine = np.exp(shared * draw.normal(size=pairs))
    dense, pruned = (np.exp(own * draw.normal(size=pairs)) * machine for _ in range(2))
    return comparison_of(2 * dense, pruned)


@pytest.mark.parametrize("goal", [MEDIAN, RATE])
def test_noise_that_cancels_in_pairs_does_not_in_a_latency(goal):
    found = times(40, shared=0.3)
    check_steady(found, SPEEDUP)
    with pytest.raises(MeasurementError, match=r"After 40 calls the .* is known to \d+\.\d% only") as error:
        check_steady(found, goal)
    assert f"within {found.noise.pruned:.1%} of their median" in error.value.given
    assert "About " in error.value.remedy
    assert " calls would be needed" in error.value.remedy


def test_the_runs_it_asks_for_are_about_enough():
    """Oracle: the interval after so many runs."""
    found = times(40, shared=0.3)
    with pytest.raises(MeasurementError) as error:
        check_steady(found, MEDIAN)
    needed = int(error.value.remedy.split()[1].replace(",", ""))
    assert interval_of_percentile(times(needed, shared=0.3).pruned_ms, 50).half_width < 2 * MEDIAN.tolerance
    check_steady(times(3 * needed, shared=0.3), MEDIAN)


@pytest.mark.parametrize("goals", [[SPEEDUP], [MEDIAN], [SPEEDUP, RATE]])
@pytest.mark.parametrize("own", [0.1, 0.2])
def test_pairs_that_should_tell_do(goals, own):
    """Oracle: the check itself, on so many pairs of the same noise."""
    effort = enough_to_tell(times(60, own=own), goals)
    assert MOST_SECONDS <= effort.seconds <= PATIENCE
    assert effort.pairs > 60
    for goal in goals:
        check_steady(times(effort.pairs, own=own, seed=1), goal)


@pytest.mark.parametrize("goals", [[], [SPEEDUP], [Goal("params", remove=0.3)]])
def test_what_tells_already_takes_no_more_pairs(goals):
    assert enough_to_tell(times(60, own=1e-3), goals) == USUAL_EFFORT


def test_pairs_add_up_until_they_tell(monkeypatch):
    """Oracle: the pairs that the comparisons were asked for, and the times that they gave."""
    seen: list[LatencyComparison] = []

    def planted(dense, pruned, *, pairs, seed, **_):
        seen.append(times(pairs, own=0.2, seed=seed))
        return seen[-1]

    monkeypatch.setattr(measuring, "compare_latency", planted)
    noisy = times(60, own=0.2, seed=5)
    counted = enough_to_tell(noisy, [SPEEDUP], counts=True)
    assert counted.pairs == enough_to_tell(noisy, [SPEEDUP]).pairs - 60
    for effort, known in ((USUAL_EFFORT, None), (counted, noisy)):
        seen.clear()
        found = measure_beside(None, None, tolerance=0.02, goals=[SPEEDUP], effort=effort, known=known)
        parts = [known, *seen] if known else seen
        assert found.pruned_ms.tolist() == np.concatenate([part.pruned_ms for part in parts]).tolist()
        assert found.seconds == len(parts)
        check_steady(found, SPEEDUP)


def test_no_pair_is_begun_once_the_time_is_up(monkeypatch):
    """Each measurement takes a second, of noise that no time is enough for; oracle: the time that is left."""
    given: list[float] = []

    def planted(dense, pruned, *, pairs, max_seconds, **_):
        given.append(max_seconds)
        return times(pairs, own=30.0)

    monkeypatch.setattr(measuring, "compare_latency", planted)
    for seconds in (0.5, 1.5):
        measure_beside(None, None, tolerance=0.02, goals=[SPEEDUP], effort=Effort(seconds=seconds))
    assert given == [0.5, 1.5, 0.5]


def test_patience_ends():
    """Sixty pairs took a second; the millions that this noise asks for would take days."""
    assert enough_to_tell(times(60, own=30.0), [SPEEDUP]).seconds == PATIENCE


def test_drift_is_told():
    draw = np.random.default_rng(0)
    drifting = np.linspace(1, 1.3, 400) * draw.normal(1, 0.01, 400)
    with pytest.raises(MeasurementError, match="neighbours are so alike that all count as"):
        check_steady(comparison_of(2 * drifting, drifting), MEDIAN)


@pytest.mark.parametrize("pairs", [20, 100, 367])
def test_a_percentile_without_enough_calls_is_refused_however_steady(pairs):
    with pytest.raises(MeasurementError, match="too few to say how well the 99th percentile") as error:
        check_steady(times(pairs, own=1e-9), TAIL)
    needed = int(error.value.remedy.removeprefix("About at least ").split()[0])
    assert fewest_runs(99) <= needed < 2 * fewest_runs(99)
    check_steady(times(pairs, own=1e-9), MEDIAN)


def test_a_goal_of_no_time_is_always_told():
    found, goal = times(20, own=1.0), Goal("params", remove=0.3)
    check_steady(found, goal)
    assert timed_interval(goal, found, batch=1) is None


def test_a_throughput_is_that_of_the_median_with_the_ends_turned_round():
    found = times(200, shared=0.1)
    latency, rate = (timed_interval(goal, found, batch=8) for goal in (MEDIAN, RATE))
    assert rate.value == pytest.approx(8000 / latency.value)
    assert (rate.low, rate.high) == pytest.approx((8000 / latency.high, 8000 / latency.low))


@pytest.mark.parametrize(
    ("goals", "given", "least"),
    [([SPEEDUP], 3.0, 3.0), ([MEDIAN], 7.0, 7.0), ([SPEEDUP], 60.0, 60.0), ([], 7.0, 0.0)],
)
def test_only_a_goal_of_a_time_takes_a_least_time(monkeypatch, goals, given, least):
    """Oracle: what the comparison is asked for."""
    lengths = []

    def planted(dense, pruned, *, pairs, min_seconds, max_seconds, **_):
        assert max_seconds >= min_seconds
        lengths.append(min_seconds)
        return times(pairs)

    monkeypatch.setattr(measuring, "compare_latency", planted)
    measure_beside(None, None, tolerance=0.02, goals=goals, least_seconds=given)
    assert lengths == [least]


def test_drift_of_the_quotient_takes_more_pairs_and_is_told():
    """Oracle: the speed-up is 2 in one half of the time and 2.4 in the other."""
    steady = np.random.default_rng(0).normal(1, 0.01, 400)
    found = comparison_of(np.concatenate([2 * steady[:200], 2.4 * steady[200:]]), np.ones(400))
    assert found.speedup.low < 2.05
    assert found.speedup.high > 2.35
    with pytest.raises(MeasurementError, match="the speed-up is known"):
        check_steady(found, SPEEDUP)


@pytest.fixture
def asked(monkeypatch):
    """The pairs that were asked for, of a machine that is disturbed for both models at once."""
    seen: list[int] = []

    def planted(dense, pruned, *, pairs, seed, **_):
        seen.append(pairs)
        return times(pairs, shared=dense, seed=seed)

    monkeypatch.setattr(measuring, "compare_latency", planted)
    return seen


def test_a_latency_takes_the_pairs_that_its_own_interval_needs(asked):
    measure_beside(0.1, 0.1, tolerance=0.02, goals=[SPEEDUP])
    assert asked == [40]
    measure_beside(0.1, 0.1, tolerance=0.02, goals=[MEDIAN])
    assert asked[1] == 40
    assert 200 < asked[2] <= MOST_PAIRS


@pytest.mark.parametrize(("percentile", "pairs"), [(90, 200), (99, 2000), (99.9, 20_000), (1, 2000)])
def test_a_percentile_takes_calls_beyond_it(asked, percentile, pairs):
    found = measure_beside(
        1e-9, 0, tolerance=0.02, goals=[Goal("latency_ms", reach=1, percentile=percentile)]
    )
    assert asked == [pairs]
    assert interval_of_percentile(found.pruned_ms, percentile).is_told
