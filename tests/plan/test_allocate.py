import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunekit.errors import CalibrationError, GoalError, SelectionError, ShapeError
from prunekit.plan import Goal, allocate


def widths(plan):
    return [after for _, after in plan.widths.values()]


@pytest.mark.parametrize("scope", ["uniform", "global"])
@pytest.mark.parametrize("kind", ["sparsity", "macs", "params"])
def test_a_goal_of_zero_removes_nothing(perceptron, scope, kind):
    groups = perceptron(8, [16, 12], 4)
    plan = allocate(groups, groups.scores(), Goal(kind, remove=0.0), scope=scope)
    assert dict(plan.keep) == {}
    assert plan.before == plan.after == groups.cost_of([16, 12])


def test_uniform_sparsity_is_that_share_of_every_group(perceptron):
    groups = perceptron(8, [7, 64, 24, 1], 4, blocks=[1, 1, 4, 1])
    plan = allocate(groups, groups.scores(levels=2), Goal("sparsity", remove=0.5))
    assert widths(plan) == [4, 32, 12, 1]
    in_blocks = plan.keep_mask()["layer2.weight:0"].reshape(4, 6)
    assert (in_blocks.sum(axis=1) == 3).all()
    assert plan.after == groups.cost_of([4, 32, 12, 1])


@given(seed=st.integers(0, 99), percent=st.integers(0, 85), levels=st.sampled_from([1, 2, 7, None]))
def test_global_sparsity_is_exact_with_ties(perceptron, seed, percent, levels):
    groups = perceptron(8, [17, 40, 23], 4)
    scores = groups.scores(seed, levels)
    plan = allocate(groups, scores, Goal("sparsity", remove=percent / 100, tolerance=0.0), scope="global")
    assert sum(widths(plan)) == (80 * (100 - percent) + 50) // 100  # the nearest integer, a half kept


def test_wide_blocks_and_few_groups_still_reach_the_goal(perceptron):
    """One step of the blocked group removes 16 units, about 6 % of the MACs: the others make up for it."""
    groups = perceptron(16, [256, 40, 30], 10, blocks=[16, 1, 1])
    for percent in range(5, 90):
        plan = allocate(groups, groups.scores(), Goal("macs", remove=percent / 100))
        asked = groups.cost_of([256, 40, 30]).macs * (1 - percent / 100)
        assert abs(plan.after.macs - asked) <= 0.02 * asked + 1
        assert (plan.widths["layer0.weight:0"][1]) % 16 == 0


def test_an_absolute_figure_is_reached(perceptron):
    groups = perceptron(32, [64, 64], 10)
    plan = allocate(groups, groups.scores(), Goal("params", reach=3000), scope="global")
    assert abs(plan.after.params - 3000) <= 60
    whole = groups.cost_of([64, 64]).params
    assert dict(allocate(groups, groups.scores(), Goal("params", reach=whole)).keep) == {}


def test_uniform_goals_take_nearly_the_same_share_of_every_group(perceptron):
    groups = perceptron(64, [128, 128, 64, 256], 10)
    plan = allocate(groups, groups.scores(), Goal("macs", remove=0.6))
    shares = [after / before for before, after in plan.widths.values()]
    assert max(shares) - min(shares) <= 2 / 64


def test_the_kept_units_are_the_best_ones(perceptron):
    groups = perceptron(32, [64, 64], 10)
    scores = groups.scores()
    plan = allocate(groups, scores, Goal("macs", remove=0.5), scope="global", criterion="l2")
    assert plan.criterion == "l2"
    for name, mask in plan.keep_mask().items():
        assert scores[name][mask].min() >= scores[name][~mask].max()


def test_limits_hold(perceptron):
    groups = perceptron(32, [64, 60, 6], 10)
    scores = groups.scores()
    scores["layer0.weight:0"] *= 0.01
    goal = Goal("params", remove=0.5, tolerance=0.04)
    plan = allocate(groups, scores, goal, scope="global", min_units=8, max_sparsity=0.7, round_to=4)
    first, second, third = widths(plan)
    assert first % 4 == 0
    assert first >= 20
    assert second % 4 == 0
    assert third == 6
    assert abs(plan.after.params - plan.before.params * 0.5) <= 0.04 * plan.before.params * 0.5


def test_global_leaves_a_tenth_of_every_group_by_default(perceptron):
    groups = perceptron(32, [64, 64], 10)
    scores = groups.scores()
    scores["layer0.weight:0"][:] = 0
    plan = allocate(groups, scores, Goal("sparsity", remove=0.5), scope="global")
    assert widths(plan) == [7, 57]


@pytest.mark.parametrize(
    ("arguments", "goal", "message"),
    [
        ({"min_units": 30}, Goal("macs", remove=0.9), r"'layer0.weight:0' keeps 30 of 32"),
        ({"max_sparsity": 0.5}, Goal("sparsity", remove=0.6), "max_sparsity=0.5"),
        ({"max_sparsity": 0.5, "scope": "global"}, Goal("sparsity", remove=0.6), "The nearest found leaves"),
        ({}, Goal("params", reach=10**9), "The model has only"),
        ({"round_to": 16}, Goal("macs", remove=0.3), "too coarse.*'layer0.weight:0' in 1 steps"),
    ],
)
def test_what_cannot_be_reached_says_how_near_and_why(perceptron, arguments, goal, message):
    groups = perceptron(32, [32], 10)
    with pytest.raises(GoalError, match=f"(?s){message}"):
        allocate(groups, groups.scores(), goal, **arguments)


LAYER = "'layer0.weight:0'"
NOTHING = [
    (
        [64, 8],
        [1, 1],
        0.005,
        {},
        rf"{LAYER} may keep 64 or 63 or 62 or ... or 1 of 64 (single units)",
        1 / 128,
    ),
    ([64, 8], [1, 1], 0.5, {"round_to": 100}, rf"{LAYER} may keep 64 of 64 (round_to=100)", None),
    ([64, 8], [1, 1], 0.2, {"round_to": 32}, rf"{LAYER} may keep 64 or 32 of 64 (round_to=32)", 1 / 4),
    ([64, 8], [1, 1], 0.5, {"min_units": 64}, rf"{LAYER} may keep 64 of 64 (min_units=64)", None),
    ([64], [1], 0.3, {"round_to": 40, "min_units": 50}, "(min_units=50, round_to=40)", None),
    ([64], [8], 0.05, {}, "(the same number of units goes from each of its 8 blocks)", 1 / 16),
    ([8] * 7, [1] * 7, 0.05, {}, "; and 2 narrower groups", 1 / 16),
]


@pytest.mark.parametrize(("hidden", "blocks", "share", "limits", "message", "least"), NOTHING)
def test_a_uniform_sparsity_that_rounds_to_nothing_is_refused(
    perceptron, hidden, blocks, share, limits, message, least
):
    """Oracle: half of the finest first step, which the remedy names; a little more removes a unit."""
    groups = perceptron(8, hidden, 4, blocks=blocks)
    with pytest.raises(GoalError, match=f"removes nothing at all: .*{re.escape(message)}") as caught:
        allocate(groups, groups.scores(), Goal("sparsity", remove=share), **limits)
    for name in limits:
        assert f"oosen {' and '.join(sorted(limits))}" in caught.value.remedy, name
    assert ("sparsity above" in caught.value.remedy) == (least is not None)
    if least is not None:
        assert f"sparsity above {least:.4g}" in caught.value.remedy
        with pytest.raises(GoalError, match="removes nothing at all"):
            allocate(groups, groups.scores(), Goal("sparsity", remove=least), **limits)
        plan = allocate(groups, groups.scores(), Goal("sparsity", remove=least + 1e-4), **limits)
        assert widths(plan) != hidden


def test_groups_that_lose_nothing_beside_others_are_only_recorded(perceptron):
    groups = perceptron(8, [64, 8, 1], 4)
    plan = allocate(groups, groups.scores(), Goal("sparsity", remove=0.05))
    assert plan.widths == {
        "layer0.weight:0": (64, 61),
        "layer1.weight:0": (8, 8),
        "layer2.weight:0": (1, 1),
    }


@pytest.mark.parametrize("scope", ["uniform", "global"])
@pytest.mark.parametrize("kind", ["sparsity", "macs", "params"])
def test_without_groups_only_zero_can_be_reached(perceptron, scope, kind):
    groups = perceptron(4, [], 4)
    with pytest.raises(GoalError, match="No group is prunable"):
        allocate(groups, {}, Goal(kind, remove=0.5), scope=scope)
    assert dict(allocate(groups, {}, Goal(kind, remove=0.0), scope=scope).keep) == {}


def test_scores_must_fit(perceptron):
    groups = perceptron(4, [5], 4)
    goal = Goal("sparsity", remove=0.5)
    with pytest.raises(ShapeError, match="has no scores"):
        allocate(groups, {}, goal)
    with pytest.raises(ShapeError, match=r"shape \(4,\)"):
        allocate(groups, {"layer0.weight:0": np.zeros(4, np.float32)}, goal)
    with pytest.raises(CalibrationError, match="NaN"):
        allocate(groups, {"layer0.weight:0": np.full(5, np.nan, np.float32)}, goal)
    with pytest.raises(SelectionError, match="The scope is 'local'"):
        allocate(groups, groups.scores(), goal, scope="local")


def test_a_million_units_need_few_cost_calls(perceptron):
    groups = perceptron(64, [500_000, 500_000], 10, blocks=[1, 4])
    plan = allocate(groups, groups.scores(), Goal("macs", remove=0.5), scope="global")
    assert groups.calls < 30
    assert abs(plan.after.macs / plan.before.macs - 0.5) < 1e-5
