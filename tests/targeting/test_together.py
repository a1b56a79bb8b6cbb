"""Limits that contradict each other; the oracle is every plan there is, one by one."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import combinations, product

import numpy as np
import pytest

from prunekit.errors import GoalError
from prunekit.plan import Goal
from prunekit.plan.figures import Figure, Limit
from prunekit.targeting.together import NEAR, why_beyond

SIZES = (3, 4, 3, 2)


def figure(seed: int, *, falling: bool) -> Figure:
    """One term for each lever and one for each two neighbours."""
    draw = np.random.default_rng(seed)
    scopes = [(place,) for place in range(len(SIZES))] + [(place, place + 1) for place in range(3)]
    terms = {}
    for scope in scopes:
        table = draw.uniform(0, 1, [SIZES[place] for place in scope])
        for axis in range(len(scope)):
            table = np.sort(table, axis=axis)
        terms[scope] = np.flip(table) if falling else table
    return Figure(0.5 if falling else 0.0, terms)


EVERY = [np.array(levels) for levels in product(*map(range, SIZES))]


def bounded(found: Figure, share: float) -> Limit:
    """So that a share of the way from the least to the largest figure is left."""
    values = [found.at(levels) for levels in EVERY]
    return Limit(found, min(values) + share * (max(values) - min(values)))


def kept(limits, places=None) -> list[np.ndarray]:
    chosen = limits if places is None else [limits[place] for place in places]
    return [levels for levels in EVERY if all(limit.is_met(levels) for limit in chosen)]


def worst(limits, levels) -> float:
    return max(limit.figure.at(levels) / limit.most for limit in limits)


def instances():
    """A time, a size and a loss, each with a bound of its own, that no plan keeps together."""
    for seed in range(40):
        shares = np.random.default_rng(1000 + seed).uniform(0.02, 0.6, 3)
        limits = [
            bounded(figure(3 * seed + place, falling=place < 2), share) for place, share in enumerate(shares)
        ]
        if not kept(limits):
            yield limits


INSTANCES = list(instances())


@pytest.mark.parametrize("limits", INSTANCES[:12], ids=range(len(INSTANCES[:12])))
def test_the_fewest_limits_that_contradict_each_other_are_found(limits):
    found = why_beyond(limits[2].figure, limits, SIZES)
    assert found.alone == ()
    assert len(found.together) >= 2
    assert kept(limits, found.together) == []
    for place in found.together:
        others = [other for other in found.together if other != place]
        left = kept(limits, others)
        assert left
        best = min(limits[place].figure.at(levels) for levels in left)
        assert limits[place].figure.at(found.beside[place]) == pytest.approx(best, rel=0.01)
    for limit, levels in zip(limits, found.least, strict=True):
        assert limit.figure.at(levels) == pytest.approx(min(limit.figure.at(each) for each in EVERY))
    nearest = min(worst(limits, levels) for levels in EVERY)
    assert worst(limits, found.nearest) <= nearest * (1 + NEAR) * (1 + 1e-9)


def test_three_can_contradict_each_other_though_any_two_do_not():
    """Oracle: one lever of three levels, each of which breaks one of the limits."""
    limits = [
        Limit(Figure(0.0, {(0,): np.where(np.arange(3) == place, 2.0, 0.5)}), 1.0) for place in range(3)
    ]
    found = why_beyond(limits[0].figure, limits, [3])
    assert (found.alone, found.together) == ((), (0, 1, 2))
    assert {place: int(levels[0]) for place, levels in found.beside.items()} == {0: 0, 1: 1, 2: 2}


@pytest.mark.parametrize("place", range(3))
def test_a_limit_that_nothing_keeps_is_told_alone(place):
    limits = [bounded(figure(seed, falling=seed < 2), 0.9) for seed in range(3)]
    beyond = Limit(
        limits[place].figure, 0.5 * min(limits[place].figure.at(levels) for levels in EVERY) + 0.01
    )
    limits[place] = beyond
    if kept([beyond]):
        pytest.skip("its least is too small to be halved")
    found = why_beyond(limits[2].figure, limits, SIZES)
    assert (found.alone, found.together) == ((place,), ())
    assert worst(limits, found.nearest) <= min(worst(limits, levels) for levels in EVERY) * (1 + NEAR) + 1e-9


@pytest.fixture(scope="module")
def judged(measured):
    """The planted planner, with losses that count as measured."""
    return replace(measured, curves=tuple(replace(curve, source="measured") for curve in measured.curves))


def bound_of(judged, speedup: float) -> float:
    """The loss of the plan that is predicted to lose least at a speed-up."""
    return judged.reach(Goal("speedup", reach=speedup, tolerance=0.03)).attempts[-1].objective


@pytest.mark.usefixtures("planted")
def test_goals_that_contradict_each_other_are_named_with_what_each_reaches(judged):
    """Oracle: what the speed-up alone costs, and the planted machine's measurements."""
    speedup = Goal("speedup", reach=1.6, tolerance=0.03)
    drop = Goal("quality_drop", reach=bound_of(judged, 1.6) / 3, tolerance=0.03)
    params = Goal("params", remove=0.01, tolerance=0.03)
    for goals in ([speedup, drop], [drop, params, speedup]):
        with pytest.raises(GoalError, match="out of reach together") as error:
            judged.reach(goals)
        said = error.value.given
        named = said.partition(" are out of reach together")[0]
        assert str(speedup) in named
        assert str(drop) in named
        assert str(params) not in named
        assert f"for {drop}: 0 alone" in said
        assert "with the others kept" in said
        assert said.count("missed by") == 2
        assert re.search(rf"([\d.]+) \(95% interval \1 to \1\) for {re.escape(str(speedup))}", said)
    for goal in (speedup, drop):
        judged.reach(goal)


@pytest.mark.usefixtures("planted")
def test_what_both_can_meet_is_met(judged):
    """The same two, with the loss that the speed-up costs and a little more."""
    drop = Goal("quality_drop", reach=1.1 * bound_of(judged, 1.6), tolerance=0.03)
    reached = judged.reach([Goal("speedup", reach=1.6, tolerance=0.03), drop])
    assert reached.measured[str(drop)] <= drop.reach * 1.03
    assert reached.comparison.speedup.median >= 1.6 * 0.97


@pytest.mark.usefixtures("planted")
def test_only_the_goal_that_nothing_reaches_is_out_of_reach(judged):
    """Oracle: the fewest parameters of any plan, counted."""
    params, speedup = Goal("params", reach=10), Goal("speedup", reach=1.2, tolerance=0.03)
    least = min(
        judged.groups.cost(judged.costs.levers.masks(np.array(levels))).params
        for levels in [judged.costs.levers.last, *combinations_of_ends(judged)]
    )
    with pytest.raises(GoalError, match=f"The goal {params} is out of reach, whatever") as error:
        judged.reach([speedup, params])
    assert f"{params}: the best is {least:,.4g}, measured" in error.value.given
    assert f"for {speedup} (met)" in error.value.given


def combinations_of_ends(planner):
    """Every plan of which each lever is whole or at its last level, of up to two that stay whole."""
    last = planner.costs.levers.last
    for count in (1, 2):
        for stay in combinations(range(len(last)), count):
            levels = last.copy()
            levels[list(stay)] = 0
            yield levels


@pytest.mark.usefixtures("planted")
@pytest.mark.parametrize(
    ("goal", "counted", "figure"),
    [
        (Goal("speedup", reach=900), "milliseconds", "ms"),
        (Goal("params", remove=0.999), "parameters", "params"),
        (Goal("macs", remove=0.999), "MACs", "macs"),
    ],
)
def test_the_groups_in_the_way_are_those_of_the_figure(judged, goal, counted, figure):
    """Oracle: what the figure is at the nearest plan with and without all that a lever changes."""
    with pytest.raises(GoalError, match="out of reach") as error:
        judged.reach(goal)
    costs = judged.costs
    last, found = costs.levers.last, getattr(costs, figure)
    share = {}
    for place, lever in enumerate(costs.levers):
        terms = (table[tuple(last[list(scope)])] for scope, table in found.terms.items() if place in scope)
        share[lever.name] = sum(map(float, terms)) / found.at(last)
    first = max(share, key=share.__getitem__)
    told = re.search(rf"Its {counted}: '{re.escape(first)}' \((\d+)%\)", error.value.given)
    assert told is not None
    assert int(told[1]) == pytest.approx(100 * share[first], abs=2)  # Milliseconds were corrected.


@pytest.mark.usefixtures("planted")
def test_a_plan_that_loses_nothing_is_no_reason_to_stop(judged):
    """The first attempt loses nothing and is too slow."""
    free = replace(
        judged,
        curves=tuple(replace(curve, losses=np.maximum(curve.losses - 1e9, 0)) for curve in judged.curves),
    )
    with pytest.raises(GoalError, match="out of reach"):
        free.reach([Goal("quality_drop", reach=0.1), Goal("speedup", reach=900)])
