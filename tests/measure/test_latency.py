"""On a clock that the runners move themselves, every figure has a closed form."""

from __future__ import annotations

import gc
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.signal import lfilter

from prunekit.errors import MeasurementError
from prunekit.measure import compare_latency, latency, open_onnx, paired_speedup, percentiles


class Clock:
    """Stands in for the module ``time``; every millisecond is one that a runner has spent."""

    def __init__(self) -> None:
        self.now_ns = 0

    def perf_counter_ns(self) -> int:
        return self.now_ns

    def perf_counter(self) -> float:
        return self.now_ns / 1e9


class Timed:
    """Takes ``ms`` milliseconds, times how slow the machine is by now."""

    def __init__(self, clock: Clock, ms: float, slowdown=lambda seconds: 1.0) -> None:
        self.name, self.clock, self.ms, self.slowdown = f"{ms} ms", clock, ms, slowdown
        self.calls: list[int] = []
        self.collected: list[bool] = []

    def __call__(self) -> None:
        self.calls.append(self.clock.now_ns)
        self.collected.append(gc.isenabled())
        self.clock.now_ns += int(self.ms * 1e6 * self.slowdown(self.clock.now_ns / 1e9))


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(latency, "time", clock)
    return clock


def test_figures_are_those_of_the_clock(clock):
    measured = compare_latency(Timed(clock, 4.0), Timed(clock, 1.0), pairs=50, warmup=3)
    assert measured.dense.p50_ms == measured.dense.p99_ms == measured.dense.mean_ms == 4.0
    assert measured.pruned.p90_ms == 1.0
    assert (measured.speedup.median, measured.speedup.low, measured.speedup.high) == (4.0, 4.0, 4.0)
    assert (measured.speedup.pairs, measured.warmup, measured.stopped_early) == (50, 3, False)
    assert measured.seconds == (50 + 3) * 0.005
    assert measured.noise.steady
    assert measured.noise.speedup == 0.0


def test_drift_cancels_in_the_pairs(clock):
    """The machine gets five times slower meanwhile; the speed-up does not change."""
    dense, pruned = (Timed(clock, ms, lambda seconds: 1 + 8 * seconds) for ms in (2.0, 0.5))
    measured = compare_latency(dense, pruned, pairs=200, warmup=1)
    assert measured.dense_ms[-1] > 4 * measured.dense_ms[0]
    assert measured.speedup.median == pytest.approx(4.0, rel=0.01)
    assert measured.speedup.high - measured.speedup.low < 0.1
    assert measured.noise.dense > 0.2
    assert measured.noise.steady


def test_pairs_alternate_in_a_drawn_order(clock):
    dense, pruned = Timed(clock, 1.0), Timed(clock, 1.0)
    measured = compare_latency(dense, pruned, pairs=100, warmup=2)
    first = np.array(dense.calls[2:]) < np.array(pruned.calls[2:])
    np.testing.assert_array_equal(measured.dense_first, first)
    assert 30 < first.sum() < 70
    again = compare_latency(Timed(clock, 1.0), Timed(clock, 1.0), pairs=100, warmup=2)
    np.testing.assert_array_equal(again.dense_first, first)


def test_slow_models_stop_at_the_time_but_not_before_the_least_pairs(clock):
    seen = []
    measured = compare_latency(
        Timed(clock, 900.0),
        Timed(clock, 100.0),
        pairs=500,
        warmup=100,
        min_pairs=5,
        max_seconds=20.0,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert measured.warmup == 5  # The first after a fifth of the time.
    assert measured.speedup.pairs == 16  # Five seconds of warm-up, and the first pair after 20 is the last.
    assert measured.stopped_early
    assert seen == [(pair, 500) for pair in range(1, 17)]
    least = compare_latency(Timed(clock, 900.0), Timed(clock, 100.0), min_pairs=5, max_seconds=0.0)
    assert least.speedup.pairs == 5


@pytest.mark.parametrize(
    ("ms", "most", "pairs"), [(1.0, 120.0, 1250), (100.0, 120.0, 40), (0.1, 120.0, 4000), (1.0, 3.0, 750)]
)
def test_a_least_time_adds_pairs_up_to_the_limits(clock, ms, most, pairs):
    """Oracle: five seconds over that of a pair; no fewer than asked, no more than 4,000, no longer."""
    measured = compare_latency(
        Timed(clock, 3 * ms), Timed(clock, ms), pairs=40, warmup=1, min_seconds=5, max_seconds=most
    )
    assert measured.speedup.pairs == pytest.approx(pairs, abs=1)
    assert not measured.stopped_early


def test_the_collector_rests_and_comes_back(clock):
    runner = Timed(clock, 1.0)
    assert gc.isenabled()
    compare_latency(runner, Timed(clock, 1.0), pairs=5)
    assert gc.isenabled()
    assert not any(runner.collected)

    def fail() -> None:
        raise MeasurementError("broken")

    fail.name = "broken"
    with pytest.raises(MeasurementError, match="broken"):
        compare_latency(fail, runner)
    assert gc.isenabled()


def test_what_cannot_be_measured_is_refused(clock):
    with pytest.raises(MeasurementError, match="1 pairs"):
        compare_latency(Timed(clock, 1.0), Timed(clock, 1.0), pairs=1)
    with pytest.raises(MeasurementError, match="no time"):
        compare_latency(Timed(clock, 1.0), Timed(clock, 0.0))


def test_the_interval_is_that_of_scipy():
    rng = np.random.default_rng(1)
    dense, pruned = rng.lognormal(1.0, 0.2, 80), rng.lognormal(0.0, 0.2, 80)
    ours = paired_speedup(dense, pruned)
    theirs = stats.quantile_test(dense / pruned, p=0.5).confidence_interval()
    assert ours.median == np.median(dense / pruned)
    assert (ours.low, ours.high) == (theirs.low, theirs.high)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    """2.5 is the true median of 400 simulated measurements of 60 pairs."""
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(400):
        noise = rng.lognormal(0.0, 0.1, 60)
        found = paired_speedup(2.5 * noise, np.ones(60))
        covered += found.low <= 2.5 <= found.high
    assert 0.94 <= covered / 400 <= 0.995


def drifting(rng: np.random.Generator, pairs: int, memory: int, *, hidden: float) -> np.ndarray:
    """Quotients about 1 that drift, each e-th part of it lost in ``memory`` pairs, under noise."""
    kept = math.exp(-1 / memory)
    fresh = rng.normal(size=pairs) * math.sqrt(1 - kept**2)
    fresh[0] = rng.normal()
    drift = lfilter([1], [1, -kept], fresh)
    return np.exp(0.05 * (drift + hidden * rng.normal(size=pairs)))


@pytest.mark.parametrize("hidden", [0.0, 2.0])
@pytest.mark.parametrize(
    ("pairs", "memory", "least"),
    [
        (40, 1, 0.93),
        (40, 4, 0.83),
        (200, 5, 0.88),
        (200, 20, 0.78),
        (1000, 1, 0.93),
        (1000, 10, 0.91),
        (1000, 50, 0.82),
        (1000, 100, 0.74),
    ],
)
def test_slow_drift_of_the_quotient_widens_the_interval(pairs, memory, least, hidden):
    """Oracle: the true median 1; pairs taken as independent hold it in 13 and 34 % of the last row."""
    rng = np.random.default_rng(3)
    found = [paired_speedup(drifting(rng, pairs, memory, hidden=hidden), np.ones(pairs)) for _ in range(250)]
    assert np.mean([each.low <= 1 <= each.high for each in found]) >= least


@pytest.mark.parametrize("rounds", [2, 3, 5, 8])
def test_few_rounds_give_their_range(rounds):
    figures = np.random.default_rng(rounds).lognormal(size=rounds)
    found = paired_speedup(figures, np.ones(rounds))
    assert (found.low, found.high, found.pairs) == (figures.min(), figures.max(), rounds)


@settings(max_examples=25)
@given(
    st.lists(st.tuples(st.floats(0.1, 100), st.floats(0.1, 100)), min_size=2, max_size=40),
    st.floats(0.1, 10),
)
def test_the_speedup_is_the_same_in_any_unit(times, unit):
    dense, pruned = np.array(times).T
    found = paired_speedup(dense, pruned)
    scaled = paired_speedup(dense * unit, pruned * unit)
    assert found.low <= found.high
    assert (dense / pruned).min() <= found.median <= (dense / pruned).max()
    assert scaled.median == pytest.approx(found.median)


def test_percentiles_are_those_of_numpy():
    times = np.random.default_rng(0).random(1000)
    found = percentiles(times)
    assert found.p99_ms == np.percentile(times, 99)
    assert found.p50_ms == np.median(times)


def test_two_real_sessions_give_a_record(perceptron, x):
    runner = open_onnx(perceptron, x, threads=1)
    measured = compare_latency(runner, open_onnx(perceptron, x, threads=1), pairs=30, warmup=5)
    record = json.loads(json.dumps(measured.summary()))
    assert record["speedup"]["low"] <= record["speedup"]["median"] <= record["speedup"]["high"]
    assert set(record["dense"]) == {"p50_ms", "p90_ms", "p99_ms", "mean_ms"}
    assert "median speed-up" in record["noise"]["statement"]
    columns = measured.columns()
    assert {len(column) for column in columns.values()} == {30}
    assert columns["dense_ms"].dtype == np.float64
    assert (columns["dense_ms"] > 0).all()
