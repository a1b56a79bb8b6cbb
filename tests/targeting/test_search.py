"""A search keeps its limits, is the same again, and never ends worse than it began."""

from __future__ import annotations

import itertools
import sys
from dataclasses import replace

import numpy as np
import pytest
from tests.targeting.conftest import PlantedRig

from prunekit.errors import CalibrationError, GoalError, UsageError
from prunekit.plan import Goal
from prunekit.plan.figures import Limit, figure_of
from prunekit.plan.knapsack import choose
from prunekit.targeting import refine
from prunekit.targeting.search import search

SIZES = [4, 5, 3, 4, 4, 3]


def instance(seed: int):
    """Predicted losses, the true ones that they are wrong about, and a limit on a cost with joint parts."""
    draw = np.random.default_rng(seed)
    rising = [np.cumsum([0, *draw.random(size - 1)]) for size in SIZES]
    predicted = figure_of(((place,), table) for place, table in enumerate(rising))
    true = figure_of(((place,), table * draw.uniform(0.2, 3)) for place, table in enumerate(rising))
    tables = [((place,), np.linspace(2, 0.5, size)) for place, size in enumerate(SIZES)]
    tables.append(((0, 3), np.outer(np.linspace(1, 0.3, 4), np.linspace(1, 0.3, 4))))
    cost = figure_of(tables)
    limit = Limit(cost, 0.65 * cost.at([0] * len(SIZES)))
    start = choose(predicted, [limit], SIZES)
    assert start is not None
    return start.levels, true, predicted, [limit]


def run(which: int, **options):
    start, true, predicted, limits = instance(which)
    seen = []

    def judged(levels):
        seen.append(tuple(levels.tolist()))
        return true.at(levels)

    found = search(start, judged, predicted, limits, SIZES, **{"trials": 40, "seed": 0, **options})
    return found, seen, start, true, limits


@pytest.mark.parametrize("seed", range(6))
def test_it_is_never_worse_than_where_it_began(seed):
    found, seen, start, true, limits = run(seed)
    assert found.trials[0].levels == seen[0] == tuple(start.tolist())
    assert found.best.loss == min(trial.loss for trial in found.trials) <= true.at(start)
    assert found.best.loss == true.at(np.array(found.best.levels))
    for trial in found.trials:
        assert all(limit.is_met(np.array(trial.levels)) for limit in limits)


@pytest.mark.parametrize("seed", range(3))
def test_no_plan_is_judged_twice_and_trials_are_bounded(seed):
    found, seen, *_ = run(seed)
    assert len(seen) == len(set(seen)) == len(found.trials)
    assert found.asked == 40
    assert 1 < len(found.trials) <= 40


def test_wrong_predictions_are_made_up_for():
    """Of what predictions that are wrong by up to 15 times cost, more than half is won back in 40 trials.

    Oracle: the best of all plans within the limit, by brute force; the mean over eight instances.
    """
    began, ended = [], []
    for seed in range(8):
        found, _, _, true, (limit,) = run(seed)
        every = map(np.array, itertools.product(*map(range, SIZES)))
        best = min(true.at(levels) for levels in every if limit.is_met(levels))
        began.append(found.trials[0].loss / best - 1)
        ended.append(found.best.loss / best - 1)
    assert np.mean(ended) <= 0.5 * np.mean(began)


def test_the_same_seed_finds_the_same():
    assert run(2)[0] == run(2)[0]
    assert run(2)[0].trials != run(2, seed=9)[0].trials


def test_one_trial_is_where_it_began():
    found, _, start, *_ = run(0, trials=1)
    assert found.best.levels == tuple(start.tolist())
    assert len(found.trials) == found.asked == 1


def test_time_ends_it_after_the_first():
    found, _, start, *_ = run(0, seconds=0.0)
    assert [trial.levels for trial in found.trials] == [tuple(start.tolist())]


def test_mistakes_are_explained():
    start, true, predicted, limits = instance(0)
    with pytest.raises(GoalError, match="at least 1"):
        search(start, true.at, predicted, limits, SIZES, trials=0)
    with pytest.raises(GoalError, match="breaks a limit"):
        search(np.zeros_like(start), true.at, predicted, limits, SIZES)


def test_without_optuna_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    start, true, predicted, limits = instance(0)
    with pytest.raises(UsageError, match=r"pip install 'prunekit\[search\]'"):
        search(start, true.at, predicted, limits, SIZES)


def test_what_optuna_says_is_as_before():
    import optuna

    before = optuna.logging.get_verbosity()
    run(0, trials=3)
    assert optuna.logging.get_verbosity() == before


@pytest.mark.usefixtures("planted")
def test_a_plan_is_refined_on_the_pruned_graph(measured):
    """The user's loss is what the graph's outputs differ by from the dense model's."""
    import torch

    inputs = measured.rig.inputs[0]
    with torch.no_grad():
        expected = measured.model(inputs)

    def loss(module) -> float:
        with torch.no_grad():
            return float((module(inputs) - expected).square().mean())

    reached = measured.reach(Goal("speedup", reach=1.3, tolerance=0.03))
    refined = refine(measured, reached, loss, trials=20)
    costs = measured.costs
    levels = np.array(refined.searched.best.levels)
    assert refined.searched.trials[0].levels == tuple(reached.attempts[-1].levels.tolist())
    assert refined.searched.best.loss <= refined.searched.trials[0].loss
    assert costs.ms.at(levels) <= costs.ms.at(reached.attempts[-1].levels) * (1 + 1e-9)
    masks = costs.levers.masks(levels)
    assert {name: mask.tolist() for name, mask in refined.plan.keep_mask().items()} == {
        name: mask.tolist() for name, mask in masks.items()
    }
    assert refined.plan.after == measured.groups.cost(masks)
    with pytest.raises(CalibrationError, match="nan"):
        refine(measured, reached, lambda _: float("nan"), trials=2)
    with pytest.raises(CalibrationError, match="raised ZeroDivisionError") as error:
        refine(measured, reached, lambda _: 1 / 0, trials=2)
    assert str(reached.attempts[-1].levels.tolist()) in error.value.where


def less_elsewhere(measured, goals):
    """Refine by a loss that rewards every unit that stays, and so pulls all limits to their ends."""
    reached = measured.reach(goals)
    refined = refine(
        measured, reached, lambda model: -sum(each.numel() for each in model.parameters()), trials=30
    )
    return reached, refined


@pytest.mark.usefixtures("planted")
@pytest.mark.parametrize(
    "goals",
    [
        [Goal("params", remove=0.5, tolerance=0.03)],
        [Goal("speedup", reach=1.2, tolerance=0.05), Goal("params", remove=0.5, tolerance=0.05)],
        [Goal("macs", remove=0.4, tolerance=0.03), Goal("size_bytes", reach=12000, tolerance=0.5)],
    ],
    ids=["params", "speed-up and params", "macs and size"],
)
def test_every_goal_is_still_met(measured, goals):
    """Oracle: exact counts of the refined plan, which a loss that likes parameters would push up."""
    reached, refined = less_elsewhere(measured, goals)
    before, after = refined.plan.before, refined.plan.after
    for goal in goals:
        if goal.kind in ("params", "macs"):
            asked = getattr(before, goal.kind) * (1 - goal.remove)
            assert getattr(after, goal.kind) <= max(asked, getattr(reached.plan.after, goal.kind)) * (
                1 + 1e-9
            )
        if goal.kind == "size_bytes":
            assert after.param_bytes <= max(goal.reach, reached.plan.after.param_bytes)
    assert len(refined.searched.trials) > 1
    assert refined.plan.scope == "knapsack"


@pytest.mark.usefixtures("planted")
def test_what_attempts_taught_counts(measured):
    """The milliseconds that are kept are those of the costs after the attempts, not before.

    Oracle: the costs that the reached plan carries; the machine is slower in MACs than its tables say.
    """
    other = replace(measured, rig=PlantedRig(measured.rig.inputs, drift=1.7))
    reached = other.reach(Goal("speedup", reach=1.4, tolerance=0.03))
    assert len(reached.attempts) > 1
    start = reached.attempts[-1].levels
    assert reached.costs.ms.at(start) != other.costs.ms.at(start)
    assert len(reached.limits) == len(reached.goals)
    refined = refine(
        other, reached, lambda model: -sum(each.numel() for each in model.parameters()), trials=30
    )
    for trial in refined.searched.trials:
        assert reached.costs.ms.at(np.array(trial.levels)) <= reached.costs.ms.at(start) * (1 + 1e-9)
