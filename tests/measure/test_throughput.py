"""The search against a server whose limit is known, and (slow) against the M/D/1 queue."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from tests.measure.sleeper import Sleeper

from prunekit.errors import MeasurementError
from prunekit.measure import (
    LoadLatency,
    LoadResult,
    LoadSettings,
    compare_scenarios,
    compare_throughput,
    max_throughput,
)

RUN = "prunekit.measure.throughput.run_load"


@pytest.fixture
def asked(monkeypatch):
    """Tests that end at once: valid up to ``limits[model]`` requests per second, but the ``hiccups``-th."""
    asked: list[LoadResult] = []
    asked_limits: dict[str, float] = {}
    hiccups: set[int] = set()

    def run(batches, settings, *, give_up=False):
        name = batches.runner.name
        rate = settings.target_qps or 100.0
        valid = rate <= asked_limits.get(name, math.inf) and len(asked) not in hiccups
        latency = LoadLatency(*[1.0 if name == "pruned" else 3.0] * 9)
        asked.append(
            LoadResult(name, settings, valid, (), latency, rate, 1, 1, 1, 1, 1, 0, give_up and not valid, "6")
        )
        return asked[-1]

    monkeypatch.setattr(RUN, run)
    return asked, asked_limits, hiccups


@pytest.mark.parametrize("limit", [25.0, 60.0, 131.7, 500.0, 20_000.0])
@pytest.mark.parametrize("precision", [0.3, 0.05, 0.01])
def test_the_answer_encloses_the_limit(asked, limit, precision):
    asked[1]["sleeper"] = limit
    found = max_throughput(Sleeper(0.002), p99_ms=100, precision=precision)
    assert found.passing_qps <= limit < found.failing_qps
    assert found.failing_qps / found.passing_qps <= 1 + precision
    assert found.call_ms >= 2
    assert list(found.probes) == asked[0]
    failures = [one for one in asked[0] if one.settings.target_qps == found.failing_qps]
    assert len({one.settings.seed for one in failures}) == len(failures) == 2
    assert all(one.settings.bound_ms == 100 and one.settings.percentile == 0.99 for one in asked[0])


@pytest.mark.parametrize("hiccup", range(8))
def test_one_hiccup_of_the_machine_does_not_lower_the_answer(asked, hiccup):
    _, limits, hiccups = asked
    limits["sleeper"] = 300.0
    hiccups.add(hiccup)
    found = max_throughput(Sleeper(0.002), p99_ms=100, precision=0.05)
    assert found.passing_qps <= 300 < found.failing_qps
    assert found.failing_qps / found.passing_qps <= 1.05


def test_two_searches_take_turns_and_their_gain_has_bounds(asked):
    tests, limits, _ = asked
    limits |= {"dense": 111.0, "pruned": 222.0}
    found = compare_throughput(Sleeper(0.004, "dense"), Sleeper(0.002, "pruned"), p99_ms=100)
    turns = [one.model for one in tests]
    shorter = min(turns.count("dense"), turns.count("pruned"))
    assert turns[: 2 * shorter] == ["dense", "pruned"] * shorter
    assert found.low <= 2 <= found.high
    assert found.low <= found.gain <= found.high
    assert found.gain == found.pruned.passing_qps / found.dense.passing_qps


@pytest.mark.parametrize(
    ("limit", "p99_ms", "changes", "precision", "said"),
    [
        (9.0, 1.5, {}, 0.05, r"bound is 1.5 ms, and one sample alone takes [\d.]+ ms"),
        (0.0, 50, {}, 0.05, r"Even [\d.]+ requests per second did not keep the bound"),
        (math.inf, 50, {}, 0.05, "After 60 tests"),
        (9.0, 50, {"min_queries": 458}, 0.05, "min_queries is 458. Expected 459 or more"),
        (9.0, 50, {"scenario": "offline"}, 0.05, "scenario is 'offline'"),
        (9.0, 0, {}, 0.05, "bound_ms is 0"),
        (9.0, 50, {}, 0, "precision is 0"),
    ],
)
def test_a_search_that_cannot_end_is_refused(asked, limit, p99_ms, changes, precision, said):
    asked[1]["sleeper"] = limit
    settings = replace(LoadSettings("server"), **changes)
    with pytest.raises(MeasurementError, match=said):
        max_throughput(Sleeper(0.002), p99_ms=p99_ms, precision=precision, settings=settings)


def test_a_long_bound_makes_tests_long_enough_to_show_a_growing_queue(asked):
    asked[1]["sleeper"] = 90.0
    found = max_throughput(Sleeper(0.002), p99_ms=1000, settings=LoadSettings("server", min_seconds=3))
    assert {one.settings.min_seconds for one in found.probes} == {20.0}


def test_rounds_take_turns_in_a_drawn_order(asked):
    tests, _, _ = asked
    settings = LoadSettings("single_stream", seed=3)
    found = compare_scenarios(Sleeper(name="dense"), Sleeper(name="pruned"), settings, rounds=12)
    pairs = [(first.model, second.model) for first, second in zip(tests[::2], tests[1::2], strict=True)]
    assert set(pairs) == {("dense", "pruned"), ("pruned", "dense")}
    assert [one.settings.seed for one in found.dense] == [one.settings.seed for one in found.pruned]
    assert (found.speedup.median, found.tail.median, found.valid) == (3, 3, True)
    with pytest.raises(MeasurementError, match="1 rounds"):
        compare_scenarios(Sleeper(), Sleeper(), settings, rounds=1)


def test_offline_is_compared_by_throughput():
    load = LoadSettings("offline", min_seconds=0.1)
    found = compare_scenarios(Sleeper(0.004, "dense"), Sleeper(0.0005, "pruned"), load, rounds=2)
    assert found.tail is None
    assert found.valid
    assert found.speedup.median > 1


def _p99_ms(rate, service_s, queries=200_000):
    """99th percentile of the time in an M/D/1 queue, by Lindley's recursion (1952, eq. 1)."""
    arrivals = np.random.default_rng(0).exponential(1 / rate, queries).cumsum()
    work = np.arange(queries) * service_s
    start = np.maximum.accumulate(arrivals - work) + work
    return float(np.quantile(start + service_s - arrivals, 0.99)) * 1e3


def _limit(p99_ms, service_s):
    rates = np.linspace(0.02, 0.98, 97) / service_s
    return max(rate for rate in rates if _p99_ms(rate, service_s) <= p99_ms)


@pytest.mark.slow
def test_the_rate_found_is_about_that_of_the_queue():
    """Service 10 ms, bound 60 ms; less passes, by LoadGen's confidence of 99 % and the machine's delays."""
    settings = LoadSettings("server", min_seconds=2, min_queries=1000)
    found = max_throughput(Sleeper(0.01), p99_ms=60, precision=0.1, settings=settings)
    assert 0.35 * _limit(60, 0.01) < found.passing_qps < 1.15 * _limit(60, 0.01)


@pytest.mark.slow
def test_a_looser_bound_allows_a_higher_rate():
    settings = LoadSettings("server", min_seconds=1, min_queries=500)
    rates = [
        max_throughput(Sleeper(0.004), p99_ms=bound, precision=0.15, settings=settings).passing_qps
        for bound in (15, 400)
    ]
    assert rates[0] < rates[1]
