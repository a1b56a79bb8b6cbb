"""Which plans are attempted, and what is learnt from them, on a planted machine that surprises."""

from __future__ import annotations

import importlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.targeting.conftest import PlantedRig, Runner, comparison_of
from torch import nn

from prunekit.errors import GoalError, MeasurementError
from prunekit.graph import find_groups, trace
from prunekit.measure import Target
from prunekit.measure.latency import joined
from prunekit.plan import Goal
from prunekit.targeting import Space, Timing, planner
from prunekit.targeting.measuring import USUAL_EFFORT, check_steady
from prunekit.targeting.planner import Planner

pytestmark = pytest.mark.usefixtures("planted")


class Slower(PlantedRig):
    """Takes up to ``share`` longer than planted, the more so the more is gone."""

    def __init__(self, inputs, dense_ms: float, share: float) -> None:
        super().__init__(inputs)
        self.dense_ms, self.share = dense_ms, share

    def open_artifact(self, artifact: nn.Module) -> Runner:
        ms = super().open_artifact(artifact).ms
        return Runner(ms * (1 + self.share * (1 - ms / self.dense_ms)))


def on_a_slower_machine(measured: Planner, share: float) -> Planner:
    inputs = measured.rig.inputs
    dense = PlantedRig(inputs).open_artifact(measured.model).ms
    return replace(measured, rig=Slower(inputs, dense, share))


@pytest.mark.parametrize("allocation", ["knapsack", "uniform", "greedy"])
@pytest.mark.parametrize("asked", [1.3, 1.7])
def test_no_plan_is_attempted_twice(measured, asked, allocation):
    goal = Goal("speedup", reach=asked, tolerance=0.001)
    reached = on_a_slower_machine(measured, 0.1).reach(goal, allocation=allocation)
    levels = [attempt.levels.tobytes() for attempt in reached.attempts]
    assert len(set(levels)) == len(levels)


def test_the_plan_that_reached_the_goal_has_taught_too(measured):
    """Oracle: what the planted machine takes for that plan."""
    goal = Goal("speedup", reach=1.5, tolerance=0.2)
    reached = on_a_slower_machine(measured, 0.1).reach(goal)
    assert len(reached.attempts) == 1
    took, levels = reached.comparison.speedup.median, reached.attempts[0].levels
    assert abs(reached.costs.speedup(levels) / took - 1) < abs(measured.costs.speedup(levels) / took - 1)


def test_what_attempts_taught_can_be_kept_for_another_goal(measured):
    """Oracle: the plans that were carried out, one whole model each."""
    planner = on_a_slower_machine(measured, 0.2)
    first = planner.reach(Goal("speedup", reach=1.3, tolerance=0.01))
    known = len(planner.costs.latency.models)
    later = planner.learnt(first)
    assert len(later.costs.latency.models) == known + len(first.attempts)
    second = later.reach(Goal("speedup", reach=1.7, tolerance=0.01))
    assert len(second.costs.latency.models) == known + len(first.attempts) + len(second.attempts)


def test_the_fastest_plan_is_named_however_it_came_to_be_measured(measured):
    """The goal is below what is predicted of the fastest plan, and above what that measures."""
    slower = on_a_slower_machine(measured, 0.2)
    levels = np.array([size - 1 for size in measured.costs.sizes])
    best = measured.costs.speedup(levels)
    goal = Goal("speedup", reach=0.995 * best, tolerance=0.01)
    with pytest.raises(GoalError, match="out of reach") as caught:
        slower.reach(goal)
    assert f"came a plan that measured {caught.value.nearest[str(goal)]:,.4g}" in str(caught.value)


def test_what_was_not_met_says_the_nearest_figure(measured):
    """One attempt on a machine that falls short; oracle: what the same attempt measures where it counts."""
    slower = on_a_slower_machine(measured, 0.2)
    fine, coarse = (Goal("speedup", reach=1.7, tolerance=tolerance) for tolerance in (0.001, 0.5))
    with pytest.raises(GoalError, match="in 1 attempts") as caught:
        slower.reach(fine, attempts=1)
    counted = slower.reach(coarse, attempts=1).attempts[0].measured[str(coarse)]
    assert caught.value.nearest[str(fine)] == pytest.approx(counted)
    assert counted < 1.7 * 0.999


@pytest.mark.parametrize(("noises", "parts"), [((0.1, 0.1), 1), ((0.001, 0.1), 2)])
def test_what_counts_is_measured_for_as_long_as_it_takes_to_tell(measured, monkeypatch, noises, parts):
    """Oracle: the check that refuses what is wider than the tolerance; forty noisy pairs never pass it."""
    goal, pairs_seen = Goal("speedup", reach=1.5, tolerance=0.03), []

    def wavering(dense, pruned, *, effort, seed, known=None, **_):
        pairs = effort.pairs
        draw, noise = np.random.default_rng([seed, pairs]), noises[seed > 0]
        times = [one.ms * np.exp(noise * draw.normal(size=pairs)) for one in (dense, pruned)]
        pairs_seen.append(pairs)
        new = comparison_of(*times)
        return new if known is None else joined(known, new)

    monkeypatch.setattr(importlib.import_module("prunekit.targeting.reach"), "measure_beside", wavering)
    reached = measured.reach(goal)
    check_steady(reached.comparison, goal)
    assert reached.comparison.speedup.pairs == sum(pairs_seen[-parts:]) > pairs_seen[0] == 40
    with pytest.raises(MeasurementError, match="pairs would be needed"):
        check_steady(wavering(Runner(2.0), Runner(1.0), effort=USUAL_EFFORT, seed=1), goal)


def patched(monkeypatch, measure):
    monkeypatch.setattr(importlib.import_module("prunekit.targeting.reach"), "measure_beside", measure)


def noisy_at_first(off: float, *, faster: float = 1.0):
    """A first look is noisy and ``off``, what follows is neither; pruned models are ``faster``."""

    def measure(dense, pruned, *, effort, known=None, **_):
        first = effort == USUAL_EFFORT
        noise = np.exp(0.12 * np.random.default_rng(0).normal(size=effort.pairs)) if first else 1.0
        wrong = off if first else 1.0
        new = comparison_of(
            np.full(effort.pairs, dense.ms) * noise, np.full(effort.pairs, pruned.ms / faster / wrong)
        )
        return new if known is None else joined(known, new)

    return measure


@pytest.mark.parametrize("off", [0.95, 1.05])
def test_what_may_have_met_the_goal_is_measured_further_before_another_is_tried(measured, monkeypatch, off):
    """Oracle: the planted machine, on which the first plan meets the goal."""
    goal = Goal("speedup", reach=1.5, tolerance=0.03)
    exactly = measured.reach(goal).attempts
    patched(monkeypatch, noisy_at_first(off))
    [attempt] = measured.reach(goal).attempts
    assert (attempt.levels == exactly[0].levels).all()
    assert attempt.measured[str(goal)] == pytest.approx(exactly[0].measured[str(goal)])


def test_the_plan_that_is_given_where_none_meets_the_goal_is_measured_until_it_is_told(measured, monkeypatch):
    """It is surely faster than asked, and not known to the tolerance at first."""
    patched(monkeypatch, noisy_at_first(1.0, faster=1.3))
    goal = Goal("speedup", reach=1.2, tolerance=0.03)
    reached = measured.reach(goal, attempts=1)
    assert reached.overdone
    check_steady(reached.comparison, goal)


class Joined(nn.Module):
    """One operator reads what five groups give."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(8, width) for width in (32, 40, 48, 56, 64))
        self.head = nn.Linear(240, 4)

    def forward(self, x):
        return self.head(torch.cat([torch.relu(part(x)) for part in self.parts], dim=1))


def test_operations_that_no_table_holds_are_timed_once_a_plan_needs_them(tmp_path, monkeypatch):
    """Oracle: what the planted machine takes for the plan."""
    torch.manual_seed(0)
    model, inputs = Joined().eval(), torch.randn(4, 8)
    rig = PlantedRig((inputs,), drift=1.3)
    monkeypatch.setattr(planner, "rig_for", lambda *_, **__: rig)
    found = planner.measure_target(
        model,
        target=Target("torch_eager", threads=1, batch=4),
        space=Space(most_levels=8),
        timing=Timing(tables=tmp_path),
        groups=find_groups(trace(model, inputs)),
    )
    stored = {path: path.read_bytes() for path in tmp_path.rglob("*.json")}
    later = PlantedRig((inputs,), drift=2.0)
    reached = replace(found, rig=later).reach(Goal("speedup", reach=1.4, tolerance=0.01))
    assert later.opened
    assert reached.overdone or abs(reached.comparison.speedup.median / 1.4 - 1) <= 0.01
    assert stored == {path: path.read_bytes() for path in tmp_path.rglob("*.json")}
