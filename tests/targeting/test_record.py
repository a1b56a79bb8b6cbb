"""What is written down of attempts are the figures that the goals ask about."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from prunekit.errors import MeasurementError
from prunekit.plan import Goal
from prunekit.workflow.attempts import record_of


@pytest.mark.usefixtures("planted")
def test_macs_are_those_of_one_example_whatever_the_batch(measured):
    """Oracle: the exact count of the plan; the target has a batch of 4."""
    goals = [Goal("macs", remove=0.4, tolerance=0.03), Goal("speedup", reach=1.1, tolerance=0.03)]
    reached = measured.reach(goals)
    last = record_of(measured, goals, reached)["attempts"][-1]
    assert measured.rig.target.batch == 4
    for figures in (last["predicted"], last["measured"]):
        assert figures[0] == pytest.approx(reached.plan.after.macs)
    assert last["measured"][1] == last["speedup"]["median"]


@pytest.mark.usefixtures("planted")
def test_times_are_recorded_with_their_intervals_and_counts_without(measured):
    """Oracle: the comparison of the attempt, and on a machine that never wavers the figure itself."""
    dense = measured.costs.dense_ms
    goals = [
        Goal("speedup", reach=1.1, tolerance=0.2),
        Goal("latency_ms", reach=0.9 * dense, tolerance=0.2),
        Goal("throughput", reach=1000 * 4 / dense, tolerance=0.2),
        Goal("params", remove=0.1, tolerance=0.2),
    ]
    reached = measured.reach(goals)
    last = record_of(measured, goals, reached)["attempts"][-1]
    *timed, counted = last["intervals"]
    assert counted is None
    for found, value in zip(timed, last["measured"], strict=False):
        assert (found["low"], found["high"]) == pytest.approx((value, value))
        assert (found["value"], found["runs"]) == (value, 20)
    assert json.loads(json.dumps(last["intervals"], allow_nan=False)) == last["intervals"]


@pytest.mark.usefixtures("planted")
def test_a_percentile_of_too_few_calls_is_not_accepted(measured):
    """Every attempt has 20 calls, the largest of which is no bound of the 99th percentile."""
    goal = Goal("latency_ms", reach=0.8 * measured.costs.dense_ms, tolerance=0.03, percentile=99)
    with pytest.raises(MeasurementError, match=r"20 calls are too few .* at least 368 calls"):
        measured.reach(goal)
    median = replace(goal, percentile=None)
    assert measured.reach(median).attempts[-1].intervals[str(median)].is_told
