"""Goals are met as measured, by every allocation, on a machine whose times are planted.

The oracle is the planted formula: what a plan takes is read from the pruned graph, not from the predictions.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.targeting.conftest import MS_PER_MAC, MS_PER_PARAMETER, REST_MS, PlantedRig

from prunekit.errors import GoalError
from prunekit.importance import score
from prunekit.plan import Goal
from prunekit.plan.baselines import ALLOCATIONS
from prunekit.targeting import Planner

pytestmark = pytest.mark.usefixtures("planted")


def planted_ms(planner: Planner, levels) -> float:
    cost = planner.groups.cost(planner.costs.levers.masks(levels))
    return REST_MS + MS_PER_MAC * cost.macs * planner.rig.drift + MS_PER_PARAMETER * cost.params


def dense_ms(planner: Planner) -> float:
    return planted_ms(planner, np.zeros(len(planner.costs.levers), dtype=int))


@pytest.mark.parametrize("asked", [1.15, 1.3, 1.6])
@pytest.mark.parametrize("by", ALLOCATIONS)
def test_a_speedup_is_met_by_every_allocation(measured, by, asked):
    reached = measured.reach(Goal("speedup", reach=asked, tolerance=0.03), allocation=by)
    levels = reached.attempts[-1].levels
    true = dense_ms(measured) / planted_ms(measured, levels)
    assert reached.comparison.speedup.median == pytest.approx(true)
    assert abs(true / asked - 1) <= 0.03
    assert reached.plan.scope == by
    assert reached.plan.after == measured.groups.cost(reached.plan.keep_mask())


@pytest.mark.parametrize("drift", [0.6, 1.7])
def test_wrong_predictions_are_corrected(measured, drift):
    """The machine that measures the attempts is not the one that the tables were made on."""
    rig = PlantedRig(measured.rig.inputs, drift=drift)
    other = replace(measured, rig=rig)
    reached = other.reach(Goal("speedup", reach=1.4, tolerance=0.03))
    true = dense_ms(other) / planted_ms(other, reached.attempts[-1].levels)
    assert abs(true / 1.4 - 1) <= 0.03


def goals_of(planner: Planner) -> list[Goal]:
    before = planner.groups.cost()
    return [
        Goal("latency_ms", reach=0.8 * dense_ms(planner), tolerance=0.03),
        Goal("throughput", reach=1.25 * 4000 / dense_ms(planner), tolerance=0.03),
        Goal("macs", reach=round(before.macs * 0.6), tolerance=0.03),
        Goal("macs", remove=0.4, tolerance=0.03),
        Goal("params", remove=0.5, tolerance=0.03),
        Goal("size_bytes", reach=before.param_bytes * 0.7, tolerance=0.03),
    ]


@pytest.mark.parametrize("kind", range(6))
@pytest.mark.parametrize("by", ["knapsack", "uniform"])
def test_other_figures_are_met(measured, kind, by):
    goal = goals_of(measured)[kind]
    reached = measured.reach(goal, allocation=by)
    cost = measured.groups.cost(reached.plan.keep_mask())
    true = {
        "latency_ms": planted_ms(measured, reached.attempts[-1].levels),
        "throughput": 4000 / planted_ms(measured, reached.attempts[-1].levels),
        "macs": cost.macs,
        "params": cost.params,
        "size_bytes": cost.param_bytes,
    }[goal.kind]
    before = measured.groups.cost()
    asked = {"macs": before.macs, "params": before.params}.get(goal.kind, 0) * (1 - (goal.remove or 0))
    asked = asked if goal.remove else goal.reach
    assert abs(true / asked - 1) <= goal.tolerance + 1e-9
    assert reached.measured[str(goal)] == pytest.approx(true)


def test_several_goals_are_met_together(measured):
    goals = [Goal("speedup", reach=1.2, tolerance=0.05), Goal("params", remove=0.5, tolerance=0.05)]
    reached = measured.reach(goals)
    assert reached.measured["1.2 speedup"] >= 1.2 * 0.95
    assert measured.groups.cost(reached.plan.keep_mask()).params <= 0.5 * measured.groups.cost().params * 1.05


def test_a_loss_can_be_the_bound(measured):
    with pytest.raises(GoalError, match="no loss was measured"):
        measured.reach(Goal("quality_drop", reach=1.0))
    measured = replace(measured, curves=tuple(replace(curve, source="measured") for curve in measured.curves))
    most = 0.5 * measured.losses.at(measured.costs.levers.last)
    reached = measured.reach(Goal("quality_drop", reach=most))
    assert measured.losses.at(reached.attempts[-1].levels) <= most * (1 + 1e-9)
    assert reached.comparison.speedup.median > 1.1


@pytest.mark.parametrize("by", ALLOCATIONS)
def test_what_is_out_of_reach_is_said(measured, by):
    with pytest.raises(GoalError, match=r"out of reach|No plan of the allocation") as error:
        measured.reach(Goal("speedup", reach=500.0), allocation=by)
    assert "500" in str(error.value)


def test_out_of_reach_names_the_best_figure(measured):
    with pytest.raises(GoalError, match=r"the best is [\d.]+") as error:
        measured.reach(Goal("speedup", reach=500.0))
    assert any(lever.name in str(error.value) for lever in measured.costs.levers)


@pytest.mark.parametrize(
    ("goals", "allocation", "message"),
    [
        (Goal("sparsity", remove=0.5), "knapsack", "sparsity"),
        ((), "knapsack", "No goal"),
        (Goal("speedup", reach=2), "best", "allocation"),
        (Goal("quality_drop", reach=1), "uniform", "quality_drop"),
    ],
)
def test_mistakes_are_explained(measured, goals, allocation, message):
    with pytest.raises(GoalError, match=message):
        measured.reach(goals, allocation=allocation)


def test_the_knapsack_loses_least_at_equal_measured_speed(measured):
    goal = Goal("speedup", reach=1.4, tolerance=0.02)
    found = {by: measured.reach(goal, allocation=by).attempts[-1] for by in ALLOCATIONS}
    least = measured.losses.at(found["knapsack"].levels)
    for attempt in found.values():  # They may differ by the tolerance in what they are as fast as.
        assert measured.losses.at(attempt.levels) >= 0.9 * least
    assert measured.losses.at(found["uniform"].levels) > least


def test_baselines_rank_by_scores_that_are_not_normalised(measured):
    """Oracle: the norms of the weights as they are; inside a group the order is the levers'."""
    expected = score(measured.model, measured.groups, "l2", normalization="none")
    for lever in measured.costs.levers:
        np.testing.assert_array_equal(measured.scores[lever.group.name], expected[lever.group.name])
        if lever.unit is None:
            ordered = measured.scores[lever.group.name][lever.order]
            assert (np.diff(ordered, axis=1) <= 1e-6).all()
