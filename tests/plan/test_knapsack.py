"""The knapsack finds what trying everything finds, and never breaks a limit.

Oracle: brute force over all levels of small instances.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from prunekit.plan.figures import Figure, Limit, figure_of
from prunekit.plan.knapsack import GAP, choose, descend, solve_exactly
from prunekit.plan.moves import moved_back, moved_on

SEEDS = range(12)


def instance(seed: int, *, limits: int = 1, joint: int = 2, falling: bool = False):
    """Random losses that rise and costs that fall; those of two or three levers together are just random.

    ``falling``: these fall along every lever too, as what operators multiply does.
    """
    levers, tightness = 5, 0.5
    draw = np.random.default_rng(seed)
    sizes = draw.integers(2, 5, levers).tolist()
    rising = [((place,), np.cumsum([0, *draw.random(size - 1)])) for place, size in enumerate(sizes)]
    objective = figure_of(rising)
    bounds = []
    for _ in range(limits):
        tables = [((place,), np.sort(draw.random(size))[::-1]) for place, size in enumerate(sizes)]
        for turn in range(joint):
            scope = tuple(sorted(draw.permutation(levers)[: 3 if turn % 3 == 2 else 2].tolist()))
            table = draw.random(tuple(sizes[place] for place in scope)) * 2
            for axis in range(table.ndim if falling else 0):
                table = -np.sort(-table, axis=axis)
            tables.append((scope, table))
        cost = figure_of(tables, constant=0.3)
        values = [cost.at(levels) for levels in every(sizes)]
        bounds.append(Limit(cost, min(values) + tightness * (cost.at([0] * levers) - min(values))))
    return objective, bounds, sizes


def every(sizes):
    return itertools.product(*map(range, sizes))


def best_of_all(objective: Figure, limits, sizes) -> float | None:
    met = [objective.at(levels) for levels in every(sizes) if all(limit.is_met(levels) for limit in limits)]
    return min(met) if met else None


@pytest.mark.parametrize("joint", [0, 3])
@pytest.mark.parametrize("limits", [1, 2])
@pytest.mark.parametrize("seed", SEEDS)
def test_the_exact_solver_is_brute_force(seed, limits, joint):
    objective, bounds, sizes = instance(seed, limits=limits, joint=joint)
    expected = best_of_all(objective, bounds, sizes)
    for chosen in (solve_exactly(objective, bounds, sizes), choose(objective, bounds, sizes)):
        if expected is None:
            assert chosen is None
            continue
        assert chosen is not None
        assert all(limit.is_met(chosen.levels) for limit in bounds)
        assert chosen.objective == pytest.approx(objective.at(chosen.levels))
        assert expected - 1e-9 <= chosen.objective <= expected + GAP * max(expected, 1e-9) + 1e-6


@pytest.mark.parametrize("limits", [1, 2])
@pytest.mark.parametrize("seed", SEEDS)
def test_the_descent_meets_the_limits_and_is_never_better_than_the_best(seed, limits):
    objective, bounds, sizes = instance(seed, limits=limits, joint=3)
    expected = best_of_all(objective, bounds, sizes)
    chosen = descend(objective, bounds, sizes)
    if chosen is not None:
        assert expected is not None
        assert all(limit.is_met(chosen.levels) for limit in bounds)
        assert chosen.objective >= expected - 1e-12


def test_the_descent_is_mostly_near_the_best():
    """Of 24 instances with costs as operators have them the median loss is at most a tenth above the best."""
    over = []
    for seed in range(24):
        objective, bounds, sizes = instance(seed, joint=3, falling=True)
        chosen = descend(objective, bounds, sizes)
        assert chosen is not None
        over.append(chosen.objective / max(best_of_all(objective, bounds, sizes), 1e-9))
    assert np.median(over) <= 1.1


@pytest.mark.parametrize("seed", range(4))
def test_what_nothing_meets_is_none(seed):
    objective, (limit,), sizes = instance(seed)
    below = Limit(limit.figure, limit.figure.least() * 0.9)
    assert choose(objective, [below], sizes) is None
    assert descend(objective, [below], sizes) is None
    assert solve_exactly(objective, [below], sizes) is None
    assert moved_on(objective, [below], sizes, np.zeros(len(sizes), dtype=int)) is None


@pytest.mark.parametrize("seed", range(4))
def test_without_limits_the_least_loss_is_chosen(seed):
    objective, _, sizes = instance(seed)
    chosen = choose(objective, [], sizes)
    assert chosen is not None
    assert chosen.objective == pytest.approx(best_of_all(objective, [], sizes))


@pytest.mark.parametrize("seed", range(4))
def test_costs_can_be_made_least_within_a_loss(seed):
    """The other way round, with an objective over several levers."""
    losses, (limit,), sizes = instance(seed, joint=3)
    bound = [Limit(losses, 0.5 * losses.at([size - 1 for size in sizes]))]
    chosen = choose(limit.figure, bound, sizes)
    assert chosen is not None
    expected = best_of_all(limit.figure, bound, sizes)
    assert expected - 1e-9 <= chosen.objective <= expected * (1 + GAP) + 1e-6


def test_the_same_is_chosen_again():
    objective, bounds, sizes = instance(1, limits=2, joint=3)
    one, two = choose(objective, bounds, sizes), choose(objective, bounds, sizes)
    assert one is not None
    assert two is not None
    np.testing.assert_array_equal(one.levels, two.levels)


@pytest.mark.parametrize("seed", SEEDS)
def test_moving_on_meets_the_limits_and_moving_back_keeps_them(seed):
    objective, bounds, sizes = instance(seed, limits=2, joint=2)
    start = np.random.default_rng(seed).integers(0, sizes)
    on = moved_on(objective, bounds, sizes, start)
    if on is None:
        return
    assert (on >= start).all()
    assert all(limit.is_met(on) for limit in bounds)
    back = moved_back(objective, bounds, sizes, on)
    assert all(limit.is_met(back) for limit in bounds)
    assert objective.at(back) <= objective.at(on)
    for place, size in enumerate(sizes):  # No single move would help any more.
        for level in range(size):
            moved = back.copy()
            moved[place] = level
            allowed = all(limit.is_met(moved) for limit in bounds)
            assert not allowed or objective.at(moved) >= objective.at(back) - 1e-12


@pytest.mark.parametrize("seed", range(6))
def test_held_levers_stay(seed):
    objective, bounds, sizes = instance(seed)
    start = np.random.default_rng(seed).integers(0, sizes)
    for moved in (
        moved_on(objective, bounds, sizes, start, held={0, 2}),
        moved_back(objective, [], sizes, start, held={0, 2}),
    ):
        if moved is not None:
            np.testing.assert_array_equal(moved[[0, 2]], start[[0, 2]])


def test_steps_go_over_levels_that_save_nothing():
    """A staircase: the next level costs more, the one behind it much less."""
    cost = figure_of([((0,), np.array([4.0, 5.0, 1.0]))])
    loss = figure_of([((0,), np.array([0.0, 1.0, 2.0]))])
    levels = moved_on(loss, [Limit(cost, 2.0)], [3], np.array([0]))
    assert levels is not None
    assert levels.tolist() == [2]


def test_a_limit_is_met_but_for_rounding():
    limit = Limit(Figure(1.0, {}), 1.0)
    assert limit.is_met(np.array([], dtype=int))
    assert Limit(Figure(1.0 + 1e-12, {}), 1.0).is_met(np.array([], dtype=int))
    assert not Limit(Figure(1.001, {}), 1.0).is_met(np.array([], dtype=int))
