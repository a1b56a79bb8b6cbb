"""Measured goals over cycles: they end at the goal, never go back, and speed-ups multiply."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunekit.plan import Goal
from prunekit.recover import shares
from prunekit.targeting import goals_of_cycle

DENSE = {
    "latency_ms": 40.0,
    "throughput": 25.0,
    "size_bytes": 8e6,
    "memory_bytes": 9e7,
    "kv_cache_bytes": 5e5,
    "macs": 1e9,
    "params": 2e6,
}
NOW = {"macs": 1e9, "params": 2e6}
CURVES = ("linear", "cubic", "exponential")


def only(goal, share, earlier=0.0, now=NOW, speedup=1.0):
    [found] = goals_of_cycle([goal], share, earlier, DENSE, now, speedup)
    return found


@given(st.floats(1.05, 8), st.integers(1, 6), st.sampled_from(CURVES))
def test_speedups_of_cycles_multiply_to_the_goal(speedup, cycles, curve):
    """Oracle: what is left of the time, ``1 - (1 - 1 / S) * share``."""
    done = 1.0
    for share in shares(curve, cycles):
        step = only(Goal("speedup", reach=speedup), share, speedup=done).reach
        done *= step
        assert math.isclose(1 / done, 1 - (1 - 1 / speedup) * share, rel_tol=1e-5)
    assert math.isclose(done, speedup, rel_tol=1e-5)


def test_a_cycle_makes_up_for_the_one_before():
    """Twice as fast is asked, and 1.6 times is there: 1.25 times is left."""
    assert only(Goal("speedup", reach=2), 1.0, 0.9, speedup=1.6).reach == pytest.approx(1.25)


def test_a_cycle_that_has_nothing_left_to_do_asks_for_no_more():
    """Half of the way to twice as fast is 4/3 of the speed, and 1.6 times is there."""
    assert only(Goal("speedup", reach=2), 0.5, speedup=1.6).reach == 1


@pytest.mark.parametrize(
    ("kind", "asked"),
    [("latency_ms", 10.0), ("size_bytes", 2e6), ("memory_bytes", 7e7), ("kv_cache_bytes", 1e5)],
)
def test_figures_fall_in_a_straight_line(kind, asked):
    goal = Goal(kind, reach=asked)
    found = [only(goal, share).reach for share in (0.25, 0.5, 0.75, 1.0)]
    steps = [DENSE[kind], *found]
    assert found[-1] == asked
    assert all(a > b for a, b in pairwise(steps))
    assert steps[0] - steps[1] == pytest.approx((DENSE[kind] - asked) / 4)


def test_what_the_parent_meets_already_is_asked_for_whole():
    assert only(Goal("latency_ms", reach=50), 0.5).reach == 50
    assert only(Goal("throughput", reach=20), 0.5).reach == 20
    assert only(Goal("throughput", reach=20), 1.0).reach == 20


def test_throughput_goes_the_way_of_the_time():
    """Twice the examples in a second: half of the way is three quarters of the time."""
    assert only(Goal("throughput", reach=50), 0.5).reach == pytest.approx(25 / 0.75, rel=1e-5)


def test_a_quality_drop_is_shared_out():
    goal = Goal("quality_drop", reach=0.3)
    on_curve = (0.0, *shares("cubic", 3))
    parts = [only(goal, share, earlier).reach for earlier, share in pairwise(on_curve)]
    assert sum(parts) == pytest.approx(0.3)
    assert all(part > 0 for part in parts)


def test_counted_figures_are_relative_to_the_model_at_hand():
    """Half of a thousand million MACs are to go; the cycle starts with 0.8 of them and goes to the end."""
    for goal in (Goal("macs", remove=0.5), Goal("macs", reach=500_000_000)):
        found = only(goal, 1.0, 0.4, now={**NOW, "macs": 8e8})
        assert (found.reach, found.remove) == (None, pytest.approx(1 - 5 / 8))
    assert only(Goal("macs", remove=0.5), 0.4, now={**NOW, "macs": 7e8}).remove == 0.0
