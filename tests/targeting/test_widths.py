"""Widths that a target rewards are found from its stairs, and the costs are what they are said to be.

Oracle: a machine whose times are planted: stairs of a known width.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.targeting.conftest import PlantedRig, Runner
from torch import nn

from prunekit.graph import find_groups, trace
from prunekit.plan.limits import Limits
from prunekit.targeting import Space, rewarded_widths
from prunekit.targeting.costs import Seen, spread_plans, tag
from prunekit.targeting.operator_times import OperatorTimes

pytestmark = pytest.mark.usefixtures("planted")


class Stairs(PlantedRig):
    """An operation takes as long as if its widths were the next multiples of the stair."""

    stair = 12

    def open_operation(self, operation):
        rounded = 1
        for size in (operation.inputs[0][-1], operation.output[-1]):
            rounded *= -(-size // self.stair)
        return Runner(0.001 + 0.1 * rounded)


@pytest.fixture(scope="module")
def groups():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 96), nn.ReLU(), nn.Linear(96, 72), nn.ReLU(), nn.Linear(72, 24))
    return find_groups(trace(model, torch.randn(4, 24)))


def scores_of(groups):
    draw = np.random.default_rng(0)
    return {group.name: draw.random(group.size).astype(np.float32) for group in groups}


def test_widths_lie_at_the_edges_of_the_stairs(groups):
    rig = Stairs((torch.zeros(4, 24),))
    space = Space(most_levels=6)
    found = rewarded_widths(groups, space, scores_of(groups), rig, OperatorTimes("here"))
    for group in groups:
        widths = found[group.name]
        assert widths[0] == group.size
        assert list(widths) == sorted(set(widths), reverse=True)
        assert 2 <= len(widths) <= 6
        # Among the widths that were timed some may miss an edge; none lies far beyond one.
        over = [width % Stairs.stair for width in widths[1:]]
        assert np.mean([rest in (0, *range(8, 12)) for rest in over]) >= 0.6


def test_limits_hold_for_the_widths(groups):
    rig = Stairs((torch.zeros(4, 24),))
    space = Space(limits=Limits(min_units=20, round_to=4))
    found = rewarded_widths(groups, space, scores_of(groups), rig, OperatorTimes("here"))
    for group in groups:
        assert all(width >= 20 and width % 4 == 0 for width in found[group.name])


def test_plans_to_learn_from_are_spread(measured):
    """They keep a falling share of the MACs, from nearly all to the least, and none comes twice."""
    costs = measured.costs
    plans = spread_plans(costs.levers, costs.operations, 6, seed=0)
    macs = [measured.groups.cost(plan).macs for plan in plans]
    assert macs == sorted(macs, reverse=True)
    assert len({tag(plan) for plan in plans}) == len(plans)
    whole = measured.groups.cost().macs
    assert macs[0] <= 0.9 * whole
    assert macs[-1] <= 0.35 * whole
    again = spread_plans(costs.levers, costs.operations, 6, seed=0)
    for one, other in zip(plans, again, strict=True):
        assert one.keys() == other.keys()
        assert all((one[name] == other[name]).all() for name in one)


def test_costs_that_learn_are_right_where_they_learnt(measured):
    """Speed-ups twice as high as planted, on three plans: the new predictions lie between."""
    costs = measured.costs
    draw = np.random.default_rng(1)
    levels = [draw.integers(0, costs.sizes) for _ in range(3)]
    told = [Seen(costs.levers.masks(each), 2 * costs.speedup(each)) for each in levels]
    learnt = costs.learnt(measured.rig, told)
    for each in levels:
        assert learnt.ms.at(each) < costs.ms.at(each)
    assert costs.learnt(measured.rig, []).ms.at(levels[0]) == pytest.approx(costs.ms.at(levels[0]))


def test_predictions_of_the_planted_machine_are_near(measured):
    """The planted times are nearly of the model's form; what is left shows in its errors."""
    assert measured.costs.latency.median_error < 0.05
    assert measured.costs.dense_ms == pytest.approx(
        measured.costs.ms.at([0] * len(measured.costs.levers)), rel=0.05
    )
