import itertools

import numpy as np
import pytest
from hypothesis import given, settings
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


@settings(deadline=None)
@given(
    inputs=st.integers(4, 64),
    hidden=st.lists(st.sampled_from([16, 24, 32, 50, 64, 100, 256]), min_size=1, max_size=5),
    percent=st.integers(1, 80),
    kind=st.sampled_from(["macs", "params"]),
    scope=st.sampled_from(["uniform", "global"]),
    seed=st.integers(0, 9),
)
def test_macs_and_params_are_reached_within_two_percent(
    perceptron, inputs, hidden, percent, kind, scope, seed
):
    """Oracle: the closed form of the cost; and brute force where it is called unreachable."""
    groups = perceptron(inputs, hidden, 10)
    goal = Goal(kind, remove=percent / 100)
    before = getattr(groups.cost_of(hidden), kind)
    try:
        plan = allocate(groups, groups.scores(seed), goal, scope=scope)
    except GoalError:
        assert not reachable(groups, goal, kind, 0.9 if scope == "global" else 1.0)
        return
    after = getattr(groups.cost_of(widths(plan)), kind)
    assert after == getattr(plan.after, kind)
    assert abs(after - before * (1 - percent / 100)) <= 0.02 * before * (1 - percent / 100) + 1
    assert groups.calls <= 60


def reachable(groups, goal, kind, max_sparsity):
    """Whether any counts at all come within the tolerance; only asked of small models."""
    asked = goal.asked(getattr(groups.cost_of([g.size for g in groups]), kind))
    ranges = [range(int(np.ceil(g.size * (1 - max_sparsity) - 1e-9)) or 1, g.size + 1) for g in groups]
    return any(
        goal.is_reached(getattr(groups.cost_of(kept), kind), asked)
        for kept in itertools.islice(itertools.product(*ranges), 200_000)
    )


@settings(deadline=None, max_examples=200)
@given(
    inputs=st.integers(1, 12),
    hidden=st.lists(st.integers(1, 8), min_size=1, max_size=3),
    percent=st.integers(1, 95),
    kind=st.sampled_from(["macs", "params"]),
    scope=st.sampled_from(["uniform", "global"]),
)
def test_in_small_models_unreachable_means_that_no_counts_reach_it(
    perceptron, inputs, hidden, percent, kind, scope
):
    groups = perceptron(inputs, hidden, 3)
    goal = Goal(kind, remove=percent / 100)
    try:
        plan = allocate(groups, groups.scores(), goal, scope=scope, max_sparsity=1.0)
    except GoalError:
        assert not reachable(groups, goal, kind, 1.0)
    else:
        assert goal.is_reached(
            getattr(plan.after, kind), goal.asked(getattr(groups.cost_of([g.size for g in groups]), kind))
        )


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
    plan = allocate(
        groups, scores, Goal("params", remove=0.5), scope="global", min_units=8, max_sparsity=0.7, round_to=4
    )
    first, second, third = widths(plan)
    assert first % 4 == 0
    assert first >= 20
    assert second % 4 == 0
    assert third == 6
    assert abs(plan.after.params - plan.before.params * 0.5) <= 0.02 * plan.before.params * 0.5


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
