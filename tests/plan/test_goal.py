import json
import math
from dataclasses import asdict

import numpy as np
import pytest

from prunekit.errors import GoalError
from prunekit.plan import Goal
from prunekit.plan.goal import KINDS, MEASURED_KINDS


@pytest.mark.parametrize("remove", [1.0, 1.2, -0.1, math.nan, math.inf, "half", True])
@pytest.mark.parametrize("kind", ["sparsity", "macs", "params"])
def test_a_fraction_outside_zero_to_one_is_refused(kind, remove):
    with pytest.raises(GoalError, match="remove: The fraction of"):
        Goal(kind, remove=remove)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "latency", "remove": 0.5}, "The goal is 'latency'"),
        ({"kind": ["macs"], "remove": 0.5}, r"The goal is '\['macs'\]'"),
        ({"kind": "macs"}, "exactly one of them"),
        ({"kind": "macs", "remove": 0.5, "reach": 10}, "exactly one of them"),
        ({"kind": "macs", "reach": 0}, "an integer above 0"),
        ({"kind": "params", "reach": 10.5}, "an integer above 0"),
        ({"kind": "params", "reach": True}, "an integer above 0"),
        ({"kind": "sparsity", "reach": 10}, "absolute figure"),
        ({"kind": "macs", "remove": 0.5, "tolerance": math.nan}, "The tolerance is nan"),
        ({"kind": "macs", "remove": 0.5, "tolerance": -0.01}, "The tolerance is -0.01"),
    ],
)
def test_other_wrong_goals_are_explained(arguments, message):
    with pytest.raises(GoalError, match=message):
        Goal(**arguments)


@pytest.mark.parametrize(
    ("goal", "before", "asked"),
    [
        (Goal("macs", remove=0.5), 1000, 500),
        (Goal("macs", remove=0.5), 7, 4),  # a half stays
        (Goal("params", remove=0.1), 10, 9),  # 10 * (1 - 0.1) is exact only after rounding
        (Goal("params", reach=123), 1000, 123),
        (Goal("params", remove=np.float32(0.5)), 10, 5),
        (Goal("sparsity", remove=0.0), 9, 9),
    ],
)
def test_the_asked_figure(goal, before, asked):
    assert goal.asked(before) == asked


def test_reached_is_relative_to_the_asked_figure():
    goal = Goal("macs", remove=0.9, tolerance=0.02)
    assert goal.is_reached(98, 100)
    assert goal.is_reached(102, 100)
    assert not goal.is_reached(103, 100)
    assert not goal.is_reached(97, 100)


def test_goals_read_well():
    assert str(Goal("macs", remove=0.25)) == "0.25 fewer macs"
    assert str(Goal("params", reach=12345)) == "12,345 params"
    assert str(Goal("sparsity", remove=0.5)) == "sparsity 0.5"


@pytest.mark.parametrize("kind", KINDS)
def test_goals_of_every_kind_survive_json(kind):
    goals = [Goal(kind, reach=12, tolerance=0.05)] if kind != "sparsity" else []
    if kind == "latency_ms":
        goals.append(Goal(kind, reach=np.float32(7.5), percentile=99))
    if kind not in MEASURED_KINDS:
        goals.append(Goal(kind, remove=0.25))
    for goal in goals:
        assert Goal(**json.loads(json.dumps(asdict(goal)))) == goal
        assert kind in str(goal)
        assert goal.is_measured == (kind in MEASURED_KINDS)


@pytest.mark.parametrize("kind", MEASURED_KINDS)
@pytest.mark.parametrize("reach", [0, -1.5, math.nan, math.inf, True, "fast"])
def test_a_figure_that_no_target_gives_is_refused(kind, reach):
    with pytest.raises(GoalError, match="a number above 0"):
        Goal(kind, reach=reach)


@pytest.mark.parametrize("reach", [0.5, 0.999])
def test_a_speedup_that_is_slower_is_refused(reach):
    with pytest.raises(GoalError, match=r"slower than the dense model\. Expected 1 or more"):
        Goal("speedup", reach=reach)


@pytest.mark.parametrize("kind", MEASURED_KINDS)
def test_what_is_measured_is_a_figure_and_no_fraction(kind):
    with pytest.raises(GoalError, match="reach, a figure"):
        Goal(kind, remove=0.5)
    with pytest.raises(GoalError, match="exactly one"):
        Goal(kind)


@pytest.mark.parametrize("percentile", [0, 100, -5, 150, math.nan, True, "p99"])
def test_percentiles_lie_between_the_ends(percentile):
    with pytest.raises(GoalError, match="percentile"):
        Goal("latency_ms", reach=5.0, percentile=percentile)


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"latency_ms"}))
def test_only_a_latency_has_a_percentile(kind):
    asked = {"remove": 0.5} if kind == "sparsity" else {"reach": 5}
    with pytest.raises(GoalError, match="for latency_ms alone"):
        Goal(kind, percentile=99, **asked)


def test_measured_goals_read_well():
    assert str(Goal("speedup", reach=2)) == "2 speedup"
    assert str(Goal("latency_ms", reach=20, percentile=99)) == "20 latency_ms at the 99th percentile"
