import math

import numpy as np
import pytest

from prunekit.errors import GoalError
from prunekit.plan import Goal


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
