"""The front: no point is dominated, every figure is the plan's, and all of it goes into JSON."""

from __future__ import annotations

import importlib
import itertools
import json

import numpy as np
import pytest

from prunekit.errors import CalibrationError, GoalError, MeasurementError
from prunekit.plan import Goal
from prunekit.plan.figures import Limit
from prunekit.plan.knapsack import GAP, choose
from prunekit.targeting import measured_front, predicted_front
from prunekit.targeting.front import Point, undominated

pytestmark = pytest.mark.usefixtures("planted")


@pytest.mark.parametrize("count", [2, 5, 12])
def test_no_point_is_dominated(measured, count):
    front = predicted_front(measured, count)
    assert 2 <= len(front) <= count + 1
    for one, other in itertools.permutations(front, 2):
        assert not (other.ms <= one.ms and other.loss <= one.loss)
    assert [point.ms for point in front] == sorted((point.ms for point in front), reverse=True)


def test_the_ends_are_the_dense_model_and_the_fastest(measured):
    front, costs = predicted_front(measured, 6), measured.costs
    fastest = choose(costs.ms, [], costs.sizes)
    assert fastest is not None
    assert not any(front[0].levels)
    assert front[0].speedup == 1
    assert front[0].loss == 0
    assert front[-1].ms == pytest.approx(costs.ms.at(fastest.levels))


def test_figures_are_those_of_the_plans(measured):
    for point in predicted_front(measured, 6):
        levels, costs = np.array(point.levels), measured.costs
        cost = measured.groups.cost(costs.levers.masks(levels))
        assert point.params == cost.params
        assert point.macs == cost.macs * measured.rig.target.batch
        assert point.ms == pytest.approx(costs.ms.at(levels))
        assert point.speedup == pytest.approx(costs.speedup(levels))
        assert point.loss == pytest.approx(measured.losses.at(levels))


def test_every_point_is_the_least_loss_at_its_latency(measured):
    for point in predicted_front(measured, 6)[1:]:
        best = choose(measured.losses, [Limit(measured.costs.ms, point.ms)], measured.costs.sizes)
        assert best is not None
        assert point.loss <= best.objective * (1 + 2 * GAP) + 1e-9


def test_points_go_into_json(measured):
    front = predicted_front(measured, 4)
    plain = json.loads(json.dumps([point.as_dict() for point in front]))
    assert [Point(**{**point, "levels": tuple(point["levels"])}) for point in plain] == list(front)


def test_one_point_is_no_front(measured):
    with pytest.raises(GoalError, match="at least 2"):
        predicted_front(measured, 1)


@pytest.mark.parametrize("seed", range(5))
def test_what_is_dominated_is_left_out(seed):
    """Oracle: every pair compared."""
    draw = np.random.default_rng(seed)
    points = [
        Point(1.0, float(ms), float(loss), 0.0, 0.0, (place,))
        for place, (ms, loss) in enumerate(draw.integers(0, 6, (20, 2)))
    ]
    left = {(point.ms, point.loss) for point in undominated(points)}
    pairs = {(point.ms, point.loss) for point in points}
    assert len(undominated(points)) == len(left)
    assert left == {
        one
        for one in pairs
        if not any(other != one and other[0] <= one[0] and other[1] <= one[1] for other in pairs)
    }


def total(module) -> float:
    """A loss that follows from the weights alone."""
    return float(sum(parameter.detach().sum() for parameter in module.parameters()))


def test_goals_are_measured_one_by_one(measured):
    goals = [
        Goal("speedup", reach=1.2, tolerance=0.03),
        Goal("speedup", reach=900),
        Goal("params", remove=0.3),
    ]
    front = measured_front(measured, goals, loss=lambda module: total(module))
    assert [point.goal for point in front.points] == [str(goals[0]), str(goals[2])]
    assert list(front.missed) == [str(goals[1])]
    assert "out of reach" in front.missed[str(goals[1])]
    first = front.points[0]
    assert abs(first.speedup / 1.2 - 1) <= 0.03
    assert first.low <= first.speedup <= first.high
    assert first.measured_loss is not None
    assert first.measured_loss == pytest.approx(
        total(measured.remove(measured.reach(goals[0]))[0].model), abs=1e-3
    )
    assert json.loads(json.dumps(front.as_dict()))["points"][0]["predicted"]["levels"]


@pytest.mark.parametrize("by", ["uniform", "greedy"])
def test_baselines_have_fronts_too(measured, by):
    front = measured_front(measured, [Goal("speedup", reach=1.3, tolerance=0.03)], allocation=by)
    (point,) = front.points
    assert point.allocation == by
    assert point.measured_loss is None
    assert abs(point.speedup / 1.3 - 1) <= 0.03


def test_a_loss_that_is_no_number_is_refused(measured):
    with pytest.raises(CalibrationError, match="nan"):
        measured_front(measured, [Goal("params", remove=0.3)], loss=lambda _: float("nan"))
    with pytest.raises(CalibrationError, match=r"reached 0\.3 fewer params.*raised ZeroDivisionError"):
        measured_front(measured, [Goal("params", remove=0.3)], loss=lambda _: 1 / 0)


def test_one_noisy_measurement_does_not_lose_the_others(measured, monkeypatch):
    goals = [Goal("speedup", reach=1.2, tolerance=0.03), Goal("params", remove=0.3)]

    def too_noisy(comparison, goal):
        raise MeasurementError("known to 38 % only")

    monkeypatch.setattr(importlib.import_module("prunekit.targeting.reach"), "check_steady", too_noisy)
    front = measured_front(measured, goals)
    assert "known to 38" in front.missed[str(goals[0])]
    assert [point.goal for point in front.points] == [str(goals[1])]
