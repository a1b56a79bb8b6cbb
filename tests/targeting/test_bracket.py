"""Goals are met on a machine that surprises: the widths of every layer cost what none shows by itself.

The oracle is the planted machine: what a plan takes there is read from the pruned graph.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.targeting.conftest import PlantedRig, Runner
from torch import nn

from prunekit.plan import Goal
from prunekit.plan.figures import Figure, Limit
from prunekit.plan.knapsack import Chosen
from prunekit.targeting.attempts import Attempt
from prunekit.targeting.bracket import Bracket
from prunekit.targeting.planner import Planner

pytestmark = pytest.mark.usefixtures("planted")


class Surprising(PlantedRig):
    """Every layer's time is off by up to ``share``, by its sizes alone; where nothing is gone it is not."""

    def __init__(self, measured: Planner, seed: int, share: float) -> None:
        super().__init__(measured.rig.inputs)
        self.seed, self.share = seed, share
        self.dense = self.off(measured.model)

    def off(self, artifact: nn.Module) -> float:
        shapes = [tuple(each.shape) for each in artifact.parameters() if each.ndim == 2]
        return float(np.mean([np.random.default_rng([self.seed, *each]).uniform(-1, 1) for each in shapes]))

    def open_artifact(self, artifact: nn.Module) -> Runner:
        ms = super().open_artifact(artifact).ms
        return Runner(ms * (1 + self.share * (self.off(artifact) - self.dense)))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("asked", [1.2, 1.5])
def test_goals_are_met_where_predictions_are_off_by_plan(measured, seed, asked):
    rig = Surprising(measured, seed, 0.15)
    reached = replace(measured, rig=rig).reach(Goal("speedup", reach=asked, tolerance=0.03))
    assert not reached.overdone
    assert abs(reached.comparison.speedup.median / asked - 1) <= 0.03


def attempt(levels, speedup: float) -> Attempt:
    return Attempt(np.array(levels), "milp", {}, {"2 speedup": speedup}, {}, 0.0, None, 0.0, 0.0)


TABLE = {(place,): np.array([4.0, 3.0, 2.0, 1.0]) for place in range(3)}
LOSS = {(place,): np.array([0.0, 1.0, 2.0, 4.0]) * (place + 1) for place in range(3)}
GOAL = Goal("speedup", reach=2)


class Counted:
    """The figures of a goal of a speed-up on a machine that is as the table says."""

    ms = Figure(1.0, TABLE)

    def predicted(self, goal: Goal, levels: np.ndarray) -> float:
        return self.ms.at([0, 0, 0]) / self.ms.at(levels)

    def wrong(self, goal: Goal, measured: float, levels: np.ndarray) -> float:
        return self.predicted(goal, levels) / measured

    def corrected(self, goal: Goal, levels: np.ndarray, wrong: float) -> float:
        return self.predicted(goal, levels) / wrong

    def surplus(self, goal: Goal, measured: float) -> float:
        return measured / (goal.reach or 1) - 1


def chosen(bracket: Bracket, *tried: Attempt) -> Chosen | None:
    limit = Limit(Counted.ms, 6.5)
    return bracket.choose(Figure(0.5, LOSS), [limit], [GOAL], Counted(), tried=tried)


@pytest.mark.parametrize("off", [0.8, 1.0, 1.2])
def test_the_way_leads_from_one_to_the_other_by_single_steps(off):
    """Every plan of it, asked for one after the other; oracle: the figures of the table, off by a factor."""
    ends = [attempt(levels, off * Counted().predicted(GOAL, levels)) for levels in ([0, 1, 2], [3, 3, 0])]
    tried = list(ends)
    while (found := chosen(Bracket(*ends), *tried)) is not None:
        assert found.objective == Figure(0.5, LOSS).at(found.levels)
        tried.append(attempt(found.levels, off * Counted().predicted(GOAL, found.levels)))
    way = [each.levels for each in tried[2:]]
    assert len(way) == len({levels.tobytes() for levels in way}) == 6
    assert all((levels >= [0, 1, 0]).all() and (levels <= [3, 3, 2]).all() for levels in way)
    steps = sorted((levels - ends[0].levels).__abs__().sum() for levels in way)
    assert steps == [1, 2, 3, 4, 5, 6]


def test_the_nearest_is_tried_and_where_that_failed_twice_the_one_halfway():
    """Both ends are a quarter faster than the table says; oracle: the table's plan of just that figure."""
    short, over = (
        attempt(levels, 1.25 * Counted().predicted(GOAL, levels)) for levels in ([0] * 3, [3, 3, 0])
    )
    found = chosen(Bracket(short, over), short, over)
    assert 1.25 * Counted().predicted(GOAL, found.levels) == pytest.approx(GOAL.reach, rel=0.05)
    assert chosen(Bracket(short, over), over, over).levels.sum() == 3


def test_a_plan_that_was_tried_is_not_tried_again():
    bracket = Bracket(attempt([0, 0, 0], 1.5), attempt([1, 0, 0], 2.5))
    assert chosen(bracket, bracket.over, bracket.short) is None
