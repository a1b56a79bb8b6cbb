"""Intervals of percentiles: SciPy has the same where runs are independent; how often they hold the truth."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy.stats import norm, quantile_test

from prunekit.measure import intervals
from prunekit.measure.intervals import Interval, fewest_runs, independent_runs, interval_of_percentile

PERCENTILES = (5.0, 50.0, 90.0, 99.0)


def alike(seed: int, runs: int, kept: float) -> np.ndarray:
    """Times whose logarithms are normal, each of which keeps a part of what the one before it was."""
    fresh = np.random.default_rng(seed).normal(size=runs)
    found = np.empty(runs)
    found[0] = fresh[0]
    for place in range(1, runs):
        found[place] = kept * found[place - 1] + math.sqrt(1 - kept**2) * fresh[place]
    return np.exp(0.1 * found)


@pytest.mark.parametrize("percentile", PERCENTILES)
@pytest.mark.parametrize("runs", [5, 6, 8, 40, 367, 368, 2000])
def test_of_independent_runs_it_is_the_interval_of_the_sign_test(monkeypatch, runs, percentile):
    """Oracle: ``scipy.stats.quantile_test``."""
    monkeypatch.setattr(intervals, "independent_runs", lambda times, _: len(times))
    times = np.random.default_rng(runs).lognormal(size=runs)
    found = interval_of_percentile(times, percentile)
    oracle = quantile_test(times, p=percentile / 100).confidence_interval(confidence_level=0.95)
    assert found.low == (0 if math.isnan(oracle.low) else oracle.low)
    assert found.high == (math.inf if math.isnan(oracle.high) else oracle.high)
    assert found.value == np.percentile(times, percentile)


@pytest.mark.parametrize(
    ("kept", "runs", "percentile", "least"),
    [(0.0, 40, 50, 0.95), (0.0, 1000, 99, 0.94), (0.5, 200, 50, 0.92), (0.9, 2000, 50, 0.90)],
)
def test_it_holds_the_truth_as_often_as_it_says(kept, runs, percentile, least):
    """Oracle: the percentile of the distribution that is drawn from; counting every run, 0.9 gives 40 %."""
    true = math.exp(0.1 * norm.ppf(percentile / 100))
    found = [interval_of_percentile(alike(seed, runs, kept), percentile) for seed in range(200)]
    assert np.mean([each.low <= true <= each.high for each in found]) >= least


def test_runs_in_two_halves_are_worth_no_more_than_their_batches():
    """Oracle: batches of 20 that are all below or all above are worth one run each."""
    steady = np.random.default_rng(0).normal(1, 0.01, 400)
    drifting = np.concatenate([steady[:200], 1.5 * steady[200:]])
    assert independent_runs(steady, 50) > 300
    assert independent_runs(drifting, 50) <= 20
    assert independent_runs(np.ones(400), 50) == 400


@pytest.mark.parametrize(("percentile", "fewest"), [(50, 6), (90, 36), (99, 368), (99.9, 3688), (1, 368)])
def test_the_fewest_runs_are_those_from_which_on_both_ends_are_told(monkeypatch, percentile, fewest):
    monkeypatch.setattr(intervals, "independent_runs", lambda times, _: len(times))
    assert fewest_runs(percentile) == fewest
    times = np.random.default_rng(0).lognormal(size=fewest)
    assert interval_of_percentile(times, percentile).is_told
    assert not interval_of_percentile(times[1:], percentile).is_told


def test_an_end_that_is_not_told_is_none_in_json():
    times = np.random.default_rng(0).lognormal(size=100)
    found = interval_of_percentile(times, 99)
    assert found.half_width == math.inf
    written = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert written["high"] is None
    assert written["low"] == found.low < found.value


def test_a_throughput_falls_as_the_time_rises():
    found = Interval(2.0, 1.6, 4.0, 0.95, 50, 40)
    assert found.half_width == 1.0
    assert found.inverse(8.0) == Interval(4.0, 2.0, 5.0, 0.95, 50, 40)
    assert Interval(2.0, 0.0, 4.0, 0.95, 5, 5).inverse(8.0).high == math.inf
    assert Interval(2.0, 1.0, math.inf, 0.95, 5, 5).inverse(8.0).low == 0
