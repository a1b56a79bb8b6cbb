"""How far a plan may lie from what its scope promises, and that nothing within the bound is overlooked."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunekit.errors import GoalError
from prunekit.plan import Goal, allocate

KINDS = st.sampled_from(["macs", "params"])
SCOPES = st.sampled_from(["uniform", "global"])
WIDTHS = st.lists(st.sampled_from([16, 24, 32, 50, 64, 100, 256]), min_size=1, max_size=5)


def widths(plan):
    return [after for _, after in plan.widths.values()]


def lies_near(groups, kept, places):
    return any(all(count in near for count, near in zip(kept, place, strict=True)) for place in places)


def reachable(groups, goal, places):
    """Whether any counts within the bound come within the tolerance. Oracle: all of them, the closed form."""
    asked = goal.asked(getattr(groups.cost_of([g.size for g in groups]), goal.kind))

    def figures(counts):
        ends = [np.full(len(counts), groups.inputs), *counts.T, np.full(len(counts), groups.outputs)]
        macs = sum(a * b for a, b in itertools.pairwise(ends))
        return macs if goal.kind == "macs" else macs + sum(ends[1:])

    for place in places:
        corners = figures(np.array([[min(near) for near in place], [max(near) for near in place]]))
        margin = goal.tolerance * asked
        if corners[0] <= asked + margin and corners[1] >= asked - margin:
            every = np.stack(np.meshgrid(*place, indexing="ij"), axis=-1).reshape(-1, len(place))
            if (np.abs(figures(every) - asked) <= margin).any():
                return True
    return False


@given(
    inputs=st.integers(4, 64),
    hidden=WIDTHS,
    percent=st.integers(1, 80),
    kind=KINDS,
    scope=SCOPES,
    seed=st.integers(0, 9),
)
def test_macs_and_params_are_reached_within_two_percent(
    perceptron, inputs, hidden, percent, kind, scope, seed
):
    """Oracle: the closed form of the cost; every count within the bound where it is unreachable."""
    groups = perceptron(inputs, hidden, 10)
    scores, goal = groups.scores(seed), Goal(kind, remove=percent / 100)
    before = getattr(groups.cost_of(hidden), kind)
    least = [-(-size // 10) for size in hidden] if scope == "global" else None
    try:
        plan = allocate(groups, scores, goal, scope=scope)
    except GoalError:
        assert not reachable(groups, goal, groups.near(scope, scores, least=least))
        return
    after = getattr(groups.cost_of(widths(plan)), kind)
    assert after == getattr(plan.after, kind)
    assert abs(after - before * (1 - percent / 100)) <= 0.02 * before * (1 - percent / 100) + 1
    assert groups.calls <= 60
    assert lies_near(groups, widths(plan), groups.near(scope, scores, least=least))


@settings(max_examples=300)
@given(
    inputs=st.integers(1, 12),
    hidden=st.lists(st.integers(1, 17), min_size=1, max_size=3),
    percent=st.integers(1, 95),
    kind=KINDS,
    scope=SCOPES,
    levels=st.sampled_from([2, None]),
)
def test_in_small_models_unreachable_means_that_no_counts_within_the_bound_reach_it(
    perceptron, inputs, hidden, percent, kind, scope, levels
):
    groups = perceptron(inputs, hidden, 3)
    scores, goal = groups.scores(0, levels), Goal(kind, remove=percent / 100)
    asked = goal.asked(getattr(groups.cost_of(hidden), kind))
    places = list(groups.near(scope, scores))
    try:
        plan = allocate(groups, scores, goal, scope=scope, max_sparsity=1.0)
    except GoalError:
        assert not reachable(groups, goal, places)
    else:
        assert goal.is_reached(getattr(plan.after, kind), asked)
        assert lies_near(groups, widths(plan), places)


@settings(max_examples=200)
@given(
    layers=st.lists(st.tuples(st.integers(1, 12), st.sampled_from([1, 2, 4])), min_size=2, max_size=3),
    percent=st.integers(1, 95),
    kind=KINDS,
    round_to=st.sampled_from([1, 2, 8]),
)
def test_uniform_plans_with_blocks_and_rounding_stay_within_the_bound(
    perceptron, layers, percent, kind, round_to
):
    hidden, blocks = [size * block for size, block in layers], [block for _, block in layers]
    groups = perceptron(6, hidden, 3, blocks=blocks)
    goal = Goal(kind, remove=percent / 100, tolerance=0.1)
    try:
        plan = allocate(groups, groups.scores(), goal, round_to=round_to)
    except GoalError:
        assert not reachable(groups, goal, groups.near("uniform", round_to=round_to))
        return
    assert lies_near(groups, widths(plan), groups.near("uniform", round_to=round_to))


def test_one_group_does_not_pay_for_another(perceptron):
    """Seventeen units may not become one while thirteen stay thirteen, though that meets the goal exactly."""
    groups = perceptron(40, [17, 13], 2)
    reach = groups.cost_of([1, 13]).macs
    places = list(groups.near("uniform"))
    assert not lies_near(groups, [1, 13], places)
    assert lies_near(groups, [9, 7], places)
    with pytest.raises(GoalError, match=r"too coarse.*next to the share that is common") as caught:
        allocate(groups, groups.scores(), Goal("macs", reach=reach, tolerance=0.0))
    assert f"The nearest found leaves {nearest(groups, reach, places)}." in str(caught.value)


def nearest(groups, asked, places):
    """Oracle: the figure of every combination within the bound."""
    every = {counts for place in places for counts in itertools.product(*place)}
    return min((groups.cost_of(counts).macs for counts in every), key=lambda macs: (abs(macs - asked), -macs))
