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


def test_plans_lie_between_the_two():
    """Oracle: every plan in the box, looked at one by one."""
    bracket = Bracket(attempt([0, 1, 2], 1.5), attempt([3, 2, 0], 2.5))
    limit = Limit(Figure(1.0, TABLE), 9.0)
    found = bracket.choose(Figure(0.5, LOSS), [limit], seconds=2, tried=[bracket.short, bracket.over])
    box = [np.array([a, b, c]) for a in range(4) for b in (1, 2) for c in range(3)]
    allowed = [levels for levels in box if limit.is_met(levels)]
    best = min(Figure(0.5, LOSS).at(levels) for levels in allowed)
    assert any((found.levels == levels).all() for levels in allowed)
    assert found.objective == pytest.approx(best)


def test_a_plan_that_was_tried_is_not_tried_again():
    bracket = Bracket(attempt([0, 0, 0], 1.5), attempt([1, 0, 0], 2.5))
    limit = Limit(Figure(1.0, TABLE), 12.5)
    assert bracket.choose(Figure(0.0, LOSS), [limit], seconds=2, tried=[bracket.over]) is None
